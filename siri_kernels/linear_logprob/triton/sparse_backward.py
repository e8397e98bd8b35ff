"""Launches the Triton kernels of backward from the lists."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from siri_kernels.linear_logprob.error_bound import Listed
from siri_kernels.linear_logprob.online_softmax import GradientRule
from siri_kernels.linear_logprob.top_entries import Slots
from siri_kernels.linear_logprob.triton import sparse_kernels
from siri_kernels.linear_logprob.triton.forward import GEMM
from siri_kernels.linear_logprob.triton.problem import Problem
from siri_kernels.linear_logprob.types import SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import is_local


def target_entry(problem: Problem, stats: SoftmaxStats, rule: GradientRule) -> torch.Tensor:
    """[T] gradient of the raw logit of each row's target; 0 where it is not here."""
    at_target = rule.at_target.where(is_local(problem.targets, len(problem.weight)), 0)
    if problem.rule.softcap is None:
        return at_target
    cap = stats.max + (stats.logprobs + stats.log_sum) * problem.rule.temperature
    return at_target * (1 - (cap / problem.rule.softcap).clamp(-1, 1).square())


def listed_rows(
    problem: Problem,
    lists: Slots,
    stats: SoftmaxStats,
    rule: GradientRule,
    head: torch.Tensor,
    active: torch.Tensor,
) -> Listed:
    """What the certificate needs to know of each row's list; inactive rows: 0."""
    kept, kept_entropy, norm = (torch.empty_like(stats.max) for _ in range(3))
    total, most = lists.ids.shape
    if total:
        sparse_kernels.certify_kernel[(total,)](
            lists.logits,
            lists.found,
            active.to(torch.int8),
            stats.max,
            stats.log_sum,
            head,
            rule.offset,
            rule.offset if rule.slope is None else rule.slope,
            problem.scale(),
            kept,
            kept_entropy,
            norm,
            most,
            problem.softcap()[1],
            SLOPE=rule.slope is not None,
            BLOCK=min(sparse_kernels.SLOTS, triton.next_power_of_2(most)),
            **problem.rule_options(),
        )
    return Listed(kept, kept_entropy, norm, (lists.found > most).to(norm.dtype))


class Entries(NamedTuple):
    """Entries of the raw logits' gradient of the certified rows, row after row."""

    ids: torch.Tensor  # [N] int32
    rows: torch.Tensor  # [N] int32
    grads: torch.Tensor  # [N] fp32
    stops: torch.Tensor  # [T] int64, where each row's entries end
    lengths: torch.Tensor  # [T] int64

    @staticmethod
    def of(
        problem: Problem,
        lists: Slots,
        stats: SoftmaxStats,
        rule: GradientRule,
        head: torch.Tensor,
        stops: torch.Tensor,
        lengths: torch.Tensor,
        count: int,
    ) -> Entries:
        device = stops.device
        ids, rows = (torch.empty(count, dtype=torch.int32, device=device) for _ in range(2))
        grads = torch.empty(count, dtype=torch.float32, device=device)
        if count:
            most = lists.ids.shape[1]
            sparse_kernels.entries_kernel[(len(stops),)](
                lists.ids,
                lists.logits,
                stops,
                lengths,
                problem.targets,
                len(problem.weight),
                stats.max,
                head,
                rule.offset,
                rule.offset if rule.slope is None else rule.slope,
                problem.scale(),
                ids,
                rows,
                grads,
                most,
                problem.softcap()[1],
                SLOPE=rule.slope is not None,
                BLOCK=min(sparse_kernels.SLOTS, triton.next_power_of_2(most)),
                **problem.rule_options(),
            )
        return Entries(ids, rows, grads, stops, lengths)

    def of_hidden(self, problem: Problem, dtype: torch.dtype) -> torch.Tensor:
        """[T, D] what the entries give to the gradient of ``hidden``; 0 for rows without any."""
        hidden, weight = problem.hidden, problem.weight
        out = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
        (total, width), blocks = hidden.shape, _blocks(hidden.shape[1])
        sparse_kernels.hidden_kernel[(total, triton.cdiv(width, blocks["COLUMNS"]))](
            weight,
            self.ids,
            self.grads,
            self.stops,
            self.lengths,
            out,
            *weight.stride(),
            width,
            GEMM=GEMM[problem.gemm_dtype],
            **blocks,
        )
        return out


def _blocks(width: int) -> dict[str, int]:
    """Constants of the kernels that gather rows of a matrix."""
    columns = min(sparse_kernels.COLUMNS, triton.next_power_of_2(width))
    warps = sparse_kernels.GATHER_WARPS
    return {"ROWS": sparse_kernels.ROWS, "COLUMNS": columns, "num_warps": warps}


class ByID:
    """The entries sorted by token id, and the sums that ids with many of them share."""

    def __init__(self, problem: Problem, entries: Entries, need_weight: bool) -> None:
        self.problem = problem
        ids, order = torch.sort(entries.ids, stable=True)
        self.rows, self.grads = entries.rows[order], entries.grads[order]
        vocabulary = len(problem.weight)
        limits = torch.arange(vocabulary + 1, dtype=torch.int32, device=ids.device)
        self.offsets = torch.searchsorted(ids, limits)
        hidden = problem.hidden
        pieces, width = len(ids) // sparse_kernels.PIECE if need_weight else 0, hidden.shape[1]
        self.pieces = torch.empty(pieces, width, dtype=torch.float32, device=ids.device)
        if pieces:
            blocks = _blocks(width)
            sparse_kernels.piece_kernel[(pieces, triton.cdiv(width, blocks["COLUMNS"]))](
                hidden,
                ids,
                self.rows,
                self.grads,
                self.pieces,
                len(ids),
                *hidden.stride(),
                width,
                GEMM=GEMM[problem.gemm_dtype],
                PIECE=sparse_kernels.PIECE,
                **blocks,
            )

    def write(
        self,
        d_weight: torch.Tensor | None,
        d_bias: torch.Tensor | None,
        start: int,
        stop: int,
        weight_base: torch.Tensor | None = None,
        bias_base: torch.Tensor | None = None,
    ) -> None:
        """Of the rows start..stop-1 of the gradients those whose ids have entries: the entries'
        sums, and ``base``. The others hold their values already."""
        hidden = self.problem.hidden
        if d_weight is not None:
            width, blocks = hidden.shape[1], _blocks(hidden.shape[1])
            sparse_kernels.weight_kernel[(stop - start, triton.cdiv(width, blocks["COLUMNS"]))](
                hidden,
                self.rows,
                self.grads,
                self.offsets,
                self.pieces,
                self.grads if weight_base is None else weight_base,
                d_weight,
                start,
                *hidden.stride(),
                width,
                GEMM=GEMM[self.problem.gemm_dtype],
                BASE=weight_base is not None,
                PIECE=sparse_kernels.PIECE,
                **blocks,
            )
        if d_bias is not None:
            sparse_kernels.bias_kernel[(stop - start,)](
                self.grads,
                self.offsets,
                self.grads if bias_base is None else bias_base,
                d_bias,
                start,
                BASE=bias_base is not None,
                BLOCK=sparse_kernels.PIECE,
            )
