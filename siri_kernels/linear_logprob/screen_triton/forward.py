"""Forward with a screen on a GPU. The host never waits: what it decides is decided on the device.

The tokens go in chunks that give every multiprocessor one block. A block of evenly chosen tokens of
each chunk goes first. Where too few of them can be screened, the kernels of the others have nothing
to do. Tokens that are not within the tolerance, and a few to compare, are then computed exactly, as
many as there are; all others follow if an error exceeds its estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton

from siri_kernels._launch import launch
from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import SoftmaxState
from siri_kernels.linear_logprob.screen import estimate as rule
from siri_kernels.linear_logprob.screen.options import Screen
from siri_kernels.linear_logprob.screen.running import LEAST, SPARSENESS
from siri_kernels.linear_logprob.screen.stats import report
from siri_kernels.linear_logprob.screen_triton import draws, join_kernel, product_kernels
from siri_kernels.linear_logprob.screen_triton.rows import MOST_WIDTH, DeviceRows, hidden_rows
from siri_kernels.linear_logprob.screen_triton.tiles import ROWS, Tile, join_tile_of, tile_of
from siri_kernels.linear_logprob.screen_triton.weight import DeviceCopy, kept_copy
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments
from siri_kernels.linear_logprob.triton import forward as unscreened
from siri_kernels.linear_logprob.triton.fused import multiprocessors
from siri_kernels.linear_logprob.triton.kernel_math import LN_2
from siri_kernels.linear_logprob.triton.token_math import finish
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import is_local

PLACES = 1024  # of a row's candidates in a split; a row that has more is computed exactly
_LEAST_SHARE = 0.4  # of the first block's tokens: with fewer, the screen does not pay
_MOST_CHECKED = 32
# An 8-bit float rounds four times as coarsely as an integer: its sample is that much larger.
_SPARSENESS = {"int8": SPARSENESS, "fp8": SPARSENESS / 4}


class _Memory(NamedTuple):
    """Memory that the product kernels write for the join. All launches use the same."""

    parts: torch.Tensor
    number: torch.Tensor
    ids: torch.Tensor
    logits: torch.Tensor
    exact: torch.Tensor

    @staticmethod
    def of(tokens: int, programs: int, device: torch.device) -> _Memory:
        """Memory for so many tokens at a time.

        Args:
            tokens: of a chunk.
            programs: of a launch.
            device: of the memory.
        """
        rows = max(triton.cdiv(tokens, ROWS), programs) * ROWS

        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        return _Memory(
            empty(3, rows, dtype=torch.float32),
            empty(rows, dtype=torch.int32),
            empty(rows, PLACES, dtype=torch.int32),
            empty(rows, PLACES, dtype=torch.float32),
            empty(tokens, PLACES, dtype=torch.float32),
        )


class _Tokens(NamedTuple):
    """T tokens as the kernels take them, and their results.

    Attributes:
        call: of the tokens.
        targets: [T] int32.
        floors: [T] target logits.
        bys: [T] log2(e) / temperature.
        bias: [V] float32, or None.
        state: their softmax.
        top: their top entries, or None.
    """

    call: HeadCall
    targets: torch.Tensor
    floors: torch.Tensor
    bys: torch.Tensor
    bias: torch.Tensor | None
    state: SoftmaxState
    top: TopEntries | None

    def part(self, at: slice) -> _Tokens:
        """Those of a chunk."""
        call, top = self.call, self.top
        temperature = call.rule.temperature
        if isinstance(temperature, torch.Tensor):
            temperature = temperature[at]
        call = call._replace(
            hidden=call.hidden[at],
            targets=call.targets[at],
            rule=LogitRule(temperature, call.rule.softcap),
        )
        return _Tokens(
            call, self.targets[at], self.floors[at], self.bys[at], self.bias,
            SoftmaxState(*(x[at] for x in self.state)),
            None if top is None else TopEntries(*(x[at] for x in top[:3])),
        )  # fmt: skip


def forward(call: HeadCall) -> tuple[SoftmaxStats, TopEntries | None]:
    """Statistics of every token, 0 where masked, and top entries of all tokens.

    Args:
        call: with a screen, without a shard.
    """
    screen = call.screen
    assert screen is not None
    total, device = len(call.hidden), call.hidden.device
    if not screen.pays(total, len(call.weight)) or call.hidden.shape[1] > MOST_WIDTH:
        if total:
            _report_exact(call)
        return unscreened.forward(call)
    call = arguments.prepared(call)
    copy = kept_copy(call.weight, call.gemm_dtype, screen.kind)
    state = unscreened.empty_state(total, device)
    floors = unscreened.target_logits(call)
    state.target_logit.copy_(floors)
    top = None
    if call.entries:
        top = TopEntries.empty(total, call.entries, call.hidden, torch.float32)
    here = is_local(call.targets, len(call.weight))
    tokens = _Tokens(
        call,
        torch.where(here, call.targets, -1).to(torch.int32),
        floors,
        torch.zeros_like(floors) + arguments.scale(call),
        None if call.bias is None else call.bias.float(),
        state,
        top,
    )
    programs = _programs(device)
    most = programs * ROWS
    memory = _Memory.of(min(total, most), programs, device)
    for start in range(0, total, most):
        _screen(tokens.part(slice(start, start + most)), copy, screen, memory, programs)
    return finish(call, state), top


def _programs(device: torch.device) -> int:
    return multiprocessors(device) if device.type == "cuda" else 3  # interpreted


def _report_exact(call: HeadCall) -> None:
    count = call.unmasked().sum()
    none = torch.zeros((), dtype=torch.float32, device=count.device)
    report(count, torch.zeros_like(count), none, None, torch.zeros_like(count))


def _screen(
    tokens: _Tokens, copy: DeviceCopy, screen: Screen, memory: _Memory, programs: int
) -> None:
    """Computes a chunk."""
    call, device = tokens.call, tokens.floors.device
    total, first = len(tokens.floors), ROWS
    unmasked = call.unmasked()
    count = unmasked.sum()
    places = torch.argsort(unmasked.logical_not(), stable=True)
    # The first block's tokens, then the others, then the masked ones.
    key = unmasked.logical_not().to(torch.int8) + 1
    key.index_fill_(0, places[_evenly(count, min(first, total))], 0)
    order = torch.argsort(key, stable=True)
    rows = hidden_rows(call.hidden, order, call.gemm_dtype, screen.kind, copy.mean)
    deviation = _deviation(rows, copy) * tokens.bys[order] * LN_2
    error = torch.full((total,), float("inf"), dtype=torch.float32, device=device)
    accepted = torch.zeros(total, dtype=torch.int8, device=device)
    live = (count.clamp(max=first) * copy.numbers[3].to(torch.int64)).to(torch.int32)
    parts = [slice(0, first), slice(first, total)] if total > first else [slice(0, total)]
    for number, part in enumerate(parts):
        if number:  # of the first block enough can be screened
            share = accepted.sum(dtype=torch.int32)
            live = (count - first).clamp(min=0) * ((share >= _LEAST_SHARE * live) & (live > 0))
            live = live.to(torch.int32)
        of_part = DeviceRows(*(x[part] for x in rows))
        _launch_screen(
            tokens, of_part, order[part], deviation[part], live.view(1), copy, screen, memory,
            programs, error, accepted,
        )  # fmt: skip
    good = accepted.bool()
    checked = torch.zeros_like(good)
    if screen.checked:
        some = places[_evenly(count, min(_MOST_CHECKED, max(8, total // 32), total))]
        checked.index_copy_(0, some, unmasked[some])
        before = finish(call, tokens.state).logprobs
    _exactly(tokens, unmasked & (checked | ~good), memory, programs)
    compared, failed = None, torch.zeros((), dtype=torch.bool, device=device)
    if screen.checked:
        stats = finish(call, tokens.state)
        known = checked & error.isfinite()
        compared = (before - stats.logprobs).abs()
        same = (before == stats.logprobs) | (before.isnan() & stats.logprobs.isnan())
        compared = compared.masked_fill(~known | same, 0)
        # The exact ones are rounded to fp32 too, they and the logits that they come from.
        norm = torch.empty_like(error).index_copy_(0, order, rows.norm)
        rounding = torch.finfo(torch.float32).eps * copy.numbers[2] * norm * tokens.bys * LN_2
        size = 1 + stats.logprobs.abs() + (tokens.state.max * tokens.bys).abs() * LN_2
        allowed = error + 4 * (rounding + torch.finfo(torch.float32).eps * size)
        failed = (known & ~(compared <= allowed)).any()
        _exactly(tokens, unmasked & good & ~checked & failed, memory, programs)
        compared = torch.where(known.any(), compared.max(), float("nan"))
    done = unmasked & good & ~checked & ~failed
    report(count, done.sum(), error.where(done, 0).max(), compared, failed)


def _evenly(total: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` numbers of 0..total-1, evenly spread, different ones if there are as many."""
    numbers = torch.arange(count, dtype=torch.int64, device=total.device)
    return ((numbers * total + total // 2) // count).clamp(max=total.clamp(min=1) - 1)


def _deviation(rows: DeviceRows, copy: DeviceCopy) -> torch.Tensor:
    """:func:`siri_kernels.linear_logprob.screen.estimate.logit_deviation` on the device."""
    error, norm = copy.numbers[0], copy.numbers[1]
    square = (rows.error * norm).square() + (rows.norm * error).square()
    return (square / rows.codes.shape[1]).sqrt()


def _launch_screen(
    tokens: _Tokens, rows: DeviceRows, index: torch.Tensor, deviation: torch.Tensor,
    live: torch.Tensor, copy: DeviceCopy, screen: Screen, memory: _Memory, programs: int,
    error: torch.Tensor, accepted: torch.Tensor,
) -> None:  # fmt: skip
    """The screened product of rows, and their join.

    Args:
        tokens: of the chunk.
        rows: in 8 bits.
        index: [R] the token of each row.
        deviation: [R] of a logit's error.
        live: [1] int32, how many rows are computed.
        copy: of the weight.
        screen: of the call.
        memory: for the candidates.
        programs: of the launch.
        error: [T], written.
        accepted: [T], the same.
    """
    call, tile = tokens.call, tile_of(deviation.device, rows.codes.dtype)
    softcap = arguments.softcap(call)
    sparseness = _SPARSENESS[screen.kind]
    bias = arguments.pointer(tokens.bias, deviation)
    product = (rows.codes, copy.codes)
    start: Callable[..., None] = launch
    if tile.boxes:  # whose kinds ``launch`` does not know
        from triton.tools.tensor_descriptor import TensorDescriptor

        sides = ([tile.rows, tile.step], [tile.ids, tile.step])
        product = tuple(map(TensorDescriptor.from_tensor, product, sides))
        start = _started
    start(
        product_kernels.screen_kernel, (programs,),
        live, *product, rows.scale, copy.scale, rows.shared, bias,
        tokens.targets[index], tokens.floors[index], tokens.bys[index], *memory.parts,
        memory.number, memory.ids, memory.logits, len(copy.codes), copy.codes.shape[1], programs,
        PLACES, LEAST, sparseness, *softcap,
        ROWS=tile.rows, IDS=tile.ids, STEP=tile.step, PIECES=tile.pieces,
        BIAS=call.bias is not None, SOFTCAP=call.rule.softcap is not None,
        INTEGERS=copy.codes.dtype == torch.int8, BOXES=tile.boxes, num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    _join(
        tokens, index, live, (rows.scale, rows.shared, deviation), memory, programs, tile, LEAST,
        sparseness, screen.tolerance, error, accepted,
    )  # fmt: skip


def _started(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    kernel[grid](*arguments, **constants)


def _exactly(tokens: _Tokens, which: torch.Tensor, memory: _Memory, programs: int) -> None:
    """Computes the tokens ``which`` [T] bool exactly."""
    call = tokens.call
    index = torch.argsort(which.logical_not(), stable=True)
    live = which.sum(dtype=torch.int32).view(1)
    aligned = all(
        x.stride(1) == 1 and x.stride(0) * x.element_size() % 16 == 0
        for x in (call.hidden, call.weight)
    )
    tile = tile_of(index.device, call.gemm_dtype, aligned)
    launch(
        product_kernels.exact_kernel, (programs,),
        live, index, call.hidden, call.weight, arguments.pointer(tokens.bias, tokens.floors),
        tokens.targets, tokens.floors, tokens.bys, *memory.parts, memory.number, memory.ids,
        memory.logits, *call.hidden.stride(), *call.weight.stride(), *call.weight.shape, programs,
        PLACES, top_entries.EPS, *arguments.softcap(call),
        ROWS=tile.rows, IDS=tile.ids, STEP=tile.step, PIECES=tile.pieces,
        BIAS=call.bias is not None, SOFTCAP=call.rule.softcap is not None,
        GEMM=arguments.GEMM[call.gemm_dtype], CANDIDATES=tokens.top is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    unused = tokens.floors
    _join(
        tokens, index, live, None, memory, programs, tile, top_entries.EPS, 1.0, 0.0,
        torch.empty_like(unused), torch.empty_like(unused, dtype=torch.int8),
    )  # fmt: skip


def _join(
    tokens: _Tokens, index: torch.Tensor, live: torch.Tensor,
    screened: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None, memory: _Memory,
    programs: int, tile: Tile, least: float, sparseness: float, tolerance: float,
    error: torch.Tensor, accepted: torch.Tensor,
) -> None:  # fmt: skip
    """Launches the join.

    Args:
        tokens: of the chunk.
        index: [R] the token of each row.
        live: [1] int32, how many rows are computed.
        screened: [R] each: scale, shared logit and deviation of screened rows; None: exact ones.
        memory: with the candidates.
        programs: of the product's launch.
        tile: of the product.
        least: as the kernel has it, and so on.
        sparseness: the same.
        tolerance: the same.
        error: the same.
        accepted: the same.
    """
    call, top = tokens.call, tokens.top
    chunk, many, step = join_tile_of(index.device)
    step = min(step, triton.next_power_of_2(call.hidden.shape[1]))
    saved: tuple[torch.Tensor, ...] = (memory.ids, memory.logits, memory.number)  # not read
    if top is not None:
        saved = top[:3]
    launch(
        join_kernel.screened_join_kernel, (len(index),),
        live, index, call.hidden, call.weight, arguments.pointer(tokens.bias, tokens.floors),
        *(screened or (tokens.floors,) * 3), tokens.targets, tokens.floors, tokens.bys,
        *memory.parts, memory.number, memory.ids, memory.logits, memory.exact,
        *tokens.state[1:4], error, accepted, *saved, *call.hidden.stride(), *call.weight.stride(),
        *call.weight.shape, programs, PLACES, call.entries, least, sparseness, rule.DEVIATIONS,
        rule.MOST_DEVIATION, rule.FARTHEST, *arguments.softcap(call), tolerance, LN_2,
        ROWS=tile.rows, IDS=tile.ids, SPLITS=draws.MOST_SPLITS.value, CHUNK=chunk,
        MANY=many, STEP=step, GEMM=arguments.GEMM[call.gemm_dtype], BIAS=call.bias is not None,
        SOFTCAP=call.rule.softcap is not None, TOP_ENTRIES=top is not None,
        DRAWN=screened is not None, num_warps=4,
    )  # fmt: skip
