"""Refuses double backward with a clear error; keeps ``torch.compile`` from tracing a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch._compile import _disable_dynamo

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """One graph break, at the call: checks and top entries read sizes, which no graph can hold.

    ``torch.compiler.disable`` does the same, but imports the compiler (a second) together with
    this library; so it is done at the first call, as PyTorch does in its own modules.
    """
    return cast(F, _disable_dynamo(function))


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, grad: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        ctx.op = op
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise NotImplementedError(
            f"{ctx.op}: its gradient cannot be differentiated again (double backward); "
            "backend='reference' is plain PyTorch and can"
        )


def refuse_double_backward(
    op: str, grads: tuple[torch.Tensor | None, ...], sources: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor | None, ...]:
    """The same gradients; under ``create_graph=True`` differentiating them raises an error.

    Call it last in ``backward``.

    Args:
        op: named in the error.
        grads: of the operation.
        sources: tensors that the gradients depend on.
    """
    if not torch.is_grad_enabled():
        return grads
    roots = [s for s in sources if s is not None and s.requires_grad]
    if not roots:
        return grads
    return tuple(None if g is None else _Refuse.apply(op, g, *roots) for g in grads)
