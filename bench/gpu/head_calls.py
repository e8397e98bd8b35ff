"""The calls of the head that parts time, repeat and profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.gpu.context import Context
from bench.inputs import language_inputs, uniform_inputs
from siri_kernels import linear_logprob


class HeadCalls:
    """Inputs of the head on the device, and calls without arguments on them.

    Args:
        context: of the part; gives device, dtype and backend.
        tokens: T.
        dim: D.
        vocab: V.
        softmax: entropy in nats, or "uniform".
        options: of ``linear_logprob``.
    """

    def __init__(
        self,
        context: Context,
        tokens: int,
        dim: int,
        vocab: int,
        softmax: float | str,
        **options: Any,
    ) -> None:
        device, dtype = context.device.device, context.dtype()
        if isinstance(softmax, float):
            made = language_inputs(tokens, dim, vocab, softmax, device=device.type)
        else:
            made = uniform_inputs(tokens, dim, vocab, device=device.type)
        self.hidden = made[0].to(dtype).requires_grad_()
        self.weight = made[1].to(dtype).requires_grad_()
        self.targets = made[2]
        del made
        generator = torch.Generator(device).manual_seed(1)
        self.upstream = torch.randn(tokens, generator=generator, device=device)
        self.backend = context.backend_for(vocab)
        self.options = {"backend": self.backend, **options}
        self.flops = 2.0 * tokens * dim * vocab
        self.returned = self.hidden.nbytes + self.weight.nbytes

    def forward(self) -> Any:
        """Log-prob and entropy, nothing saved for backward."""
        with torch.no_grad():
            return linear_logprob(self.hidden, self.weight, self.targets, **self.options)

    def forward_lists(self) -> Any:
        """The same with the top entries that backward needs."""
        return linear_logprob(self.hidden, self.weight, self.targets, **self.options)

    def both(self, tail: float = 1e-2) -> tuple[Tensor, ...]:
        """Forward, and backward under a fixed gradient for each token."""
        out = linear_logprob(self.hidden, self.weight, self.targets, tail=tail, **self.options)
        wanted = (self.hidden, self.weight)
        return torch.autograd.grad(out.logprobs, wanted, self.upstream)

    def dense(self) -> tuple[Tensor, ...]:
        """The same with every token recomputed."""
        return self.both(0.0)

    def calls(self) -> dict[str, Callable[[], Any]]:
        """The four of them by name."""
        return {
            "forward": self.forward, "forward_lists": self.forward_lists,
            "both": self.both, "dense": self.dense,
        }  # fmt: skip

    def products(self, rows: int = 8192) -> dict[str, Callable[[], Any]]:
        """The bare forward product with both dtypes of result, by tokens that fit."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        cpu = hidden.device.type == "cpu"  # has no product of 16-bit factors with fp32 results

        def product(wide: bool) -> None:
            for part in hidden.split(rows):
                if wide and not cpu:
                    torch.mm(part, weight.t(), out_dtype=torch.float32)
                elif wide:
                    torch.mm(part.float(), weight.float().t())
                else:
                    torch.mm(part, weight.t())

        return {"product_bf16": lambda: product(False), "product_fp32": lambda: product(True)}


@contextmanager
def switched(module: Any, name: str, value: bool) -> Iterator[None]:
    """A switch of a kernel's module, set for a while.

    Args:
        module: that has it.
        name: of the switch.
        value: what it is meanwhile.
    """
    before = getattr(module, name, None)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def unfused() -> Iterator[None]:
    """The head's product and online softmax as separate kernels on every device."""
    try:
        from siri_kernels.linear_logprob.triton import fused
    except ImportError:  # no Triton
        yield
        return
    with switched(fused, "ENABLED", False):
        yield
