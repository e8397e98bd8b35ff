"""Sparse backward in Triton: launches on the top entries of tokens within the error bound."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from siri_kernels._launch import launch
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments, sparse_kernels
from siri_kernels.linear_logprob.triton.token_math import Split, TokenGradients
from siri_kernels.linear_logprob.types import SoftmaxStats

_FEW_SUMS = 512


class Entries(NamedTuple):
    """N entries of the raw logits' gradient.

    Those of tokens within the error bound come first, sorted by token; a token's first is its
    target.

    Attributes:
        ids: [N] int32, the vocabulary id.
        rows: [N] int32, the token.
        grads: [N] float32, gradient of the raw logit.
        stops: [T] int64, where each token's entries end.
        lengths: [T] int64, how many entries each token has.
    """

    ids: torch.Tensor
    rows: torch.Tensor
    grads: torch.Tensor
    stops: torch.Tensor
    lengths: torch.Tensor

    @staticmethod
    def of(
        call: HeadCall,
        top: TopEntries,
        stats: SoftmaxStats,
        tokens: TokenGradients,
        split: Split,
        count: int,
        more: int = 0,
    ) -> Entries:
        """The entries of tokens within the error bound, and room for others behind them.

        Args:
            call: of the tokens.
            top: of the tokens.
            stats: of the tokens.
            tokens: their gradients.
            split: of the tokens.
            count: how many entries there are.
            more: how many are to be written by the caller.
        """
        (_, _, offset, slope), device = tokens.rule, split.stops.device
        size = count + more
        ids, rows = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(2))
        grads = torch.empty(size, dtype=torch.float32, device=device)
        most = top.ids.shape[1]
        launch(
            sparse_kernels.entries_kernel,
            (len(split.stops),),
            top.ids,
            top.logits,
            split.stops,
            split.lengths,
            call.targets,
            len(call.weight),
            stats.max,
            arguments.pointer(tokens.head, offset),
            offset,
            arguments.pointer(slope, offset),
            arguments.scale(call),
            ids,
            rows,
            grads,
            most,
            arguments.softcap(call)[1],
            SLOPE=slope is not None,
            BLOCK=min(sparse_kernels.ENTRIES, triton.next_power_of_2(most)),
            **arguments.rule_constants(call),
        )
        return Entries(ids, rows, grads, split.stops, split.lengths)

    def hidden_gradient(self, call: HeadCall) -> torch.Tensor:
        """[T, D] gradient of ``hidden`` from the entries; 0 for tokens without any."""
        hidden, weight = call.hidden, call.weight
        out = torch.empty(hidden.shape, dtype=call.hidden_grad_dtype, device=hidden.device)
        (total, width), blocks = hidden.shape, _blocks(hidden.shape[1], len(hidden))
        launch(
            sparse_kernels.hidden_kernel,
            (total, triton.cdiv(width, blocks["COLUMNS"])),
            weight,
            self.ids,
            self.grads,
            self.stops,
            self.lengths,
            out,
            *weight.stride(),
            width,
            GEMM=arguments.GEMM[call.gemm_dtype],
            **blocks,
        )
        return out


def _blocks(width: int, sums: int | None = None) -> dict[str, Any]:
    """Constants of the kernels that gather rows of a matrix.

    Args:
        width: of the matrix.
        sums: how many sums there are; few are split into narrower parts, so that every
            multiprocessor has one. None: many.
    """
    rows, columns = sparse_kernels.ROWS, sparse_kernels.COLUMNS
    if sums is not None and sums <= _FEW_SUMS:
        rows, columns = 4 * rows, columns // 4
    columns = min(columns, triton.next_power_of_2(width))
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": sparse_kernels.GATHER_WARPS}


class WeightGradient:
    """Gradients of ``weight`` and ``bias`` from the entries, a range of ids at a time.

    The entries are sorted by id. Ids with many entries have sums of whole pieces of them.

    Args:
        call: of the tokens.
        entries: of the tokens.
        need_weight: whether the gradient of ``weight`` is needed.
    """

    def __init__(self, call: HeadCall, entries: Entries, need_weight: bool) -> None:
        self.call = call
        ids, order = torch.sort(entries.ids, stable=True)
        self.ids = ids
        self.rows, self.grads = entries.rows[order], entries.grads[order]
        vocabulary = len(call.weight)
        limits = torch.arange(vocabulary + 1, dtype=torch.int32, device=ids.device)
        self.offsets = torch.searchsorted(ids, limits)
        hidden = call.hidden
        pieces, width = len(ids) // sparse_kernels.PIECE if need_weight else 0, hidden.shape[1]
        self.pieces = torch.empty(pieces, width, dtype=torch.float32, device=ids.device)
        if pieces:
            blocks = _blocks(width)
            launch(
                sparse_kernels.piece_kernel,
                (pieces, triton.cdiv(width, blocks["COLUMNS"])),
                hidden,
                ids,
                self.rows,
                self.grads,
                self.pieces,
                len(ids),
                *hidden.stride(),
                width,
                GEMM=arguments.GEMM[call.gemm_dtype],
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
        """Writes the gradients of the ids start..stop-1 that have entries.

        The others hold their values already.

        Args:
            d_weight: [V, D]; None: not needed.
            d_bias: [V]; None: not needed.
            start: first id.
            stop: the id after the last.
            weight_base: [stop - start, D] float32, added to the entries' sums.
            bias_base: [stop - start] float32, the same.
        """
        hidden = self.call.hidden
        if d_weight is not None:
            width, blocks = hidden.shape[1], _blocks(hidden.shape[1])
            by_entry = weight_base is None and len(self.ids) < stop - start == len(d_weight)
            programs = len(self.ids) if by_entry else stop - start
            launch(
                sparse_kernels.weight_kernel,
                (programs, triton.cdiv(width, blocks["COLUMNS"])),
                hidden,
                self.ids,
                self.rows,
                self.grads,
                self.offsets,
                self.pieces,
                self.grads if weight_base is None else weight_base,
                d_weight,
                start,
                *hidden.stride(),
                width,
                GEMM=arguments.GEMM[self.call.gemm_dtype],
                BASE=weight_base is not None,
                BY_ENTRY=by_entry,
                PIECE=sparse_kernels.PIECE,
                **blocks,
            )
        if d_bias is not None:
            launch(
                sparse_kernels.bias_kernel,
                (stop - start,),
                self.grads,
                self.offsets,
                self.grads if bias_base is None else bias_base,
                d_bias,
                start,
                BASE=bias_base is not None,
                BLOCK=sparse_kernels.PIECE,
            )
