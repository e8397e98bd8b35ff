"""The gradient of recomputed logits on Hopper, by one kernel: which calls take it and its launches.

The fp32 logits never go to memory. What does is their gradient in 16 bits, a block of tokens times
a tile of ids at a time, for the two products that follow.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import GradientRule
from siri_kernels.linear_logprob.triton import arguments, fused
from siri_kernels.linear_logprob.triton.fused import HALF, IDS, STEP
from siri_kernels.linear_logprob.triton.measured import least_tokens
from siri_kernels.linear_logprob.types import LogitRule
from siri_kernels.linear_logprob.vocab_parallel import is_local

try:
    from siri_kernels.linear_logprob.triton import fused_gradient_kernels
except ImportError:  # a Triton without Gluon, or with another one
    fused_gradient_kernels = None  # type: ignore[assignment]

# In place of fused.ENABLED, for measurements of this kernel alone; None: as that and
# :mod:`siri_kernels.linear_logprob.triton.measured` say.
ENABLED: bool | None = None
BLOCK = 2 * HALF  # tokens of a work item
TOKENS = 16384  # of a block of them, at most
# Gradients held at a time: 288 MiB. 16 384 tokens then have 8 448 ids at a time on 132
# multiprocessors, with which the kernel and both products take whole rounds of all of these.
GRADIENTS = 144 * 2**20
# As many products' results as a multiprocessor holds at a time, in cuBLAS's large kernels.
_ROWS, _COLUMNS = 128, 256
_START = 3.0  # what a launch costs beside, in work items' time: reading and writing d_hidden


def takes(call: HeadCall) -> bool:
    """Whether a call's gradient goes through the fused kernel."""
    switch = fused.ENABLED if ENABLED is None else ENABLED
    if switch is False or refusal(call) is not None:
        return False
    options = any(arguments.constants(call).values())
    return switch is True or len(call.hidden) >= _least_tokens(call.hidden.device, options)


@functools.cache
def _least_tokens(device: torch.device, options: bool) -> float:
    """Tokens from which on the kernel was measured faster on this device."""
    name = torch.cuda.get_device_name(device)
    return least_tokens("gradient", name, triton.__version__, False, options)


def refusal(call: HeadCall) -> str | None:
    """Why the kernel cannot take a call, or None: its operands are those of the fused forward."""
    if fused_gradient_kernels is None:
        return "this Triton has no Gluon for Hopper"
    return fused.refusal(call._replace(bias=None, rule=LogitRule(1.0, None)))


@functools.lru_cache(maxsize=256)
def tiles_of_launch(blocks: int, tiles: int, width: int, programs: int, most: int) -> int:
    """How many tiles of ids are taken at a time, by a count of rounds of all multiprocessors.

    A round of the kernel is a work item's time. Rounds of the products are counted in that time.

    Args:
        blocks: of 128 tokens.
        tiles: of the vocabulary.
        width: D.
        programs: that run at a time.
        most: tiles at a time.
    """

    def cost(these: int) -> float:
        if not these:
            return 0.0
        across = -(-width // _COLUMNS)
        kernel = -(-blocks * these // programs)
        d_hidden = -(-blocks * across // programs) * these * IDS / width
        d_weight = -(-these * IDS // _ROWS * across // programs) * blocks * BLOCK / width
        return kernel + d_hidden + d_weight + _START

    return min(
        range(max(1, min(most, tiles)), 0, -1),
        key=lambda these: tiles // these * cost(these) + cost(tiles % these),
    )


class FusedGradients:
    """Gradients of raw logits, a block of tokens times a tile of ids at a time.

    Args:
        call: one that :func:`takes` holds for, whose tokens are all computed.
        rule: of the same tokens, with exponents of two.
        factor: [1] that gradients are multiplied by, or None.
        most_ids: of a tile, at most, if that leaves one of the kernel's.

    Attributes:
        tokens: the blocks.
        hidden: their rows of ``hidden``.
    """

    def __init__(
        self, call: HeadCall, rule: GradientRule, factor: torch.Tensor | None, most_ids: int
    ) -> None:
        hidden, weight, device = call.hidden, call.weight, call.hidden.device
        self.weight, self.programs = weight, fused.multiprocessors(device)
        total, (vocabulary, width) = len(hidden), weight.shape
        size = BLOCK * triton.cdiv(triton.cdiv(total, BLOCK), triton.cdiv(total, TOKENS))
        self.tokens = [slice(at, min(at + size, total)) for at in range(0, total, size)]
        self.hidden = [hidden[part] for part in self.tokens]
        tiles = triton.cdiv(vocabulary, IDS)
        most = min(GRADIENTS // size, most_ids) // IDS
        self.tiles = tiles_of_launch(size // BLOCK, tiles, width, self.programs, most)
        # Whole blocks and tiles: the kernel writes to no edge.
        self.out = torch.empty(size, self.tiles * IDS, dtype=call.gemm_dtype, device=device)
        self.rule = _table(call, rule, factor)
        here = is_local(call.targets, vocabulary)
        targets = torch.where(here, call.targets, -1).to(torch.int32)
        self.bias = self.rule  # not read
        if call.bias is not None:
            self.bias = torch.zeros(tiles * IDS, dtype=torch.float32, device=device)
            self.bias[:vocabulary] = call.bias
        self.columns = [(targets[part], self.rule[:, part]) for part in self.tokens]
        self.softcap = arguments.softcap(call)
        flags = {
            "BIAS": call.bias is not None,
            "SOFTCAP": call.rule.softcap is not None,
            "SLOPE": rule.slope is not None,
        }
        self.launches = [operands(x, weight, self.out, flags) for x in self.hidden]

    def starts(self) -> range:
        """The first id of each tile."""
        return range(0, len(self.weight), self.out.shape[1])

    def tile(self, start: int) -> torch.Tensor:
        """A tile of ``weight``, as the products take it."""
        return self.weight[start : start + self.out.shape[1]]

    def gradient(self, block: int, start: int, tile: torch.Tensor) -> torch.Tensor:
        """The gradient of a block's raw logits, which the next call overwrites.

        Args:
            block: its number.
            start: first id of the tile.
            tile: [n, D] from :meth:`tile`.
        """
        kernel, boxes, constants = self.launches[block]
        (rows, width), (targets, rule) = self.hidden[block].shape, self.columns[block]
        blocks, tiles = triton.cdiv(rows, BLOCK), triton.cdiv(len(tile), IDS)
        kernel[(min(self.programs, blocks * tiles),)](
            *boxes, targets, rule, self.bias, rows, len(self.weight), width, blocks, start // IDS,
            tiles, rule.stride(0), *self.softcap, **constants,
        )  # fmt: skip
        return self.out[:rows, : len(tile)]


def _table(call: HeadCall, rule: GradientRule, factor: torch.Tensor | None) -> torch.Tensor:
    """[5, T] what the kernel reads of a token: its scale, and the rule with the factor in it."""
    total, device = len(call.hidden), call.hidden.device
    # Each of the five starts at a multiple of 16 bytes.
    out = torch.empty(5, (total + 3) // 4 * 4, dtype=torch.float32, device=device)[:, :total]
    slope = 0.0 if rule.slope is None else rule.slope
    columns = (arguments.scale(call), rule.max, rule.at_target, rule.offset, slope)
    for place, column in zip(out, columns, strict=True):
        place.copy_(column) if isinstance(column, torch.Tensor) else place.fill_(column)
    if factor is not None:
        out[2:] *= factor
    return out


def operands(
    hidden: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, flags: dict[str, bool]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The kernel, its descriptors and its constants, for all launches of a block of tokens.

    Tests without a GPU put the same arithmetic in the kernel's place.

    Args:
        hidden: [T, D].
        weight: [V, D].
        out: whole blocks of tokens, whole tiles of ids.
        flags: the options of the kernel.
    """
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from siri_kernels.linear_logprob.triton import fused_kernels

    dtype = gl.bfloat16 if hidden.dtype == torch.bfloat16 else gl.float16
    boxes = tuple(
        TensorDescriptor.from_tensor(x, box, gl.NVMMASharedLayout.get_default_for(box, dtype))
        for x, box in ((hidden, [HALF, STEP]), (weight, [IDS, STEP]), (out, [HALF, IDS]))
    )
    constants = {
        "HALF": HALF, "IDS": IDS, "STEP": STEP, "GROUP": fused_kernels.GROUP,
        "STAGES": fused_gradient_kernels.STAGES,
        "CONSUMER_REGISTERS": fused_kernels.CONSUMER_REGISTERS,
        "PRODUCER_REGISTERS": fused_kernels.PRODUCER_REGISTERS,
        "num_warps": 4, "enable_fp_fusion": True, **flags,
    }  # fmt: skip
    return fused_gradient_kernels.fused_gradient_kernel, boxes, constants
