"""The fused forward pass on Hopper: which calls take it, how the work is cut, and its launches.

Lists need every row's logits of the tiles where something matters, until the join has taken them.
So the vocabulary is cut into parts whose logits fit ``SCRATCH``, as far as they would all matter;
between two parts the join tells the kernel each row's running log-sum-exp.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton

from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.online_softmax import FoldState
from siri_kernels.linear_logprob.top_entries import Slots
from siri_kernels.linear_logprob.triton import fused_join
from siri_kernels.linear_logprob.triton.kernel_math import LN_2, LOG2_E
from siri_kernels.linear_logprob.triton.problem import Problem
from siri_kernels.linear_logprob.vocab_parallel import is_local

try:
    from siri_kernels.linear_logprob.triton import fused_kernels
except ImportError:  # a Triton without Gluon, or with another one
    fused_kernels = None  # type: ignore[assignment]

# True: every call that the kernel can take; False: none; None: those that were measured faster.
ENABLED = {"1": True, "0": False}.get(os.environ.get("SIRI_KERNELS_FUSED", ""))
# Where it was measured (GPU's name, Triton): least rows with lists and without. From
# bench/results/nvidia-h200/: at fewer rows the host's work is what both forms wait for.
MEASURED = {("H200", "3.6"): (4096, 2048)}
HALF, IDS, STEP = 64, 256, 64
SCRATCH = 80 * 2**20  # logits, 320 MiB: half as many cost 6 % at 16 384 rows of width 1536
MOST_EACH = 31  # tiles of a split: one bit each


class Cut(NamedTuple):
    """How a vocabulary is cut: parts of ``splits`` splits of ``tiles_each`` tiles."""

    splits: int
    tiles_each: int


@functools.lru_cache(maxsize=256)
def cut(blocks: int, tiles: int, programs: int, most_tiles: int) -> Cut:
    """The cut that keeps all programs busy, by a count of tiles' times.

    A part takes as long as its fullest program, whose every item costs a third of a tile more to
    begin; starting a part and joining it takes about as long as a tile.
    """
    most_tiles = max(1, min(most_tiles, tiles))
    best, choice = math.inf, Cut(1, 1)
    for splits in range(1, min(most_tiles, 128) + 1):
        for each in range(1, min(MOST_EACH, most_tiles // splits) + 1):
            rounds = -(-blocks * splits // programs)
            parts = -(-tiles // (splits * each))
            cost = parts * (rounds * (each + 0.33) + 1.0)
            if cost < best:
                best, choice = cost, Cut(splits, each)
    return choice


def takes(problem: Problem, lists: bool) -> bool:
    """Whether a call goes through the fused kernel."""
    if ENABLED is False or refusal(problem) is not None:
        return False
    return ENABLED is True or len(problem.hidden) >= _least_rows(problem.hidden.device, lists)


@functools.cache
def _least_rows(device: torch.device, lists: bool) -> float:
    """Rows from which on the fused kernel was measured faster on this device."""
    name = torch.cuda.get_device_name(device)
    for (gpu, version), least in MEASURED.items():
        if gpu in name and triton.__version__.startswith(version + "."):
            return least[0] if lists else least[1]
    return math.inf


def refusal(problem: Problem) -> str | None:
    """Why the fused kernel cannot take a call, or None."""
    hidden = problem.hidden
    if fused_kernels is None:
        return "this Triton has no Gluon for Hopper"
    if (
        not hidden.is_cuda
        or torch.version.cuda is None
        or torch.cuda.get_device_capability(hidden.device) != (9, 0)
    ):
        return "it is written for compute capability 9.0"
    return unfit(problem)


def unfit(problem: Problem) -> str | None:
    """As :func:`refusal`, whatever the device."""
    hidden, weight, gemm = problem.hidden, problem.weight, problem.gemm_dtype
    if gemm not in (torch.bfloat16, torch.float16) or hidden.dtype != gemm or weight.dtype != gemm:
        return "it takes bfloat16 or float16"
    if problem.bias is not None or problem.rule.softcap is not None:
        return "it takes no bias and no softcap"
    if not isinstance(problem.rule.temperature, float):
        return "it takes one temperature"
    if not 1e-6 < problem.rule.temperature < 1e6:
        return "the temperature is extreme"
    if 0 in hidden.shape or 0 in weight.shape:
        return "it takes no empty tensors"
    for x in (hidden, weight):
        aligned = x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0
        if not aligned or x.stride(0) < x.shape[1] or len(x) >= 2**31 - 512:
            return "copies need rows of whole 16 bytes, one after the other"
    return None


def fold(problem: Problem, lists: Slots | None, estimate: torch.Tensor | None) -> FoldState:
    """As :func:`.launch.fold`: state of every row over all of ``weight``, and ``lists``."""
    rows, device = len(problem.hidden), problem.hidden.device
    state = torch.empty(4, (rows + 3) // 4 * 4, dtype=torch.float32, device=device)[:, :rows]
    state[0] = float("-inf")  # of rows whose target is not here
    running = torch.zeros(3, rows, dtype=torch.float32, device=device)
    running[0] = -1.0e30
    programs = multiprocessors(device)
    chunk = programs * 2 * HALF
    for start in range(0, rows, chunk):
        at = slice(start, min(start + chunk, rows))
        some = None if lists is None else Slots(*(x[at] for x in lists))
        guess = None if estimate is None else estimate[at]
        _fold_rows(problem, at, some, guess, state[:, at], running[:, at], programs)
    return FoldState(*state)


def _fold_rows(
    problem: Problem,
    at: slice,
    lists: Slots | None,
    estimate: torch.Tensor | None,
    state: torch.Tensor,
    running: torch.Tensor,
    programs: int,
) -> None:
    """Rows ``at``: not more than give every program one block of them.

    ``state`` [4, rows] is ``FoldState``, ``running`` [3, rows] its last three in exponents of 2.
    """
    hidden, targets, weight = problem.hidden[at], problem.targets[at], problem.weight
    (rows, width), vocabulary, device = hidden.shape, len(weight), hidden.device
    blocks, tiles = triton.cdiv(rows, 2 * HALF), triton.cdiv(vocabulary, IDS)
    most = tiles if lists is None else max(1, SCRATCH // (rows * IDS))
    splits, each = cut(blocks, tiles, programs, most)
    scale = LOG2_E / problem.rule.temperature
    log2_eps = top_entries.LOG_EPS * LOG2_E
    ids = torch.where(is_local(targets, vocabulary), targets, -1).to(torch.int32)
    parts = torch.empty(4, splits, rows, dtype=torch.float32, device=device)
    bits = parts[3].view(torch.int32)
    stride = splits * each * IDS
    if lists is None or estimate is None:
        stride, scratch, floors, most_slots = 0, running[0], running[0], 0
        listed = (ids, running[0], ids)
    else:
        scratch = torch.empty(rows * stride, dtype=torch.float32, device=device)
        floors, most_slots = estimate * scale, lists.ids.shape[1]
        listed = (lists.ids, lists.logits, lists.found)
    launch = launcher(hidden, weight, lists is not None)
    for first_tile in range(0, tiles, splits * each):
        these = min(splits, triton.cdiv(tiles - first_tile, each))
        launch(
            (ids, floors, *parts[:3], bits, state[0], scratch),
            (rows, vocabulary, width, blocks, first_tile, these, each, stride // IDS, scale,
             fused_kernels.MASKED / scale, log2_eps),
            min(programs, blocks * these),
        )  # fmt: skip
        fused_join.join_kernel[(rows,)](
            *parts[:3], bits, scratch, *running, *state[1:4],
            floors if estimate is None else estimate, floors, *listed, rows, first_tile * IDS,
            these, each, stride, most_slots, scale, 1.0 / scale, log2_eps, LN_2,
            SPLITS=triton.next_power_of_2(splits), IDS=IDS, LISTS=lists is not None, num_warps=1,
        )  # fmt: skip


def launcher(
    hidden: torch.Tensor, weight: torch.Tensor, lists: bool
) -> Callable[[tuple[Any, ...], tuple[Any, ...], int], None]:
    """What launches the kernel on these operands, given its pointers, its numbers and how many
    programs; tests without a GPU put the same arithmetic in its place."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    dtype = gl.bfloat16 if hidden.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for
    k = fused_kernels
    # Made once: it is dear on the host beside a launch.
    boxes = (
        TensorDescriptor.from_tensor(hidden, [HALF, STEP], layout([HALF, STEP], dtype)),
        TensorDescriptor.from_tensor(weight, [IDS, STEP], layout([IDS, STEP], dtype)),
    )

    def launch(pointers: tuple[Any, ...], numbers: tuple[Any, ...], programs: int) -> None:
        k.fused_kernel[(programs,)](
            *boxes, *pointers, *numbers, HALF=HALF, IDS=IDS, STEP=STEP, GROUP=k.GROUP, LISTS=lists,
            STAGES=k.STAGES_LISTS if lists else k.STAGES, CONSUMER_REGISTERS=k.CONSUMER_REGISTERS,
            PRODUCER_REGISTERS=k.PRODUCER_REGISTERS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip

    return launch


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count
