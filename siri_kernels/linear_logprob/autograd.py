"""The differentiable operation behind ``linear_logprob``: what is computed, and for which rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from siri_kernels._autograd import refuse_double_backward
from siri_kernels._device import device_of
from siri_kernels.linear_logprob.error_bound import Listed, certified_rows, left_out, report
from siri_kernels.linear_logprob.online_softmax import gradient_rule
from siri_kernels.linear_logprob.portable import forward as portable
from siri_kernels.linear_logprob.portable import sparse_backward
from siri_kernels.linear_logprob.top_entries import Slots
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats, select
from siri_kernels.linear_logprob.vocab_parallel import Shard

OP = "linear_logprob"
Grads = tuple["torch.Tensor | None", "torch.Tensor | None", "torch.Tensor | None"]


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    # Autocast would turn the fp32 products below into 16-bit ones.
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Plan(NamedTuple):
    """What does not change from row to row."""

    rule: LogitRule
    ignore_index: int
    gemm_dtype: torch.dtype
    tail: float
    slots: int  # 0: no lists, backward recomputes every row
    triton: bool = False
    shard: Shard | None = None

    def local(self, targets: torch.Tensor, vocabulary: int) -> torch.Tensor:
        return targets if self.shard is None else self.shard.local(targets, vocabulary)


class LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        plan: Plan,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stats, slots, counted = forward_of(hidden, weight, targets, bias, plan)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, targets, bias, counted, *stats, *(slots or ()))
        ctx.plan = plan
        return stats.logprobs, stats.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        hidden, weight, targets, bias, counted, *saved = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
        stats, slots = SoftmaxStats(*saved[:4]), Slots(*saved[4:]) if saved[4:] else None
        with torch.no_grad():
            grads = gradients_of(
                hidden, weight, targets, bias, counted, stats, slots, upstream, ctx.plan, needs
            )
        d_hidden, d_weight, d_bias = grads
        return refuse_double_backward(
            OP, (d_hidden, d_weight, None, d_bias, None), (hidden, weight, bias, *upstream)
        )


def forward_of(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    plan: Plan,
) -> tuple[SoftmaxStats, Slots | None, torch.Tensor]:
    """Statistics of all rows, the lists, and which rows count.

    The portable backend lists counted rows only.
    """
    counted = targets != plan.ignore_index
    index = None if plan.triton else counted_rows(counted)
    targets = plan.local(targets, len(weight))
    rows, row_targets = select(index, hidden, targets)
    rule, slots = plan.rule.rows(index), None
    if plan.slots:
        slots = Slots.empty(len(rows), plan.slots, rows, portable.widened(plan.gemm_dtype))
    problem = (rows, weight, row_targets, bias, rule, plan.gemm_dtype)
    with no_autocast(hidden.device), device_of(hidden):
        if plan.triton:
            from siri_kernels.linear_logprob.triton import forward as launch  # imports Triton

            stats = launch.forward(launch.Problem.of(*problem), slots, plan.shard)
        else:
            stats = portable.forward(*problem, slots, plan.shard)
    return spread(stats, index, counted), slots, counted


def gradients_of(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    counted: torch.Tensor,
    stats: SoftmaxStats,
    slots: Slots | None,
    upstream: tuple[torch.Tensor | None, ...],
    plan: Plan,
    needs: tuple[bool, bool, bool],
) -> Grads:
    """Gradients of ``hidden``, ``weight`` and ``bias`` from what :func:`forward_of` gave."""
    targets = plan.local(targets, len(weight))
    with no_autocast(hidden.device), device_of(hidden):
        if plan.triton:
            from siri_kernels.linear_logprob.triton import dense_backward
            from siri_kernels.linear_logprob.triton import forward as launch

            problem = launch.Problem.of(hidden, weight, targets, bias, plan.rule, plan.gemm_dtype)
            return dense_backward.backward(
                problem, counted, stats, slots, upstream, plan.tail, needs, plan.shard
            )
        return _portable_backward(
            hidden, weight, targets, bias, counted, stats, slots, upstream, plan, needs
        )


def _portable_backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    counted: torch.Tensor,
    stats: SoftmaxStats,
    slots: Slots | None,
    upstream: tuple[torch.Tensor | None, ...],
    plan: Plan,
    needs: tuple[bool, bool, bool],
) -> Grads:
    index = active_rows(counted, *upstream)
    if slots is not None:
        # Lists exist for counted rows only. (Rows with a gradient are counted.)
        place = counted.cumsum(0) - 1
        slots = Slots(*select(None if index is None else place[index], *slots))
    total = len(hidden)
    hidden, targets, *rest = select(index, hidden, targets, *stats, *upstream)
    stats, (grad_logprobs, grad_entropy) = SoftmaxStats(*rest[:4]), rest[4:]
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(stats.logprobs)
    rule = plan.rule.rows(index)
    batch = _Batch(
        hidden, weight, targets, bias, rule, plan, stats, grad_logprobs, grad_entropy, needs
    )
    if slots is None or not len(hidden):
        report(len(hidden), len(hidden), 0, 0.0, hidden.device)
        d_hidden, d_weight, d_bias = batch.exact()
    else:
        d_hidden, d_weight, d_bias = batch.from_lists(slots)
    if d_hidden is not None and plan.shard is not None:
        d_hidden = plan.shard.total(d_hidden).to(hidden.dtype)
    if d_hidden is not None and index is not None:
        d_hidden = hidden.new_zeros(total, hidden.shape[1]).index_copy_(0, index, d_hidden)
    return d_hidden, d_weight, d_bias


class _Batch(NamedTuple):
    """The rows that have a gradient."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None
    rule: LogitRule
    plan: Plan
    stats: SoftmaxStats
    grad_logprobs: torch.Tensor
    grad_entropy: torch.Tensor | None
    needs: tuple[bool, bool, bool]

    def exact(
        self, index: torch.Tensor | None = None, more: sparse_backward.WeightGradient | None = None
    ) -> Grads:
        """Of the rows ``index`` (None: all), recomputed; and ``more``."""
        hidden, targets, *stats = select(index, self.hidden, self.targets, *self.stats)
        grad_logprobs, grad_entropy = select(index, self.grad_logprobs, self.grad_entropy)
        return portable.backward(
            hidden,
            self.weight,
            targets,
            self.bias,
            self.rule.rows(index),
            self.plan.gemm_dtype,
            SoftmaxStats(*stats),
            grad_logprobs,
            grad_entropy,
            self.needs,
            more,
            self.hidden_grad(),
        )

    def hidden_grad(self) -> torch.dtype:
        """Dtype of the gradient of ``hidden``; a shard's is a part of a sum."""
        whole = self.plan.shard is None
        return self.hidden.dtype if whole else portable.widened(self.plan.gemm_dtype)

    def from_lists(self, slots: Slots) -> Grads:
        """Certified rows from their lists, the others recomputed."""
        upstream = (self.grad_logprobs, self.grad_entropy)
        gradient = gradient_rule(self.stats, *upstream, self.rule.temperature)
        entries, listed = sparse_backward.entries(
            slots, self.targets, len(self.weight), self.stats, self.rule, gradient
        )
        if self.plan.shard is not None:
            listed = Listed(*self.plan.shard.total(torch.stack(listed)))
        mass, cost = left_out(self.stats, listed, *upstream, self.rule.temperature)
        certified = certified_rows(cost, listed.norm, len(cost), self.plan.tail)
        dense = (~certified).nonzero()[:, 0]
        entries = entries.of(certified)
        tail_mass = mass.where(certified, 0).max()
        report(len(cost), len(dense), len(entries.row), tail_mass, cost.device)
        gemm, acc = self.plan.gemm_dtype, cost.dtype
        d_hidden = d_weight = d_bias = None
        if self.needs[0]:
            bags = sparse_backward.Operand(self.weight, gemm, acc)
            d_hidden = bags.bags(entries.id, entries.grad, entries.length).to(self.hidden_grad())
        more = None
        if self.needs[1] or self.needs[2]:
            more = sparse_backward.WeightGradient(
                entries, sparse_backward.Operand(self.hidden, gemm, acc)
            )
        if len(dense):
            d_dense, d_weight, d_bias = self.exact(dense, more)
            if d_hidden is not None and d_dense is not None:
                d_hidden.index_copy_(0, dense, d_dense)
        elif more is not None:
            if self.needs[1]:
                d_weight = more.weight_like(self.weight)
            if self.needs[2] and self.bias is not None:
                d_bias = more.bias_like(self.bias)
        return d_hidden, d_weight, d_bias


# What linear_logprob and selective_logprob share: which rows are worth computing.


def counted_rows(counted: torch.Tensor) -> torch.Tensor | None:
    """Indices of the counted rows; None: take all (reading the mask would wait for a GPU)."""
    if counted.device.type != "cpu" or bool(counted.all()):
        return None
    return counted.nonzero()[:, 0]


def active_rows(counted: torch.Tensor, *upstream: torch.Tensor | None) -> torch.Tensor | None:
    """Indices of the rows with any gradient to give (NaN is one); None: all of them."""
    active = torch.zeros_like(counted)
    for grad in upstream:
        if grad is not None:
            active |= grad != 0
    index = (active & counted).nonzero()[:, 0]
    return None if len(index) == len(counted) else index


def spread(stats: SoftmaxStats, index: torch.Tensor | None, counted: torch.Tensor) -> SoftmaxStats:
    """Statistics of the computed rows to the places of all rows, 0 where not counted."""
    if index is None:
        return SoftmaxStats(*(s.masked_fill(~counted, 0) for s in stats))
    return SoftmaxStats(*(s.new_zeros(counted.shape).index_copy_(0, index, s) for s in stats))
