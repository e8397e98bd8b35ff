"""The screen's loops in C, :file:`tiles.c`: one pass over a tile instead of a dozen.

A call waits for the compiler where the library is not there yet: once on a machine, a second or
two. Without a compiler, or under ``SIRI_KERNELS_COMPILED_SCREEN=0``, PyTorch's operations compute
the same (:mod:`siri_kernels.linear_logprob.screen.running`), in about twice the time of a call.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch

from siri_kernels import _native
from siri_kernels.linear_logprob.screen.running import (
    LEAST,
    PLACES,
    Candidates,
    Ids,
    Running,
    Tokens,
    table,
)

SOURCE = Path(__file__).with_name("tiles.c")
VARIABLE = "SIRI_KERNELS_COMPILED_SCREEN"
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_WORDS = 1 << 17  # of a part, as in the file


class _Tile(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("products", "id_scale", "id_bias")),
        *((name, _POINTER) for name in ("scale", "shared", "cooling", "targets")),
        *((name, _POINTER) for name in ("target_logit", "seed", "max", "sum", "dev")),
        *((name, _POINTER) for name in ("count", "ids", "logits", "weights", "table")),
        *((name, _LONG) for name in ("tokens", "width", "start", "places", "table_size")),
        ("softcap", _FLOAT),
        ("least", _FLOAT),
    ]


class _Dots(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("hidden", "weight")),
        *((name, _LONG) for name in ("width", "stride")),
        *((name, _POINTER) for name in ("row", "id", "out")),
        ("count", _LONG),
        ("kind", ctypes.c_int32),
    ]


class _Words(ctypes.Structure):
    _fields_ = [("words", _POINTER), ("count", _LONG), ("sums", _POINTER)]


@functools.cache
def library() -> Any:
    """The compiled file; None where there is none."""
    if os.environ.get(VARIABLE) == "0":
        return None
    found = _native.load(SOURCE, wait=True)
    if found is None:
        return None
    for name, kind in (("tile", _Tile), ("dots", _Dots), ("words", _Words)):
        function = getattr(found, f"siri_screen_{name}")
        function.argtypes = [ctypes.POINTER(kind), ctypes.c_int32, _POINTER]
        function.restype = None
    return found


def _call(function: Any, argument: ctypes.Structure) -> None:
    function(ctypes.byref(argument), torch.get_num_threads(), _native.team())


class CompiledRunning(Running):
    """The same, by the compiled loops.

    Args:
        tokens: the tokens.
    """

    def __init__(self, tokens: Tokens) -> None:
        super().__init__(tokens.contiguous())
        count = len(tokens.scale)
        self.places = torch.zeros(count, dtype=torch.int32, device="cpu")
        self.ids = torch.empty(count, PLACES, dtype=torch.int32, device="cpu")
        self.logits = torch.empty(count, PLACES, dtype=torch.float32, device="cpu")
        self.weights = torch.empty_like(self.logits)

    def add(self, products: torch.Tensor, span: slice, ids: Ids) -> None:
        """As :meth:`.running.Running.add`; ``products`` is contiguous."""
        of = self.tokens
        rows = [of.scale, of.shared, of.cooling, of.targets, of.target_logit, self.seed]
        rows += [self.max, self.sum, self.dev, self.places, self.ids, self.logits, self.weights]
        tile = _Tile(
            products.data_ptr(),
            ids.scale.data_ptr(),
            None if ids.bias is None else ids.bias.data_ptr(),
            *[x[span].data_ptr() for x in rows],
            table().data_ptr(),
            len(products),
            products.shape[1],
            ids.start,
            PLACES,
            1 << 16,
            of.softcap or 0.0,
            LEAST,
        )
        _call(library().siri_screen_tile, tile)

    def candidates(self) -> Candidates:
        """As :meth:`.running.Running.candidates`."""
        over = self.places > PLACES
        count = self.places.long().masked_fill_(over, 0)
        row = torch.repeat_interleave(count)
        number = torch.arange(len(row), dtype=torch.int64, device="cpu")
        at = number - (count.cumsum(0) - count)[row] + row * PLACES
        ids = self.ids.view(-1).index_select(0, at).long()
        logit, weight = (x.view(-1).index_select(0, at) for x in (self.logits, self.weights))
        return self.with_outliers(Candidates(row, ids, logit, weight, over))


def dots(
    hidden: torch.Tensor, weight: torch.Tensor, row: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor | None:
    """[N] float32 products of row ``row`` of ``hidden`` and row ``ids`` of ``weight``.

    Args:
        hidden: [T, D] float32.
        weight: [V, D].
        row: [N] int64.
        ids: [N] int64.

    Returns:
        None where the loops do not take such a weight.
    """
    kind = {torch.float32: 0, torch.bfloat16: 1}.get(weight.dtype)
    if library() is None or kind is None or weight.stride(1) != 1 or weight.is_neg():
        return None
    hidden = hidden.contiguous()
    out = torch.empty(len(row), dtype=torch.float32, device="cpu")
    argument = _Dots(
        hidden.data_ptr(),
        weight.data_ptr(),
        weight.shape[1],
        weight.stride(0),
        row.data_ptr(),
        ids.data_ptr(),
        out.data_ptr(),
        len(row),
        kind,
    )
    _call(library().siri_screen_dots, argument)
    return out


def fingerprint(data: torch.Tensor) -> tuple[int, ...] | None:
    """A hash of the bytes of a contiguous tensor; None where the loops are not there."""
    size = data.nbytes
    if library() is None or size % 8 or data.data_ptr() % 8:
        return None
    sums = torch.empty(-(-size // 8 // _WORDS), dtype=torch.int64, device="cpu")
    argument = _Words(data.data_ptr(), size // 8, sums.data_ptr())
    _call(library().siri_screen_words, argument)
    return tuple(sums.tolist())
