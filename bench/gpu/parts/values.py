"""Log-probs, entropy and gradients at full size against float64, for all tokens and entries.

The error of eager PyTorch on the same inputs is the measure. With saved top entries our gradients'
error may be that of eager in bfloat16, without them twice that of eager in the same dtype. The
error of log-prob and entropy, whose logits are float32, may be a twentieth of eager's in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu import oracle
from bench.gpu.context import Context
from bench.gpu.oracle import Options
from bench.inputs import language_inputs
from bench.measure import Errors, distance
from siri_kernels import linear_logprob, take_backward_stats

VOCABULARY = 151_936
# Of eager's error.
SHARE = {"logprobs": 0.05, "entropy": 0.05}
DEFAULT_TAIL = 1e-2  # of linear_logprob


@dataclass(frozen=True)
class Case:
    """A case.

    Args:
        tokens: T.
        dim: D.
        vocabulary: V.
        dtype: of hidden states and weight.
        everything: with bias, softcap, a temperature per token and masked tokens.
    """

    tokens: int
    dim: int
    vocabulary: int
    dtype: str = "bfloat16"
    everything: bool = False

    @property
    def name(self) -> str:
        """Its name in the records."""
        options = " options" if self.everything else ""
        return f"{self.tokens}x{self.dim}x{self.vocabulary} {self.dtype}{options}"


def _cases(rehearse: bool) -> list[Case]:
    """The most important first. More than 8192 tokens make a second, partial block of tokens."""
    if rehearse:
        return [Case(20, 32, 8200), Case(20, 32, 300, everything=True)]
    return [
        Case(9000, 1536, VOCABULARY),
        Case(1111, 896, 50_001, everything=True),
        Case(9000, 896, VOCABULARY, "float16"),
        Case(16_384, 1536, VOCABULARY),
        Case(1111, 896, 50_001, "float16", everything=True),
        Case(2000, 3584, VOCABULARY),
    ]


def run(context: Context) -> None:
    """The first case, the error bound, the other cases."""
    for number, case in enumerate(_cases(context.rehearse)):
        if not context.in_time(case.name, 12):
            continue
        context.attempt(case.name, lambda c=case: compare(context, c))
        context.device.free()
        if number == 0:
            context.attempt("certificate", lambda: _certificate(context))


def _inputs(context: Context, case: Case) -> tuple[Tensor, Tensor, Tensor, Options]:
    """Language-model inputs of 0.5 nats, and the options of the call."""
    device, dtype = context.device.device, getattr(torch, case.dtype)
    h, w, y = language_inputs(case.tokens, case.dim, case.vocabulary, 0.5, device=device.type)
    if not case.everything:
        return h.to(dtype), w.to(dtype), y, Options()
    generator = torch.Generator(device).manual_seed(5)
    bias = 0.1 * torch.randn(case.vocabulary, generator=generator, device=device)
    temperature = 0.7 + 0.6 * torch.rand(case.tokens, generator=generator, device=device)
    y[torch.rand(case.tokens, generator=generator, device=device) < 0.1] = -100
    return h.to(dtype), w.to(dtype), y, Options(bias.to(dtype), temperature, softcap=30.0)


def compare(context: Context, case: Case, key: str = "values") -> None:
    """One case: ours with saved top entries and without, and eager, each with its errors.

    Args:
        context: of the part.
        case: what is compared.
        key: first part of the figures' names.
    """
    hidden, weight, targets, options = _inputs(context, case)
    generator = torch.Generator(hidden.device).manual_seed(6)
    normal = torch.randn(2, case.tokens, generator=generator, device=hidden.device)
    upstream = (normal[0], 0.1 * normal[1])
    exact = oracle.head(hidden, weight, targets, upstream, options)

    def errors_of(dtype: torch.dtype) -> Errors:
        got = oracle.head(hidden, weight, targets, upstream, options, dtype, torch.float32)
        return {name: distance(got[name], exact[name]) for name in exact}

    eagers = {dtype: errors_of(dtype) for dtype in {torch.bfloat16, torch.float32, hidden.dtype}}
    context.device.free()
    for tail in (DEFAULT_TAIL, 0.0):
        label = "lists" if tail else "dense"
        got, facts = ours(context, hidden, weight, targets, upstream, options, tail)
        errors = {name: distance(got[name], exact[name]) for name in exact}
        beside = {
            name: eagers[torch.bfloat16 if tail or name in SHARE else hidden.dtype][name]
            for name in exact
        }
        share = 1.05 if tail else 2.0  # 5 % for chance
        allowed = {n: beside[n]["relative"] * SHARE.get(n, share) + 1e-6 for n in exact}
        wrong = [name for name in exact if not errors[name]["relative"] <= allowed[name]]
        context.check(
            f"{key} {case.name} {label}", not wrong, wrong=wrong, errors=errors, allowed=allowed,
            eager=beside, eager_fp32=eagers[torch.float32],
            blocks={n: oracle.by_block(got[n], exact[n]) for n in ("logprobs", "d_hidden")},
            blocks_of_ids=oracle.by_block(got["d_weight"], exact["d_weight"]),
            ids=_some_ids(got["d_weight"], exact["d_weight"], targets), **facts,
        )  # fmt: skip
        for name in ("d_hidden", "d_weight"):
            share = errors[name]["relative"] / beside[name]["relative"]
            context.number(f"{key}.{name}.{label}.{case.name}", share, "of eager's error")
        del got
        context.device.free()


def _some_ids(got: Tensor, exact: Tensor, targets: Tensor) -> dict[str, float]:
    """Relative errors of the weight's gradient: first and last entries, commonest targets."""
    common = torch.bincount(targets[targets >= 0], minlength=len(exact)).topk(3).indices.tolist()
    chosen = [0, 1, len(exact) // 2, len(exact) - 2, len(exact) - 1, *common]
    return {str(i): distance(got[i], exact[i])["relative"] for i in chosen}


def ours(
    context: Context,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    upstream: tuple[Tensor, Tensor],
    options: Options,
    tail: float,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The results of ``linear_logprob``, and the statistics of its backward pass.

    Args:
        context: of the part.
        hidden: [T, D].
        weight: [V, D].
        targets: [T].
        upstream: gradients of log-probs and entropy [T].
        options: of the logits.
        tail: of ``linear_logprob``.
    """
    x, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    arguments = options.arguments() | {"backend": context.backend_for(len(weight))}
    leaves = [x, w]
    if options.bias is not None:
        arguments["bias"] = options.bias.detach().requires_grad_()
        leaves.append(arguments["bias"])
    take_backward_stats()
    out = linear_logprob(x, w, targets, tail=tail, **arguments)
    grads = torch.autograd.grad(tuple(out), leaves, upstream)
    stats = take_backward_stats()
    found = {"logprobs": out.logprobs.detach(), "entropy": out.entropy.detach()}
    found |= dict(zip(("d_hidden", "d_weight", "d_bias"), grads, strict=False))
    facts: dict[str, Any] = {"tail": tail}
    if stats is not None:
        facts |= {name: float(value) for name, value in stats._asdict().items()}
    return found, facts


def _certificate(context: Context) -> None:
    """The relative L1 error of the logit gradient, which ``tail`` bounds.

    With the identity as weight the gradient of the hidden states is that of the logits. The bound
    leaves room for their rounding to bfloat16.
    """
    tokens, vocabulary = (4, 8192) if context.rehearse else (4096, 8192)
    device, dtype = context.device.device, context.dtype()
    h, w, y = language_inputs(tokens, 64, vocabulary, 0.5, device=device.type)
    hidden, weight = (h @ w.T).to(dtype), torch.eye(vocabulary, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(7)
    upstream = (
        torch.randn(tokens, generator=generator, device=device),
        torch.zeros(tokens, device=device),
    )
    log = hidden.double().log_softmax(-1)
    exact = -log.exp() * upstream[0].double()[:, None]
    exact[torch.arange(tokens, device=device), y] += upstream[0].double()
    backend = context.backend_for(vocabulary)
    for tail in (DEFAULT_TAIL,) if context.rehearse else (1e-1, DEFAULT_TAIL, 1e-3):
        x = hidden.detach().requires_grad_()
        take_backward_stats()
        out = linear_logprob(x, weight, y, tail=tail, backend=backend)
        (got,) = torch.autograd.grad(out.logprobs, x, upstream[0])
        stats = take_backward_stats()
        error = float((got.double() - exact).abs().sum() / exact.abs().sum())
        context.check(
            f"certificate {tail:g}", error <= tail + 2.0**-8, relative_l1=error, tail=tail,
            dense_row_frac=None if stats is None else float(stats.dense_row_frac),
        )  # fmt: skip
