"""The head in float64 over all tokens and vocabulary entries, in chunks of tokens that fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.measure import distance

CHUNK_BYTES = 2**30  # of float64 logits


@dataclass(frozen=True)
class Options:
    """The options of ``linear_logprob`` that turn products into logits.

    Args:
        bias: [V].
        temperature: a number, or [T].
        softcap: None: none.
        ignore_index: target of a masked token.
    """

    bias: Tensor | None = None
    temperature: float | Tensor = 1.0
    softcap: float | None = None
    ignore_index: int = -100

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``linear_logprob``."""
        return dict(vars(self))

    def logits(self, raw: Tensor, rows: slice) -> Tensor:
        """Logits of the products of these tokens."""
        z = raw if self.bias is None else raw + self.bias
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        t = self.temperature
        return z / (t[rows, None].to(z.dtype) if isinstance(t, Tensor) else t)


def head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    upstream: tuple[Tensor, Tensor],
    options: Options | None = None,
    dtype: torch.dtype = torch.float64,
    softmax: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Log-probs, entropy and the gradients of hidden states and weight.

    Args:
        hidden: [T, D].
        weight: [V, D].
        targets: [T] int64.
        options: of the logits.
        upstream: gradients of log-probs and entropy [T].
        dtype: of the products; float64 is the oracle, bfloat16 is that of eager PyTorch.
        softmax: of everything after the product; None: ``dtype``.

    Returns:
        ``logprobs``, ``entropy`` [T], ``d_hidden`` [T, D], ``d_weight`` [V, D] and, with a bias,
        ``d_bias`` [V], in float64 or in what autograd gives for ``dtype``. Masked
        tokens are 0.
    """
    options = options or Options()
    weight = weight.detach().to(dtype).requires_grad_()
    bias = options.bias
    if bias is not None:
        bias = bias.detach().to(softmax or dtype).requires_grad_()
        options = Options(bias, options.temperature, options.softcap, options.ignore_index)
    exact = dtype == torch.float64
    # Sums over chunks must not add roundings of their own to eager's result.
    total = torch.zeros(weight.shape, dtype=torch.float64 if exact else torch.float32,
                        device=weight.device)  # fmt: skip
    total_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float64)
    step = max(1, CHUNK_BYTES // (8 * len(weight)))
    parts: dict[str, list[Tensor]] = {"logprobs": [], "entropy": [], "d_hidden": []}
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        x, y = hidden[rows].detach().to(dtype).requires_grad_(), targets[rows]
        unmasked = y != options.ignore_index
        z = x @ weight.T
        z = z if softmax is None else z.to(softmax)
        log = options.logits(z, rows).log_softmax(-1)
        logprobs = log.gather(1, y.clamp(min=0)[:, None])[:, 0] * unmasked
        entropy = -(log.exp() * log).sum(-1) * unmasked
        loss = (logprobs * upstream[0][rows]).sum() + (entropy * upstream[1][rows]).sum()
        wanted = [x, weight] if bias is None else [x, weight, bias]
        grads = torch.autograd.grad(loss, wanted)
        parts["logprobs"].append(logprobs.detach())
        parts["entropy"].append(entropy.detach())
        parts["d_hidden"].append(grads[0])
        total += grads[1]
        if total_bias is not None:
            total_bias += grads[2]
        del z, log, loss, grads, logprobs, entropy
    found = {name: torch.cat(values) for name, values in parts.items()}
    # A parameter's gradient has its dtype; only the oracle's is not rounded.
    found["d_weight"] = total.to(dtype)
    if total_bias is not None and options.bias is not None:
        found["d_bias"] = total_bias.to(dtype)
    return found


def by_block(got: Tensor, exact: Tensor, blocks: int = 16) -> list[float]:
    """Relative error of each block of the first dimension, which shows where something is wrong.

    Args:
        got: the result.
        exact: the same in float64.
        blocks: how many.
    """
    size = -(-len(exact) // blocks)
    pairs = zip(got.split(size), exact.split(size), strict=True)
    return [distance(a, b)["relative"] for a, b in pairs]
