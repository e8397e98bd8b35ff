"""The fused forward pass on Hopper: which calls take it, how the work is split, and its launches.

Top entries need every token's logits of the tiles where something matters, until the join has taken
them. So the vocabulary is split into parts whose logits fit ``SCRATCH`` even if all of them matter.
Between two parts the join gives the kernel each token's running log-sum-exp.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any, NamedTuple

import torch
import triton

from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import SoftmaxState
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import fused_join
from siri_kernels.linear_logprob.triton.kernel_math import LN_2, LOG2_E
from siri_kernels.linear_logprob.vocab_parallel import is_local

try:
    from siri_kernels.linear_logprob.triton import fused_kernels
except ImportError:  # a Triton without Gluon, or with another one
    fused_kernels = None  # type: ignore[assignment]

# True: every call that the kernel can take; False: none; None: those that were measured faster.
ENABLED = {"1": True, "0": False}.get(os.environ.get("SIRI_KERNELS_FUSED", ""))
# Where it was measured (GPU's name, Triton): least tokens with top entries and without. From
# bench/results/nvidia-h200/: at fewer tokens the host's work is what both forms wait for.
MEASURED = {("H200", "3.6"): (4096, 2048)}
# Tokens of a warpgroup, ids of a tile, columns of a step of the kernel.
HALF, IDS, STEP = 64, 256, 64
SCRATCH = 80 * 2**20  # logits, 320 MiB: half as many cost 6 % at 16 384 tokens of width 1536
MOST_EACH = 31  # tiles of a split: one bit each
_LOG2_EPS = top_entries.LOG_EPS * LOG2_E


class Partition(NamedTuple):
    """How a vocabulary is split: into parts of ``splits`` splits of ``tiles_each`` tiles.

    Attributes:
        splits: of a part.
        tiles_each: of a split.
    """

    splits: int
    tiles_each: int


@functools.lru_cache(maxsize=256)
def partition(blocks: int, tiles: int, programs: int, most_tiles: int) -> Partition:
    """The partition that keeps all programs busy, by a count of tiles' times.

    A part takes as long as its fullest program, whose every item costs a third of a tile more to
    begin. Starting a part and joining it takes about as long as a tile.

    Args:
        blocks: of tokens.
        tiles: of the vocabulary.
        programs: that run at a time.
        most_tiles: of a part.
    """
    most_tiles = max(1, min(most_tiles, tiles))
    best, choice = math.inf, Partition(1, 1)
    for splits in range(1, min(most_tiles, 128) + 1):
        for each in range(1, min(MOST_EACH, most_tiles // splits) + 1):
            rounds = -(-blocks * splits // programs)
            parts = -(-tiles // (splits * each))
            cost = parts * (rounds * (each + 0.33) + 1.0)
            if cost < best:
                best, choice = cost, Partition(splits, each)
    return choice


def takes(call: HeadCall) -> bool:
    """Whether a call goes through the fused kernel."""
    if ENABLED is False or refusal(call) is not None:
        return False
    least = _least_tokens(call.hidden.device, call.entries > 0)
    return ENABLED is True or len(call.hidden) >= least


@functools.cache
def _least_tokens(device: torch.device, top_entries: bool) -> float:
    """Tokens from which on the fused kernel was measured faster on this device."""
    name = torch.cuda.get_device_name(device)
    for (gpu, version), least in MEASURED.items():
        if gpu in name and triton.__version__.startswith(version + "."):
            return least[0] if top_entries else least[1]
    return math.inf


def refusal(call: HeadCall) -> str | None:
    """Why the fused kernel cannot take a call, or None."""
    hidden = call.hidden
    if fused_kernels is None:
        return "this Triton has no Gluon for Hopper"
    if (
        not hidden.is_cuda
        or torch.version.cuda is None
        or torch.cuda.get_device_capability(hidden.device) != (9, 0)
    ):
        return "it is written for compute capability 9.0"
    return unfit(call)


def unfit(call: HeadCall) -> str | None:
    """As :func:`refusal`, whatever the device."""
    hidden, weight, gemm = call.hidden, call.weight, call.gemm_dtype
    if gemm not in (torch.bfloat16, torch.float16) or hidden.dtype != gemm or weight.dtype != gemm:
        return "it takes bfloat16 or float16"
    if call.bias is not None or call.rule.softcap is not None:
        return "it takes no bias and no softcap"
    if not isinstance(call.rule.temperature, float):
        return "it takes one temperature"
    if not 1e-6 < call.rule.temperature < 1e6:
        return "the temperature is extreme"
    if 0 in hidden.shape or 0 in weight.shape:
        return "it takes no empty tensors"
    for x in (hidden, weight):
        aligned = x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0
        if not aligned or x.stride(0) < x.shape[1] or len(x) >= 2**31 - 512:
            return "copies need rows of whole 16 bytes, one after the other"
    return None


def online_softmax(
    call: HeadCall, top: TopEntries | None, estimate: torch.Tensor | None
) -> SoftmaxState:
    """As :func:`siri_kernels.linear_logprob.triton.forward.online_softmax`.

    Args:
        call: one that :func:`takes` holds for.
        top: to fill, or None.
        estimate: [T] target logits, where there is ``top``.
    """
    weight, device, programs = call.weight, call.hidden.device, multiprocessors(call.hidden.device)
    total, vocabulary, width = len(call.hidden), *weight.shape
    states = torch.empty(4, (total + 3) // 4 * 4, dtype=torch.float32, device=device)[:, :total]
    states[0] = float("-inf")  # of tokens whose target is not here
    runnings = torch.zeros(3, total, dtype=torch.float32, device=device)
    runnings[0] = -1.0e30
    scale, tiles, most = LOG2_E / call.rule.temperature, triton.cdiv(vocabulary, IDS), 0
    # At a time not more tokens than give every program one block of them. ``state`` is theirs in
    # ``SoftmaxState``, ``running`` its last three in exponents of two.
    for at in [slice(i, i + programs * 2 * HALF) for i in range(0, total, programs * 2 * HALF)]:
        hidden, targets = call.hidden[at], call.targets[at]
        state, running, tokens = states[:, at], runnings[:, at], len(hidden)
        blocks, most_tiles = triton.cdiv(tokens, 2 * HALF), tiles
        if top is not None:
            most_tiles = max(1, SCRATCH // (tokens * IDS))
        splits, each = partition(blocks, tiles, programs, most_tiles)
        ids = torch.where(is_local(targets, vocabulary), targets, -1).to(torch.int32)
        parts = torch.empty(4, splits, tokens, dtype=torch.float32, device=device)
        bits = parts[3].view(torch.int32)
        saved: tuple[torch.Tensor, ...]
        if top is None or estimate is None:
            stride, scratch, floors, guess = 0, running[0], running[0], running[0]
            saved = ids, running[0], ids  # not read
        else:
            stride, most = splits * each * IDS, top.ids.shape[1]
            scratch = torch.empty(tokens * stride, dtype=torch.float32, device=device)
            guess, saved = estimate[at], tuple(x[at] for x in top[:3])
            floors = guess * scale
        kernel, boxes, constants = operands(hidden, weight, top is not None)
        for first in range(0, tiles, splits * each):
            these = min(splits, triton.cdiv(tiles - first, each))
            kernel[(min(programs, blocks * these),)](
                *boxes, ids, floors, *parts[:3], bits, state[0], scratch, tokens, vocabulary, width,
                blocks, first, these, each, stride // IDS, scale, fused_kernels.MASKED / scale,
                _LOG2_EPS, **constants,
            )  # fmt: skip
            fused_join.join_kernel[(tokens,)](
                *parts[:3], bits, scratch, *running, *state[1:4], guess, floors, *saved, tokens,
                first * IDS, these, each, stride, most, scale, 1.0 / scale, _LOG2_EPS, LN_2,
                SPLITS=triton.next_power_of_2(splits), IDS=IDS, TOP_ENTRIES=top is not None,
                num_warps=1,
            )  # fmt: skip
    return SoftmaxState(*states)


def operands(
    hidden: torch.Tensor, weight: torch.Tensor, top_entries: bool
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The kernel, its descriptors of both operands, and its constants.

    Descriptors are made once for all launches: making one is slow on the host beside a launch.
    Tests without a GPU put the same arithmetic in the kernel's place.

    Args:
        hidden: [T, D].
        weight: [V, D].
        top_entries: whether they are saved.
    """
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    dtype = gl.bfloat16 if hidden.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for
    boxes = (
        TensorDescriptor.from_tensor(hidden, [HALF, STEP], layout([HALF, STEP], dtype)),
        TensorDescriptor.from_tensor(weight, [IDS, STEP], layout([IDS, STEP], dtype)),
    )
    k = fused_kernels
    constants = {
        "HALF": HALF, "IDS": IDS, "STEP": STEP, "GROUP": k.GROUP, "TOP_ENTRIES": top_entries,
        "STAGES": k.STAGES_TOP_ENTRIES if top_entries else k.STAGES,
        "CONSUMER_REGISTERS": k.CONSUMER_REGISTERS, "PRODUCER_REGISTERS": k.PRODUCER_REGISTERS,
        "num_warps": 4, "enable_fp_fusion": True,
    }  # fmt: skip
    return k.fused_kernel, boxes, constants


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count
