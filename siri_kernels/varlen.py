"""Packed sequences: [B, L] padded <-> [T] packed, truncation at a cap, next-token alignment.

``cu_seqlens`` is flash-attention's: [B+1] int32, where sequence ``i`` is ``cu_seqlens[i]`` up to
``cu_seqlens[i+1]`` of the packed tokens, so 0 first and T last; sequences may be empty. Everything
runs on the tensors' device. Where the size of a result depends on values (``pack``, ``cut``,
``unpack``), a GPU is waited for once, unless the size is given. ``torch.compile`` takes every
function into its graph.
"""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch

from siri_kernels import _checks as check

__all__ = [
    "Cut",
    "Packed",
    "align_to_tokens",
    "check_cu_seqlens",
    "cu_seqlens_from",
    "cut",
    "lengths",
    "next_token_targets",
    "pack",
    "sequence_ids",
    "unpack",
]


class Packed(NamedTuple):
    """Packed sequences: ``values`` [T, ...] and ``cu_seqlens`` [B+1] int32."""

    values: torch.Tensor
    cu_seqlens: torch.Tensor


class Cut(NamedTuple):
    """Truncated sequences.

    Args:
        values: [T', ...].
        cu_seqlens: [B+1] int32.
        truncated: [B] bool, whether the sequence was longer than its cap.
        kept: [T'] int64, indices of the kept tokens in the input.
    """

    values: torch.Tensor
    cu_seqlens: torch.Tensor
    truncated: torch.Tensor
    kept: torch.Tensor


def check_cu_seqlens(
    cu_seqlens: torch.Tensor, total: int | None = None, op: str = "varlen"
) -> None:
    """Check a ``cu_seqlens``.

    Args:
        cu_seqlens: [B+1] int32.
        total: T, the number of packed tokens it must end at; None: not compared.
        op: named in the error.

    Raises:
        TypeError: not an int32 tensor.
        ValueError: wrong shape; and, read on a CPU, elsewhere only under ``SIRI_KERNELS_CHECK=1``:
            the first entry is not 0, an entry is smaller than the one before, the last is not
            ``total``.
    """
    check.tensor(op, "cu_seqlens", cu_seqlens, holds_values=True)
    if total is not None:
        total = check.integer(op, "total", total, at_least=0)
    check.dtype(op, "cu_seqlens", cu_seqlens, (torch.int32,))
    if cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
        raise ValueError(
            f"{op}: cu_seqlens must have shape [B+1]; got {check.describe(cu_seqlens)}"
        )
    if not check.may_read(cu_seqlens):
        return
    if _in_graph(cu_seqlens):
        _require(cu_seqlens[0] == 0, f"{op}: cu_seqlens must start with 0")
        _require((cu_seqlens[1:] >= cu_seqlens[:-1]).all(), f"{op}: cu_seqlens must never fall")
        if total is not None:
            end = f"{op}: cu_seqlens must end at the number of packed tokens"
            _require(cu_seqlens[-1] == total, end)
        return
    values = cu_seqlens.detach().cpu().numpy()  # costs a call less than a tensor's comparison
    first, last = int(values[0]), int(values[-1])
    if first != 0:
        raise ValueError(f"{op}: cu_seqlens must start with 0; got {first}")
    falls = np.flatnonzero(values[1:] < values[:-1])
    if len(falls):
        at = int(falls[0])
        raise ValueError(
            f"{op}: cu_seqlens must never fall; got {values[at]} then {values[at + 1]} at entry "
            f"{at + 1}"
        )
    if total is not None and last != total:
        raise ValueError(
            f"{op}: cu_seqlens must end at the number of packed tokens, {total}; got {last}"
        )


def lengths(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Length of every sequence, [B] int32."""
    check_cu_seqlens(cu_seqlens, op="lengths")
    return cu_seqlens[1:] - cu_seqlens[:-1]


def cu_seqlens_from(lengths: torch.Tensor) -> torch.Tensor:
    """``cu_seqlens`` [B+1] int32 of sequences of ``lengths`` [B] (any integer dtype, >= 0).

    Raises:
        TypeError, ValueError: not integers, not [B], negative (read on a CPU).
    """
    _check_lengths("cu_seqlens_from", lengths)
    zero = torch.zeros(1, dtype=torch.int32, device=lengths.device)
    return torch.cat([zero, lengths.cumsum(0, dtype=torch.int32)])


def sequence_ids(cu_seqlens: torch.Tensor, total: int) -> torch.Tensor:
    """Which sequence each of the ``total`` packed tokens belongs to, [T] int64. Never waits."""
    total = check.integer("sequence_ids", "total", total, at_least=0)
    check_cu_seqlens(cu_seqlens, total, op="sequence_ids")
    tokens = torch.arange(total, dtype=torch.int32, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True)


def pack(
    padded: torch.Tensor,
    lengths: torch.Tensor | None = None,
    *,
    mask: torch.Tensor | None = None,
    total: int | None = None,
) -> Packed:
    """Pack padded sequences; differentiable.

    Args:
        padded: [B, L, ...], any dtype.
        lengths: [B] integers in 0..L: sequence ``i`` is ``padded[i, :lengths[i]]``. Or:
        mask: [B, L] bool, the entries to keep, anywhere in a sequence (left padding, holes).
        total: number of entries kept; if it is given, nothing waits for a GPU.

    Returns:
        Packed: values [T, ...] in row order, cu_seqlens [B+1].

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device; lengths out of 0..L or ``total``
            that is not their sum (read on a CPU); not exactly one of lengths and mask.
    """
    op = "pack"
    check.tensor(op, "padded", padded, holds_values=True)
    if total is not None:
        total = check.integer(op, "total", total, at_least=0)
    if padded.dim() < 2:
        raise ValueError(f"{op}: padded must have shape [B, L, ...]; got {check.describe(padded)}")
    rows, width = padded.shape[:2]
    if (lengths is None) == (mask is None):
        raise ValueError(f"{op}: exactly one of lengths and mask must be given")
    if lengths is not None:
        _check_lengths(op, lengths, rows, width)
        check.device(op, "lengths", lengths, "padded", padded.device)
        columns = torch.arange(width, dtype=torch.int64, device=padded.device)
        keep = columns < lengths[:, None]
    else:
        keep = check.tensor(op, "mask", mask)
        check.dtype(op, "mask", keep, (torch.bool,))
        check.device(op, "mask", keep, "padded", padded.device)
        check.shape(op, "mask", keep, (rows, width), "[B, L]")
    cu_seqlens = cu_seqlens_from(keep.sum(1))
    flat = padded.reshape(rows * width, *padded.shape[2:])
    if total is None:
        index = keep.reshape(-1).nonzero()[:, 0]
    else:
        _check_total(op, cu_seqlens, total)
        index = torch.nonzero_static(keep.reshape(-1), size=total)[:, 0]
    return Packed(flat.index_select(0, index), cu_seqlens)


def unpack(
    values: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    length: int | None = None,
    padding_value: float = 0,
) -> torch.Tensor:
    """Pad packed sequences at their ends; differentiable.

    Args:
        values: [T, ...].
        cu_seqlens: [B+1] int32.
        length: L, at least the longest sequence; None: the longest (waits for a GPU).
        padding_value: of the places after a sequence's end.

    Returns:
        [B, L, ...] of the dtype of ``values``.

    Raises:
        TypeError, ValueError: as :func:`check_cu_seqlens`; ``length`` too short (read on a CPU).
    """
    op = "unpack"
    total = _check_packed(op, values, cu_seqlens)
    padding_value = check.fill(op, "padding_value", padding_value, values.dtype)
    sizes = cu_seqlens[1:] - cu_seqlens[:-1]
    if length is not None:
        length = check.integer(op, "length", length, at_least=0, at_most=2**31 - 1)
    if length is None:
        length = int(sizes.max()) if len(sizes) else 0
    elif _in_graph(sizes):
        _require((sizes <= length).all(), f"{op}: length must be at least the longest sequence")
    elif check.may_read(sizes) and len(sizes) and int(sizes.max()) > length:
        raise ValueError(
            f"{op}: length must be at least the longest sequence, {int(sizes.max())}; got {length}"
        )
    ids = sequence_ids(cu_seqlens, total)
    place = torch.arange(total, dtype=torch.int64, device=values.device) - cu_seqlens[ids]
    padded = values.new_full((len(sizes), length, *values.shape[1:]), padding_value)
    return padded.index_put((ids, place), values)


def cut(
    values: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cap: int | torch.Tensor,
    *,
    total: int | None = None,
) -> Cut:
    """Truncate every sequence at a length cap; differentiable.

    Args:
        values: [T, ...].
        cu_seqlens: [B+1] int32.
        cap: tokens to keep of a sequence at most, an int >= 0 or [B] integers of them.
        total: T', the number of tokens kept; if it is given, nothing waits for a GPU.

    Returns:
        Cut: values [T', ...], cu_seqlens [B+1], truncated [B] bool (False for
        a sequence of exactly ``cap`` tokens), and kept [T'] int64, which truncates other tensors in
        the same way (``other[kept]``).

    Raises:
        TypeError, ValueError: as :func:`check_cu_seqlens`; a cap that is not such a number;
            ``total`` that is not the number of kept tokens (read on a CPU).
    """
    op = "cut"
    before = _check_packed(op, values, cu_seqlens)
    sizes = cu_seqlens[1:] - cu_seqlens[:-1]
    if isinstance(cap, torch.Tensor):
        _check_lengths(op, cap, len(sizes), name="cap")
        check.device(op, "cap", cap, "values", values.device)
        kept = torch.minimum(sizes, cap).to(torch.int32)
    elif isinstance(cap, bool) or not isinstance(cap, Integral):
        raise TypeError(
            f"{op}: cap must be an int or a [B] tensor; got {check.shown(cap)} "
            f"({type(cap).__name__})"
        )
    elif cap < 0:
        raise ValueError(f"{op}: cap must be >= 0; got {check.shown(cap)}")
    else:
        kept = sizes.clamp(max=min(int(cap), 2**31 - 1))
    if total is not None:
        total = check.integer(op, "total", total, at_least=0)
    after = cu_seqlens_from(kept)
    ids = sequence_ids(cu_seqlens, before)
    place = torch.arange(before, dtype=torch.int64, device=values.device) - cu_seqlens[ids]
    keep = place < kept[ids]
    if total is None:
        index = keep.nonzero()[:, 0]
    else:
        _check_total(op, after, total)
        index = torch.nonzero_static(keep, size=total)[:, 0]
    return Cut(values.index_select(0, index), after, sizes > kept, index)


def next_token_targets(
    tokens: torch.Tensor, cu_seqlens: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """The target of each position: the next token of its sequence; ``ignore_index`` at its end.

    The hidden state of position t predicts token t+1. The result goes with the model's hidden
    states into :func:`siri_kernels.linear_logprob`, where masked positions cost nothing. Never
    waits for a GPU.

    Args:
        tokens: [T] int64.
        cu_seqlens: [B+1] int32.
        ignore_index: for the last position of each sequence.

    Returns:
        [T] int64.

    Raises:
        TypeError, ValueError: as :func:`check_cu_seqlens`; ``tokens`` not [T] int64.
    """
    op = "next_token_targets"
    total = _check_packed(op, tokens, cu_seqlens, "tokens")
    ignore_index = check.integer(op, "ignore_index", ignore_index)
    check.dtype(op, "tokens", tokens, (torch.int64,))
    check.shape(op, "tokens", tokens, (total,), "[T]")
    ids = sequence_ids(cu_seqlens, total)
    last = torch.ones_like(tokens, dtype=torch.bool)
    last[:-1] = ids[1:] != ids[:-1]
    return tokens.roll(-1).masked_fill(last, ignore_index)


def align_to_tokens(
    values: torch.Tensor, cu_seqlens: torch.Tensor, fill: float = 0.0
) -> torch.Tensor:
    """Values of predicting positions moved to the predicted tokens, one place on in a sequence.

    The inverse shift of :func:`next_token_targets`: entry t of the result belongs to token t.
    Differentiable; never waits for a GPU.

    Args:
        values: [T, ...], for instance log-probs by position.
        cu_seqlens: [B+1] int32.
        fill: for the first token of each sequence, which no position predicts.

    Returns:
        [T, ...].

    Raises:
        TypeError, ValueError: as :func:`check_cu_seqlens`.
    """
    total = _check_packed("align_to_tokens", values, cu_seqlens)
    dtypes = (*check.FLOATS, *check.INTEGERS, torch.bool, *check.COMPLEX)
    check.dtype("align_to_tokens", "values", values, dtypes)
    fill = check.fill("align_to_tokens", "fill", fill, values.dtype)
    ids = sequence_ids(cu_seqlens, total)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    first = first.view(-1, *[1] * (values.dim() - 1))
    return values.roll(1, 0).masked_fill(first, fill)


def _in_graph(tensor: torch.Tensor) -> bool:
    """Whether an operator checks values, because reading them would break a compiled graph.

    The error is then a RuntimeError that does not name the value.
    """
    return torch.compiler.is_compiling() and check.may_read(tensor)


def _require(good: torch.Tensor, message: str) -> None:
    torch._assert_async(good, message)


def _check_packed(
    op: str, values: torch.Tensor, cu_seqlens: torch.Tensor, name: str = "values"
) -> int:
    check.tensor(op, name, values, holds_values=True)
    if values.dim() == 0:
        raise ValueError(f"{op}: {name} must have shape [T, ...]; got {check.describe(values)}")
    check_cu_seqlens(cu_seqlens, len(values), op=op)
    check.device(op, "cu_seqlens", cu_seqlens, name, values.device)
    return len(values)


def _check_total(op: str, cu_seqlens: torch.Tensor, total: int) -> None:
    if _in_graph(cu_seqlens):
        message = f"{op}: total must be the number of tokens that are kept"
        _require(cu_seqlens[-1] == total, message)
    elif check.may_read(cu_seqlens) and int(cu_seqlens[-1]) != total:
        raise ValueError(
            f"{op}: total must be the number of tokens that are kept, {int(cu_seqlens[-1])}; got "
            f"{total}"
        )


def _check_lengths(
    op: str,
    lengths: torch.Tensor,
    rows: int | None = None,
    width: int | None = None,
    name: str = "lengths",
) -> None:
    check.tensor(op, name, lengths, holds_values=True)
    check.dtype(op, name, lengths, check.INTEGERS)
    if lengths.dim() != 1 or (rows is not None and len(lengths) != rows):
        expected = "[B]" if rows is None else f"[B] = [{rows}]"
        raise ValueError(f"{op}: {name} must have shape {expected}; got {check.describe(lengths)}")
    if not check.may_read(lengths) or len(lengths) == 0:
        return
    if _in_graph(lengths):
        _require((lengths >= 0).all(), f"{op}: {name} must be >= 0")
        if width is not None:
            _require((lengths <= width).all(), f"{op}: {name} must be at most the width of padded")
        return
    low, high = int(lengths.min()), int(lengths.max())
    if low < 0 or (width is not None and high > width):
        bound = ">= 0" if width is None else f"in 0..{width}, the width of padded"
        got = low if low < 0 else high
        raise ValueError(f"{op}: {name} must be {bound}; got {got}")
