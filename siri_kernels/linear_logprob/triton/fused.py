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

from siri_kernels._launch import launch
from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import SoftmaxState
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments, fused_join, fused_plain
from siri_kernels.linear_logprob.triton.kernel_math import LARGE, LN_2, LOG2_E
from siri_kernels.linear_logprob.triton.measured import least_tokens
from siri_kernels.linear_logprob.vocab_parallel import is_local

try:
    from siri_kernels.linear_logprob.triton import fused_kernels
except ImportError:  # a Triton without Gluon, or with another one
    fused_kernels = None  # type: ignore[assignment]

# True: every call that the kernel can take; False: none; None: those that were measured faster
# (:mod:`siri_kernels.linear_logprob.triton.measured`).
ENABLED = {"1": True, "0": False}.get(os.environ.get("SIRI_KERNELS_FUSED", ""))
# Whether two programs share each tile of the weight, where this Triton can (multicast): as above.
MULTICAST: bool | None = None
# What a masked product is after the scale: far below the kernel's LOWEST, so that exp2 of the
# difference is 0. Were they alike, what rounding leaves of the difference would be 0 or 1e22.
MASKED = -2.0e30
NEVER = float("-inf")  # what it is where the kernel must take -inf anyhow, as in a bias
# Tokens of a warpgroup, ids of a tile, columns of a step of the kernel.
HALF, IDS, STEP = 64, 256, 64
# Logits held at a time, 320 MiB, and tokens at a time where there are top entries. Measured on an
# H200 at 16 384 tokens, in bare products of D 1536 and of 3584: 4096 tokens 1.34 and 1.05, 8192
# 1.22 and 1.03, all of them 1.19 and 1.07; with twice the logits 1.32 and 1.05, 1.19 and 1.05, 1.21
# and 1.09. The rows of ``hidden`` and the tile of ``weight`` share the L2 cache.
SCRATCH = 80 * 2**20
TOKENS_TOP_ENTRIES = 8192
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
    if ENABLED is True:
        return True
    options = any(arguments.constants(call).values())
    return len(call.hidden) >= _least_tokens(call.hidden.device, call.entries > 0, options)


@functools.cache
def _least_tokens(
    device: torch.device, top_entries: bool, options: bool, kernel: str = "forward"
) -> float:
    """Tokens from which on a kernel was measured faster on this device."""
    name = torch.cuda.get_device_name(device)
    return least_tokens(kernel, name, triton.__version__, top_entries, options)


def programs_together(call: HeadCall) -> int:
    """Programs that share each tile of the weight: 1 or 2."""
    device = call.hidden.device
    if MULTICAST is False or device.type != "cuda" or plain(device) or not fused_kernels.CLUSTERS:
        return 1
    options = any(arguments.constants(call).values())
    least = _least_tokens(device, call.entries > 0, options, "forward, multicast")
    return 2 if MULTICAST is True or len(call.hidden) >= least else 1


def refusal(call: HeadCall) -> str | None:
    """Why the fused kernel cannot take a call, or None."""
    hidden = call.hidden
    if not hidden.is_cuda or torch.version.cuda is None:
        return "it is written for GPUs of NVIDIA"
    if not plain(hidden.device):
        if torch.cuda.get_device_capability(hidden.device) != (9, 0):
            return "it is written for compute capability 9.0 and 10"
        if fused_kernels is None:
            return "this Triton has no Gluon for Hopper"
    return unfit(call)


def unfit(call: HeadCall) -> str | None:
    """As :func:`refusal`, whatever the device."""
    hidden, weight, gemm = call.hidden, call.weight, call.gemm_dtype
    if gemm not in (torch.bfloat16, torch.float16) or hidden.dtype != gemm or weight.dtype != gemm:
        return "it takes bfloat16 or float16"
    temperature = call.rule.temperature
    if isinstance(temperature, float) and not 1e-6 < temperature < 1e6:
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
    weight, device, together = call.weight, call.hidden.device, programs_together(call)
    # Two that share tiles count as one with twice the rows.
    programs, rows = max(multiprocessors(device) // together, 1), 2 * HALF * together
    total, vocabulary, width = len(call.hidden), *weight.shape
    states = torch.empty(4, (total + 3) // 4 * 4, dtype=torch.float32, device=device)[:, :total]
    states[0] = float("-inf")  # of tokens whose target is not here
    runnings = torch.zeros(3, total, dtype=torch.float32, device=device)
    tiles, most, softcap = triton.cdiv(vocabulary, IDS), 0, arguments.softcap(call)
    scales = arguments.scale(call)
    constants = {"TOP_ENTRIES": top is not None, **arguments.constants(call)}
    per_row = isinstance(scales, torch.Tensor)
    raw = per_row or call.bias is not None
    runnings[0] = -LARGE.value if raw else -1.0e30
    inverse = 1.0 if per_row else 1.0 / scales
    masked, bias = NEVER if raw else MASKED / scales, None
    if call.bias is not None:  # whole tiles, which are read without a mask
        bias = torch.nn.functional.pad(call.bias.float(), (0, tiles * IDS - vocabulary))
    # At a time not more tokens than give every program one block of them. ``state`` is theirs in
    # ``SoftmaxState``, ``running`` its last three as the kernels have them.
    most_tokens, held = programs * rows, runnings[0, :0]
    if top is not None:
        most_tokens = min(most_tokens, TOKENS_TOP_ENTRIES)
    for at in [slice(i, i + most_tokens) for i in range(0, total, most_tokens)]:
        hidden, targets = call.hidden[at], call.targets[at]
        state, running, tokens = states[:, at], runnings[:, at], len(hidden)
        scale = arguments.of_tokens(scales, at)
        blocks, most_tiles = triton.cdiv(tokens, rows), tiles
        if top is not None:
            most_tiles = max(1, SCRATCH // (tokens * IDS))
        splits, each = partition(blocks, tiles, programs, most_tiles)
        ids = torch.where(is_local(targets, vocabulary), targets, -1).to(torch.int32)
        parts = torch.empty(3, splits, tokens, dtype=torch.float32, device=device)
        saved: tuple[torch.Tensor, ...]
        if top is None or estimate is None:
            stride, scratch, floors, guess = 0, running[0], running[0], running[0]
            bits, saved = ids, (ids, running[0], ids)  # not read
        else:
            stride, most = splits * each, top.ids.shape[1]
            # Kernels run one after the other: all of them use the same memory.
            if len(held) < tokens * stride * IDS:
                held = torch.empty(tokens * stride * IDS, dtype=torch.float32, device=device)
            scratch = held[: tokens * stride * IDS]
            bits = torch.empty(splits, tokens, 4, dtype=torch.int32, device=device)
            guess, saved = estimate[at], tuple(x[at] for x in top[:3])
            floors = guess * scale
        kernel, boxes, options = operands(hidden, weight, constants, together)
        for first in range(0, tiles, splits * each):
            these = min(splits, triton.cdiv(tiles - first, each))
            kernel[(min(programs, blocks * these),)](
                *boxes, ids, floors, *parts, bits, state[0], scratch,
                arguments.pointer(bias, scratch), tokens, vocabulary, width, blocks, first, these,
                each, stride, scale, masked, _LOG2_EPS, *softcap, **options,
            )  # fmt: skip
            launch(
                fused_join.join_kernel, (tokens,),
                *parts, bits, scratch, *running, *state[1:4], guess, floors, *saved, tokens,
                first * IDS, these, each, stride, most, scale, inverse, _LOG2_EPS, LN_2,
                SPLITS=triton.next_power_of_2(splits), IDS=IDS, TOP_ENTRIES=top is not None,
                RAW=raw, PER_ROW=per_row, PAIRS=not plain(device), num_warps=1,
            )  # fmt: skip
    return SoftmaxState(*states)


def operands(
    hidden: torch.Tensor, weight: torch.Tensor, options: dict[str, bool], together: int = 1
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The kernel, its descriptors of both operands, and its constants.

    Descriptors are made once for all launches: making one is slow on the host beside a launch.
    Tests without a GPU put the same arithmetic in the kernel's place.

    Args:
        hidden: [T, D].
        weight: [V, D].
        options: the constants that a call chooses.
        together: programs that share each tile of ``weight``.
    """
    if plain(hidden.device):
        return plain_operands(hidden, weight, options)
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    boxes = tuple(
        TensorDescriptor.from_tensor(x, *box)
        for x, box in zip((hidden, weight), kernel_boxes(hidden.dtype, together), strict=True)
    )
    return fused_kernels.fused_kernel, boxes, kernel_constants(options, together)


def kernel_boxes(dtype: torch.dtype, together: int = 1) -> list[tuple[list[int], Any]]:
    """Shape and layout of what a copy of ``fused_kernel`` brings, of ``hidden`` and ``weight``.

    Args:
        dtype: of both.
        together: programs that share each tile of ``weight``, and each have their rows of hidden.
    """
    from triton.experimental.gluon import language as gl

    element = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    shapes = [HALF * together, STEP], [IDS, STEP]
    # The second program has the next rows of ``hidden``, and the same of ``weight``.
    parts: tuple[Any, Any] = (None, None) if together == 1 else ([[1, 0]], [[0, 0]])
    layout = gl.NVMMASharedLayout.get_default_for
    return [(s, layout(s, element, cga_layout=p)) for s, p in zip(shapes, parts, strict=True)]


def kernel_constants(options: dict[str, bool], together: int = 1) -> dict[str, Any]:
    """The constants of ``fused_kernel`` for a call.

    Args:
        options: those that it chooses.
        together: programs that share each tile of the weight.
    """
    k = fused_kernels
    return {
        "HALF": HALF * together, "IDS": IDS, "STEP": STEP, "GROUP": k.GROUP // together, **options,
        "STAGES": k.STAGES_TOP_ENTRIES if options["TOP_ENTRIES"] else k.STAGES,
        "CONSUMER_REGISTERS": k.CONSUMER_REGISTERS, "PRODUCER_REGISTERS": k.PRODUCER_REGISTERS,
        "CLUSTER": together, "num_warps": 4, "num_ctas": together, "enable_fp_fusion": True,
    }  # fmt: skip


def plain_operands(
    hidden: torch.Tensor, weight: torch.Tensor, options: dict[str, bool]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """As :func:`operands`, for the kernel in plain Triton.

    Args:
        hidden: [T, D].
        weight: [V, D].
        options: the constants that a call chooses.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    boxes = (
        TensorDescriptor.from_tensor(hidden, [2 * HALF, STEP]),
        TensorDescriptor.from_tensor(weight, [IDS, STEP]),
    )
    k = fused_plain
    constants = {
        "ROWS": 2 * HALF, "IDS": IDS, "STEP": STEP, "GROUP": k.GROUP, **options,
        "num_warps": k.WARPS, "num_stages": k.STAGES,
    }  # fmt: skip
    return k.fused_plain_kernel, boxes, constants


@functools.cache
def plain(device: torch.device) -> bool:
    """Whether the kernel is the one in plain Triton."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device)[0] == 10


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count
