"""Launches the Triton kernels of the forward pass: the loop over tiles.

The products are PyTorch's (cuBLAS, hipBLAS): 16-bit operands, fp32 logits. The vocabulary is the
outer loop, as in :mod:`.portable`. Nothing waits for the GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from siri_kernels.linear_logprob import kernels, slots
from siri_kernels.linear_logprob.portable import Tiles
from siri_kernels.linear_logprob.shard import Shard, is_local
from siri_kernels.linear_logprob.slots import Slots
from siri_kernels.linear_logprob.softmax_fold import FoldState, finish
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats

OVERLAP = True  # the fold of a tile runs beside the product of the next
DOT_BLOCK = 1024
GEMM = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Rows in a block and ids in a tile: on a GPU 128 MiB of logits."""
    # The interpreter has a program's worth of Python to run for each row of a tile.
    return (8192, kernels.IDS) if device.type == "cuda" else (16, 256)


class Problem(NamedTuple):
    """The rows, and what turns them into logits."""

    hidden: torch.Tensor  # [T, D]
    weight: torch.Tensor  # [V, D]
    targets: torch.Tensor  # [T]
    bias: torch.Tensor | None
    rule: LogitRule
    gemm_dtype: torch.dtype

    def tiles(self) -> Tiles:
        """The tiles and their products; bias, softcap and temperature are the kernels' work."""
        shape = tile_shape(self.hidden.device)
        return Tiles(self.hidden, self.weight, None, self.rule, self.gemm_dtype, shape=shape)

    def logit_options(self) -> dict[str, bool]:
        """Constants of the kernels that make logits of raw ones."""
        return {"BIAS": self.bias is not None, **self.rule_options()}

    def rule_options(self) -> dict[str, bool]:
        return {
            "PER_ROW": isinstance(self.rule.temperature, torch.Tensor),
            "SOFTCAP": self.rule.softcap is not None,
        }

    def softcap(self) -> float:
        return self.rule.softcap or 1.0

    def temperature(self, rows: slice = slice(None)) -> float | torch.Tensor:
        t = self.rule.temperature
        return t[rows].contiguous() if isinstance(t, torch.Tensor) else t

    def some_bias(self, otherwise: torch.Tensor) -> torch.Tensor:
        """A pointer for the kernels, which read it only if there is a bias."""
        return otherwise if self.bias is None else self.bias

    def rows(self, index: torch.Tensor) -> Problem:
        return self._replace(
            hidden=self.hidden[index], targets=self.targets[index], rule=self.rule.rows(index)
        )


def target_logits(problem: Problem) -> torch.Tensor:
    """[T] each row's target logit, but for rounding: it moves the lists' threshold, no result."""
    hidden, weight = problem.hidden, problem.weight
    out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    kernels.target_kernel[(len(hidden),)](
        hidden,
        weight,
        problem.targets,
        problem.some_bias(weight),
        problem.temperature(),
        out,
        *hidden.stride(),
        *weight.stride(),
        hidden.shape[1],
        weight.shape[0],
        problem.softcap(),
        GEMM=GEMM[problem.gemm_dtype],
        BLOCK=min(DOT_BLOCK, triton.next_power_of_2(hidden.shape[1])),
        **problem.logit_options(),
    )
    return out


class _Overlap:
    """Kernels on a second stream, which follows the products and is two tiles behind at most."""

    def __init__(self, device: torch.device) -> None:
        self.on = OVERLAP and device.type == "cuda"
        if self.on:
            self.main = torch.cuda.current_stream(device)
            self.side = torch.cuda.Stream(device)
            self.free: list[Any] = [None, None]

    def before_product(self, buffer: int) -> None:
        if self.on and self.free[buffer] is not None:
            self.main.wait_event(self.free[buffer])

    def kernel(self, launch: Any, buffer: int) -> None:
        if not self.on:
            launch()
            return
        self.side.wait_event(self.main.record_event())
        with torch.cuda.stream(self.side):
            launch()
            self.free[buffer] = self.side.record_event()

    def join(self) -> None:
        if self.on:
            self.main.wait_stream(self.side)


def forward(problem: Problem, found: Slots | None, shard: Shard | None = None) -> SoftmaxStats:
    """Statistics of every row, the lists in ``found``; rows to be ignored are computed too."""
    here = is_local(problem.targets, len(problem.weight))
    estimate = None if found is None else target_logits(problem)
    if estimate is not None and shard is not None:
        estimate = shard.total(torch.where(here, estimate, 0))
    state = fold(problem, found, estimate)
    return finish(state if shard is None else shard.merged(state, here))


def fold(problem: Problem, lists: Slots | None, estimate: torch.Tensor | None) -> FoldState:
    """Running softmax of every row over all of ``weight``."""
    total, device = len(problem.hidden), problem.hidden.device

    def column(fill: float) -> torch.Tensor:
        return torch.full((total,), fill, dtype=torch.float32, device=device)

    lowest = float("-inf")
    state = FoldState(column(lowest), column(lowest), column(0.0), column(0.0))
    if total == 0:
        return state
    tiles, overlap = problem.tiles(), _Overlap(device)
    targets = problem.targets.contiguous()
    if lists is None or estimate is None:
        ids, logits, found, most = targets, state.sum, targets, 0  # not read
        estimate = state.sum
    else:
        (ids, logits, found), most = lists, lists.ids.shape[1]
    turn = 0
    for start in tiles.starts():
        tile, _ = tiles.weight_tile(start)
        for block in range(len(tiles.hidden)):
            rows = slice(block * tiles.rows, block * tiles.rows + len(tiles.hidden[block]))
            overlap.before_product(turn)
            raw, _ = tiles.raw(block, tile, None, turn)

            def launch(raw: torch.Tensor = raw, rows: slice = rows, start: int = start) -> None:
                kernels.fold_kernel[(len(raw),)](
                    raw,
                    problem.some_bias(raw),
                    problem.temperature(rows),
                    targets[rows],
                    estimate[rows],
                    *(column[rows] for column in state),
                    ids[rows],
                    logits[rows],
                    found[rows],
                    start,
                    raw.shape[1],
                    raw.stride(0),
                    most,
                    problem.softcap(),
                    slots.LOG_EPS,
                    FIRST=start == 0,
                    LISTS=most > 0,
                    BLOCK=min(kernels.IDS, triton.next_power_of_2(tiles.ids)),
                    num_warps=kernels.WARPS,
                    **problem.logit_options(),
                )

            overlap.kernel(launch, turn)
            turn = 1 - turn
    overlap.join()
    return state
