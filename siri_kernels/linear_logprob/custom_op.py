"""``linear_logprob`` as a ``torch.library`` operator, which ``torch.compile`` keeps in its graph.

One operator forward and one backward, opaque to the compiler. What they read of their inputs'
values (targets, how many tokens to recompute) they read when they run. Eager calls go through
:class:`siri_kernels.linear_logprob.autograd.LinearLogprob` instead, which costs less a call.
"""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels._compiled import READS_ON_HOST
from siri_kernels._device import device_of
from siri_kernels.linear_logprob.autograd import OP, backend_of, no_autocast
from siri_kernels.linear_logprob.call import HeadCall, accumulator_of
from siri_kernels.linear_logprob.screen.options import Screen
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.types import LogitRule, Needed, SoftmaxStats
from siri_kernels.linear_logprob.validate import check_rule, check_targets

Saved = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]


def _number(option: torch.Tensor | None) -> float | None:
    return None if option is None else float(option)


def _number_or_tokens(temperature: torch.Tensor) -> float | torch.Tensor:
    return temperature if temperature.dim() else float(temperature)


@torch.library.custom_op("siri_kernels::linear_logprob", mutates_args=())
def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: torch.Tensor,
    softcap: torch.Tensor | None,
    ignore_index: int,
    gemm_dtype: torch.dtype,
    tail: float,
    entries: int,
    triton: bool,
    screen_kind: str,
    screen_tolerance: float,
    screen_checked: bool,
    screen_least: int,
) -> Saved:
    """Statistics and top entries of [T, D] hidden states.

    Softcap and temperature are tensors: as numbers they would be constants of the graph.

    Args:
        hidden: [T, D].
        weight: [V, D].
        targets: [T] int64.
        bias: [V], or None.
        temperature: [T], or 0-d and on the CPU.
        softcap: 0-d float64 on the CPU, or None.
        ignore_index: as in :class:`siri_kernels.linear_logprob.call.HeadCall`, and so on.
        gemm_dtype: the same.
        tail: the same.
        entries: the same.
        triton: the same.
        screen_kind: as in :class:`siri_kernels.linear_logprob.screen.options.Screen`, and so on;
            empty: no screen.
        screen_tolerance: the same.
        screen_checked: the same.
        screen_least: the same.

    Returns:
        The four fields of SoftmaxStats, then the four of TopEntries (empty without entries).
    """
    check_targets(OP, targets, weight.shape[0], ignore_index)
    rule = check_rule(OP, _number_or_tokens(temperature), _number(softcap), targets, hidden.device)
    check.number(OP, "tail", tail, at_least=0)
    screen = None
    if screen_kind:
        screen = Screen(screen_kind, screen_tolerance, screen_checked, screen_least)
    call = HeadCall(
        *(hidden, weight, targets, bias, rule, ignore_index, gemm_dtype, tail, entries, triton),
        screen=screen,
    )
    with no_autocast(hidden.device), device_of(hidden):
        stats, top = backend_of(call).forward(call)
    if top is None:
        return *stats, *_outputs(_no_entries(hidden))
    # Entries of every token: the sizes of an operator's results cannot depend on values.
    if len(top.found) < len(targets):
        index = call.unmasked().nonzero()[:, 0]
        whole = TopEntries.empty(len(targets), entries, hidden, top.logits.dtype)
        for all_tokens, some in zip(whole[:3], top[:3], strict=True):
            all_tokens.index_copy_(0, index, some)
        top = whole._replace(mass=top.mass)
    return *stats, *_outputs(top)


def _outputs(
    top: TopEntries,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    mass = top.logits.new_empty(0) if top.mass is None else top.mass
    return top.ids, top.logits, top.found, mass


def _no_entries(like: torch.Tensor) -> TopEntries:
    return TopEntries(
        like.new_empty((0, 0), dtype=torch.int32),
        like.new_empty((0, 0), dtype=torch.float32),
        like.new_empty(0, dtype=torch.int32),
    )


@linear_logprob.register_fake
def _(hidden: Any, weight: Any, targets: Any, *options: Any) -> Saved:
    gemm_dtype, _, entries, triton = options[4:8]
    acc = accumulator_of(gemm_dtype)
    tokens = targets.shape[0]  # len() would fix the number of tokens
    top = TopEntries.empty(tokens, entries, hidden, acc) if entries else _no_entries(hidden)
    if entries and not triton:
        top = top._replace(mass=top.logits.new_empty(weight.shape[0]))
    a, b, c, d = (hidden.new_empty(tokens, dtype=acc) for _ in range(4))
    return a, b, c, d, *_outputs(top)


@torch.library.custom_op(
    "siri_kernels::linear_logprob_backward", mutates_args=(), tags=READS_ON_HOST
)
def linear_logprob_backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: torch.Tensor,
    softcap: torch.Tensor | None,
    saved: list[torch.Tensor],
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    ignore_index: int,
    gemm_dtype: torch.dtype,
    tail: float,
    entries: int,
    triton: bool,
    needed: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``hidden``, ``weight`` and ``bias``; empty where not needed.

    Args:
        hidden: as in :func:`linear_logprob`, and so on.
        weight: the same.
        targets: the same.
        bias: the same.
        temperature: the same.
        softcap: the same.
        saved: what :func:`linear_logprob` returned.
        grad_logprobs: [T] gradient of the log-probs, or None.
        grad_entropy: [T] gradient of the entropy, or None.
        ignore_index: as in :func:`linear_logprob`, and so on.
        gemm_dtype: the same.
        tail: the same.
        entries: the same.
        triton: the same.
        needed: the fields of :class:`siri_kernels.linear_logprob.types.Needed`.
    """
    rule = LogitRule(_number_or_tokens(temperature), _number(softcap))
    call = HeadCall(
        hidden, weight, targets, bias, rule, ignore_index, gemm_dtype, tail, entries, triton
    )
    top = None
    if entries:
        top = TopEntries(saved[4], saved[5], saved[6], None if triton else saved[7])
    if top is not None and not triton:
        unmasked = call.unmasked()
        if not bool(unmasked.all()):
            top = top.select(unmasked)
    stats, upstream = SoftmaxStats(*saved[:4]), (grad_logprobs, grad_entropy)
    with no_autocast(hidden.device), device_of(hidden):
        grads = backend_of(call).backward(call, stats, top, upstream, Needed(*needed))
    first, second, third = (hidden.new_empty(0) if g is None else g for g in grads)
    return first, second, third


@linear_logprob_backward.register_fake
def _(
    hidden: Any, weight: Any, targets: Any, bias: Any, *options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    needed = Needed(*options[-1])

    def like(x: torch.Tensor | None, need: bool) -> torch.Tensor:
        if x is None or not need:
            return hidden.new_empty(0)
        return x.new_empty(x.shape)

    return like(hidden, needed.hidden), like(weight, needed.weight), like(bias, needed.bias)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    tensors, ctx.options = inputs[:6], inputs[6:11]  # backward knows no screen
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
    tensors, saved = ctx.saved_tensors[:6], list(ctx.saved_tensors[6:])
    need = ctx.needs_input_grad
    needed = [need[0], need[1], need[3]]
    if upstream[0] is None and upstream[1] is None:
        return (None,) * 15
    grads = linear_logprob_backward(*tensors, saved, upstream[0], upstream[1], *ctx.options, needed)
    hidden, weight, bias = (g if n else None for g, n in zip(grads, needed, strict=True))
    return hidden, weight, None, bias, *[None] * 11


linear_logprob.register_autograd(_backward, setup_context=_setup_context)
