"""Launches the Triton kernels of the forward pass: the loop over tiles.

The products are PyTorch's (cuBLAS, hipBLAS): 16-bit operands, fp32 logits. The vocabulary is the
outer loop, as in :mod:`.portable`. Nothing waits for the GPU. Logits here are raw ones, before the
temperature (see :mod:`.kernel_math`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.online_softmax import FoldState, finish
from siri_kernels.linear_logprob.top_entries import Slots
from siri_kernels.linear_logprob.triton import fused, kernels
from siri_kernels.linear_logprob.triton.kernel_math import LN_2, LOG2_E
from siri_kernels.linear_logprob.triton.problem import Problem, row_part
from siri_kernels.linear_logprob.types import SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import Shard, is_local

# Whether the fold of a tile runs beside the product of the next, on a second stream. A product
# fills every multiprocessor, so only its last wave, about 3 %, is there to be used; and two tiles
# of logits are held for it. `scripts/gpu_run.sh` measures both.
OVERLAP = False
DOT_BLOCK = 1024
GEMM = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
ROWS = 8192  # of a tile, at most
LOGITS = 2**25  # of a tile: 128 MiB


def tile_shape(rows: int, device: torch.device) -> tuple[int, int]:
    """Rows and ids of a tile of logits, for this many rows.

    A tile of 32 MiB might stay in the L2 cache (50 MB on an H100) and be read at twice the rate,
    but costs three more starts and ends of a product and a fold, 5 us each, for every 128 MiB. By
    that count 2048 x 4096 is 4 % faster on an H100 at D 1536 and even on an H200, if the cache
    holds all of it beside the operands. `scripts/gpu_run.sh` measures it; until then the large
    tile stays, which the host keeps up with easily.
    """
    if device.type != "cuda":
        return 16, 256  # the interpreter runs a millisecond of Python for each row and block
    rows = min(ROWS, max(rows, 1))
    # Few rows: as many ids as give the product its size.
    ids = LOGITS // max(256, triton.next_power_of_2(rows))
    return rows, max(kernels.IDS, ids)


class Products:
    """Raw logits, a block of rows times a tile of ids at a time, in fp32."""

    def __init__(self, problem: Problem, buffers: int = 1, most_ids: int | None = None) -> None:
        """``buffers``: tiles that are held at a time; ``most_ids``: of a tile, or one block."""
        hidden, gemm = problem.hidden, problem.gemm_dtype
        self.weight, self.gemm = problem.weight, gemm
        # Tensor cores take 16-bit operands and give fp32; elsewhere operands are widened, exactly.
        self.mixed = hidden.is_cuda and gemm != torch.float32
        rows, self.ids = tile_shape(len(hidden), hidden.device)
        if most_ids is not None and self.ids > kernels.IDS:
            self.ids = min(self.ids, max(1, most_ids // kernels.IDS) * kernels.IDS)
        self.ids = min(self.ids, len(self.weight))
        self.rows = [slice(at, min(at + rows, len(hidden))) for at in range(0, len(hidden), rows)]
        self.hidden = [self.operand(hidden[part]) for part in self.rows]
        size = min(rows, len(hidden)) * self.ids
        self.buffers = [
            torch.empty(size, dtype=torch.float32, device=hidden.device) for _ in range(buffers)
        ]

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` as the product takes it."""
        x = x.to(self.gemm)
        if 1 not in x.stride():
            x = x.contiguous()  # else each product would copy it
        return x if self.mixed else x.float()

    def starts(self) -> range:
        """The first id of each tile."""
        return range(0, len(self.weight), self.ids)

    def tile(self, start: int) -> torch.Tensor:
        """A tile of ``weight``, as the product takes it."""
        return self.operand(self.weight[start : start + self.ids])

    def raw(self, block: int, tile: torch.Tensor, buffer: int = 0) -> torch.Tensor:
        """Logits of a block and a tile, in a buffer."""
        x = self.hidden[block]
        out = self.buffers[buffer][: len(x) * len(tile)].view(len(x), len(tile))
        if self.mixed:
            torch.mm(x, tile.t(), out_dtype=torch.float32, out=out)
        else:
            torch.mm(x, tile.t(), out=out)
        return out


def target_logits(problem: Problem) -> torch.Tensor:
    """[T] each row's target logit, but for rounding: it moves the lists' threshold, no result."""
    hidden, weight = problem.hidden, problem.weight
    out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    if not len(hidden):
        return out
    kernels.target_kernel[(len(hidden),)](
        hidden,
        weight,
        problem.targets,
        problem.some_bias(weight),
        out,
        *hidden.stride(),
        *weight.stride(),
        hidden.shape[1],
        weight.shape[0],
        *problem.softcap(),
        GEMM=GEMM[problem.gemm_dtype],
        BIAS=problem.bias is not None,
        SOFTCAP=problem.rule.softcap is not None,
        BLOCK=min(DOT_BLOCK, triton.next_power_of_2(hidden.shape[1])),
    )
    return out


class _Overlap:
    """Kernels on a second stream, which follows the products and is two tiles behind at most."""

    def __init__(self, device: torch.device) -> None:
        self.on = OVERLAP and device.type == "cuda"
        self.turn = 0
        if self.on:
            self.main = torch.cuda.current_stream(device)
            self.side = torch.cuda.Stream(device)
            self.free: list[Any] = [None, None]

    def buffer(self) -> int:
        """The buffer for the next product, which waits until it is free."""
        if self.on and self.free[self.turn] is not None:
            self.main.wait_event(self.free[self.turn])
        return self.turn

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """A kernel on what the last product wrote."""
        if not self.on:
            kernel(*arguments, **constants)
            return
        self.side.wait_event(self.main.record_event())
        with torch.cuda.stream(self.side):
            kernel(*arguments, **constants)
            self.free[self.turn] = self.side.record_event()
        self.turn = 1 - self.turn

    def join(self) -> None:
        """What follows waits for the kernels."""
        if self.on:
            self.main.wait_stream(self.side)


def forward(problem: Problem, found: Slots | None, shard: Shard | None = None) -> SoftmaxStats:
    """Statistics of every row, the lists in ``found``; rows to be ignored are computed too."""
    here = is_local(problem.targets, len(problem.weight))
    estimate = None if found is None else target_logits(problem)
    if estimate is not None and shard is not None:
        estimate = shard.total(torch.where(here, estimate, 0))
    folded = fused.fold if fused.takes(problem, found is not None) else fold
    state, temperature = folded(problem, found, estimate), problem.rule.temperature
    if shard is not None:
        state = shard.merged(state, here, temperature)
    return finish(state, temperature)


def empty_state(rows: int, device: torch.device) -> FoldState:
    """Of rows of which nothing was seen."""
    # Each of the four starts at a multiple of 16 bytes, whatever ``rows`` is: kernels are compiled
    # anew for pointers that do not.
    state = torch.zeros(4, (rows + 3) // 4 * 4, dtype=torch.float32, device=device)[:, :rows]
    state[:2] = float("-inf")
    return FoldState(*state)


def fold(problem: Problem, lists: Slots | None, estimate: torch.Tensor | None) -> FoldState:
    """Running softmax of every row over all of ``weight``."""
    total, device = len(problem.hidden), problem.hidden.device
    state = empty_state(total, device)
    if total == 0:
        return state
    overlap = _Overlap(device)
    products = Products(problem, buffers=1 + overlap.on)
    if lists is None or estimate is None:
        ids, logits, found, most = problem.targets, state.sum, problem.targets, 0  # not read
        estimate = state.sum
    else:
        (ids, logits, found), most = lists, lists.ids.shape[1]
    columns = (problem.scale(), problem.targets, estimate, *state, ids, logits, found)
    blocks = [[row_part(column, rows) for column in columns] for rows in products.rows]
    block_ids = min(kernels.IDS, triton.next_power_of_2(products.ids))
    constants: dict[str, Any] = {
        "LISTS": most > 0,
        "BLOCK": block_ids,
        "PART": min(kernels.PART, block_ids),
        "num_warps": kernels.WARPS,
        **problem.options(),
    }
    if constants["BIAS"] or constants["SOFTCAP"]:
        constants["num_warps"] *= 2  # half the logits a thread, lest registers spill
    softcap = problem.softcap()
    for start in products.starts():
        tile = products.tile(start)
        for block, arguments in enumerate(blocks):
            raw = products.raw(block, tile, overlap.buffer())
            rows, n = raw.shape
            overlap.launch(
                kernels.fold_kernel[(rows,)],
                raw,
                problem.some_bias(raw),
                *arguments,
                start,
                n,
                n,
                most,
                *softcap,
                top_entries.LOG_EPS * LOG2_E,
                **constants,
            )
    overlap.join()
    state.dev.mul_(LN_2)
    return state
