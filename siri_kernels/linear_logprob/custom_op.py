"""``linear_logprob`` as a ``torch.library`` operator, which ``torch.compile`` keeps in its graph.

One operator forward and one backward, opaque to the compiler: what they read of their inputs'
values (targets, how many rows to recompute) they read when they run. Eager calls go through
:class:`.op.LinearLogprob` instead, which costs less a call.
"""

from __future__ import annotations

import torch

from siri_kernels import _checks as check
from siri_kernels._compiled import READS_ON_HOST
from siri_kernels.linear_logprob.autograd import OP, Plan, forward_of, gradients_of
from siri_kernels.linear_logprob.portable.forward import widened
from siri_kernels.linear_logprob.top_entries import Slots
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats
from siri_kernels.linear_logprob.validate import check_rule, check_targets

Saved = tuple[
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


def _plan(
    temperature: torch.Tensor,
    softcap: torch.Tensor | None,
    ignore_index: int,
    gemm_dtype: torch.dtype,
    tail: float,
    slots: int,
    triton: bool,
) -> Plan:
    rule = LogitRule(temperature if temperature.dim() else float(temperature), _number(softcap))
    return Plan(rule, ignore_index, gemm_dtype, tail, slots, triton)


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
    slots: int,
    triton: bool,
) -> Saved:
    """The row statistics and lists of [T, D] hidden states.

    ``temperature``: [T], or 0-d and on the CPU; ``softcap``: 0-d float64 on the CPU. As numbers
    they would be constants of the graph.
    """
    check_targets(OP, targets, weight.shape[0], ignore_index)
    rule = temperature if temperature.dim() else float(temperature)
    check_rule(OP, rule, _number(softcap), targets, hidden.device)
    check.number(OP, "tail", tail, at_least=0)
    plan = _plan(temperature, softcap, ignore_index, gemm_dtype, tail, slots, triton)
    stats, lists, _ = forward_of(hidden, weight, targets, bias, plan)
    if lists is None:
        return *stats, *_no_lists(hidden)
    # Lists of every row: the sizes of an operator's results cannot depend on values.
    if len(lists.found) < len(targets):
        counted = (targets != ignore_index).nonzero()[:, 0]
        whole = Slots.empty(len(targets), slots, hidden, lists.logits.dtype)
        for all_rows, some in zip(whole, lists, strict=True):
            all_rows.index_copy_(0, counted, some)
        lists = whole
    return *stats, *lists


def _no_lists(like: torch.Tensor) -> Slots:
    return Slots(
        like.new_empty((0, 0), dtype=torch.int32),
        like.new_empty((0, 0), dtype=torch.float32),
        like.new_empty(0, dtype=torch.int32),
    )


@linear_logprob.register_fake
def _(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: torch.Tensor,
    softcap: torch.Tensor | None,
    ignore_index: int,
    gemm_dtype: torch.dtype,
    tail: float,
    slots: int,
    triton: bool,
) -> Saved:
    acc = widened(gemm_dtype)
    rows = targets.shape[0]  # len() would fix the number of rows
    lists = Slots.empty(rows, slots, hidden, acc) if slots else _no_lists(hidden)
    a, b, c, d = (hidden.new_empty(rows, dtype=acc) for _ in range(4))
    return a, b, c, d, lists.ids, lists.logits, lists.found


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
    slots: int,
    triton: bool,
    needs: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``hidden``, ``weight`` and ``bias``; empty where not needed."""
    plan = _plan(temperature, softcap, ignore_index, gemm_dtype, tail, slots, triton)
    counted = targets != ignore_index
    lists = Slots(*saved[4:]) if slots else None
    if lists is not None and not triton and not bool(counted.all()):
        lists = Slots(*(x[counted] for x in lists))
    grads = gradients_of(
        hidden,
        weight,
        targets,
        bias,
        counted,
        SoftmaxStats(*saved[:4]),
        lists,
        (grad_logprobs, grad_entropy),
        plan,
        (needs[0], needs[1], needs[2]),
    )
    first, second, third = (hidden.new_empty(0) if g is None else g for g in grads)
    return first, second, third


@linear_logprob_backward.register_fake
def _(
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
    slots: int,
    triton: bool,
    needs: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def like(x: torch.Tensor | None, need: bool) -> torch.Tensor:
        if x is None or not need:
            return hidden.new_empty(0)
        return x.new_empty(x.shape)

    return like(hidden, needs[0]), like(weight, needs[1]), like(bias, needs[2])


def _setup_context(ctx, inputs, output):
    *tensors, ctx.ignore_index = inputs[:7]
    ctx.gemm_dtype, ctx.tail, ctx.slots, ctx.triton = inputs[7:]
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx, *upstream):
    *tensors, o1, o2, o3, o4, o5, o6, o7 = ctx.saved_tensors
    need = ctx.needs_input_grad
    needs = [need[0], need[1], need[3]]
    if upstream[0] is None and upstream[1] is None:
        return (None,) * 11
    grads = linear_logprob_backward(
        *tensors,
        [o1, o2, o3, o4, o5, o6, o7],
        upstream[0],
        upstream[1],
        ctx.ignore_index,
        ctx.gemm_dtype,
        ctx.tail,
        ctx.slots,
        ctx.triton,
        needs,
    )
    hidden, weight, bias = (g if n else None for g, n in zip(grads, needs, strict=True))
    return hidden, weight, None, bias, *[None] * 7


linear_logprob.register_autograd(_backward, setup_context=_setup_context)
