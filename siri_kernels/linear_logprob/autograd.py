"""The differentiable operation behind ``linear_logprob``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from siri_kernels._autograd import refuse_double_backward
from siri_kernels._device import device_of
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.portable import backward as portable_backward
from siri_kernels.linear_logprob.portable import forward as portable_forward
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.types import Gradients, Needed, SoftmaxStats

OP = "linear_logprob"


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off: it would turn float32 products into 16-bit ones."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Backend(NamedTuple):
    """The functions that compute a call.

    Attributes:
        forward: from the call to its statistics, and its top entries if it saves any.
        backward: from the call, these, the incoming gradients and what is needed to the gradients.
    """

    forward: Callable[[HeadCall], tuple[SoftmaxStats, TopEntries | None]]
    backward: Callable[..., Gradients]


_PORTABLE = Backend(portable_forward.forward, portable_backward.backward)


def backend_of(call: HeadCall) -> Backend:
    """The functions of the package ``portable``, or others, imported when first used."""
    if not call.triton:
        if call.screen is None:
            return _PORTABLE
        from siri_kernels.linear_logprob.screen import forward as screened

        return Backend(screened.forward, portable_backward.backward)
    from siri_kernels.linear_logprob.triton import backward, forward

    if call.screen is not None:
        from siri_kernels.linear_logprob.screen_triton import forward as screened_triton

        return Backend(screened_triton.forward, backward.backward)
    return Backend(forward.forward, backward.backward)


class LinearLogprob(torch.autograd.Function):
    """Log-probs and entropy of a call, and their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        call: HeadCall,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [T] and entropy [T].

        Args:
            ctx: autograd's.
            hidden: that of ``call``; autograd follows tensors that are arguments only.
            weight: the same.
            bias: the same.
            call: all that is computed from.
        """
        with no_autocast(hidden.device), device_of(hidden):
            stats, top = backend_of(call).forward(call)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*call.tensors(), *stats, *(top or ()))
        ctx.call = call.without_tensors()
        return stats.logprobs, stats.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        """Gradients of ``hidden``, ``weight`` and ``bias``; none of the call."""
        hidden, weight, targets, bias, *saved = ctx.saved_tensors
        call = ctx.call.with_tensors(hidden, weight, targets, bias)
        stats, top = SoftmaxStats(*saved[:4]), TopEntries(*saved[4:]) if saved[4:] else None
        needed = Needed(*ctx.needs_input_grad[:3])
        with torch.no_grad(), no_autocast(hidden.device), device_of(hidden):
            grads = backend_of(call).backward(call, stats, top, upstream, needed)
        return refuse_double_backward(OP, (*grads, None), (hidden, weight, bias, *upstream))
