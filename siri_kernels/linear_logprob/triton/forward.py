"""Forward in Triton: the loop over tiles of the vocabulary and its launches.

The products are PyTorch's (cuBLAS, hipBLAS): 16-bit operands, fp32 logits. The vocabulary is the
outer loop, as in :mod:`siri_kernels.linear_logprob.portable.forward`. Nothing waits for the GPU.
Logits here are raw ones, before the temperature (see
:mod:`siri_kernels.linear_logprob.triton.kernel_math`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from siri_kernels._launch import launch
from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import SoftmaxState
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments, fused, kernels
from siri_kernels.linear_logprob.triton.kernel_math import LN_2, LOG2_E
from siri_kernels.linear_logprob.triton.token_math import finish
from siri_kernels.linear_logprob.types import SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import is_local

LOGITS = 2**25  # of a tile: 128 MiB
_DOT_BLOCK = 1024
_TOKENS = 8192  # of a tile, at most


def tile_shape(tokens: int, device: torch.device) -> tuple[int, int]:
    """Tokens and ids of a tile of logits, for this many tokens.

    On an H200 tiles of 32 MiB, which its L2 cache could hold, took 1.2 to 2.3 times as long.
    """
    if device.type != "cuda":
        return 16, 256  # the interpreter runs a millisecond of Python for each token and block
    tokens = min(_TOKENS, max(tokens, 1))
    # Few tokens: as many ids as give the product its size.
    ids = LOGITS // max(256, triton.next_power_of_2(tokens))
    return tokens, max(kernels.IDS, ids)


class Products:
    """Raw logits in fp32, a block of tokens times a tile of ids at a time.

    Args:
        call: whose tokens are all computed.
        most_ids: of a tile, or one block of the kernels; None: as :func:`tile_shape` says.
    """

    def __init__(self, call: HeadCall, most_ids: int | None = None) -> None:
        hidden, gemm = call.hidden, call.gemm_dtype
        self.weight, self.gemm = call.weight, gemm
        # Tensor cores take 16-bit operands and give fp32; elsewhere operands are upcast, exactly.
        self.mixed = hidden.is_cuda and gemm != torch.float32
        tokens, self.ids = tile_shape(len(hidden), hidden.device)
        if most_ids is not None and self.ids > kernels.IDS:
            self.ids = min(self.ids, max(1, most_ids // kernels.IDS) * kernels.IDS)
        self.ids = min(self.ids, len(self.weight))
        self.tokens = [
            slice(at, min(at + tokens, len(hidden))) for at in range(0, len(hidden), tokens)
        ]
        self.hidden = [self.operand(hidden[part]) for part in self.tokens]
        size = min(tokens, len(hidden)) * self.ids
        self.buffer = torch.empty(size, dtype=torch.float32, device=hidden.device)

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

    def raw(self, block: int, tile: torch.Tensor) -> torch.Tensor:
        """The raw logits of a block and a tile, which the next call overwrites.

        Args:
            block: its number.
            tile: [n, D] from :meth:`tile`.
        """
        x = self.hidden[block]
        out = self.buffer[: len(x) * len(tile)].view(len(x), len(tile))
        if self.mixed:
            torch.mm(x, tile.t(), out_dtype=torch.float32, out=out)
        else:
            torch.mm(x, tile.t(), out=out)
        return out


def target_logits(call: HeadCall) -> torch.Tensor:
    """[T] each token's target logit, but for rounding: it moves a threshold, and no result."""
    hidden, weight = call.hidden, call.weight
    out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    if not len(hidden):
        return out
    launch(
        kernels.target_kernel,
        (len(hidden),),
        hidden,
        weight,
        call.targets,
        arguments.pointer(call.bias, weight),
        out,
        *hidden.stride(),
        *weight.stride(),
        hidden.shape[1],
        weight.shape[0],
        *arguments.softcap(call),
        GEMM=arguments.GEMM[call.gemm_dtype],
        BIAS=call.bias is not None,
        SOFTCAP=call.rule.softcap is not None,
        BLOCK=min(_DOT_BLOCK, triton.next_power_of_2(hidden.shape[1])),
    )
    return out


def forward(call: HeadCall) -> tuple[SoftmaxStats, TopEntries | None]:
    """Statistics of every token, 0 where masked, and top entries of all tokens."""
    call = arguments.prepared(call)
    shard = call.shard
    top = estimate = None
    if call.entries:
        top = TopEntries.empty(len(call.hidden), call.entries, call.hidden, torch.float32)
        estimate = target_logits(call)
    if shard is not None:
        here = is_local(call.targets, len(call.weight))
        if estimate is not None:
            estimate = shard.total(torch.where(here, estimate, 0))
    softmax = fused.online_softmax if fused.takes(call) else online_softmax
    state = softmax(call, top, estimate)
    if shard is not None:
        state = shard.merged(state, here, call.rule.temperature)
    return finish(call, state), top


def empty_state(tokens: int, device: torch.device) -> SoftmaxState:
    """The state of tokens of which no logit was seen."""
    # Each of the four starts at a multiple of 16 bytes, whatever ``tokens`` is: kernels are
    # compiled anew for pointers that do not.
    state = torch.zeros(4, (tokens + 3) // 4 * 4, dtype=torch.float32, device=device)[:, :tokens]
    state[:2] = float("-inf")
    return SoftmaxState(*state)


def online_softmax(
    call: HeadCall, top: TopEntries | None, estimate: torch.Tensor | None
) -> SoftmaxState:
    """The online softmax of every token over all of ``weight``.

    Args:
        call: as :func:`siri_kernels.linear_logprob.triton.arguments.prepared` gives it.
        top: to fill, or None.
        estimate: [T] target logits as :func:`target_logits` gives them, where there is ``top``.
    """
    total, device = len(call.hidden), call.hidden.device
    state = empty_state(total, device)
    if total == 0:
        return state
    products = Products(call)
    if top is None or estimate is None:
        ids, logits, found, most = call.targets, state.sum, call.targets, 0  # not read
        estimate = state.sum
    else:
        (ids, logits, found), most = top[:3], top.ids.shape[1]
    columns = (arguments.scale(call), call.targets, estimate, *state, ids, logits, found)
    blocks = [
        [arguments.of_tokens(column, tokens) for column in columns] for tokens in products.tokens
    ]
    block_ids = min(kernels.IDS, triton.next_power_of_2(products.ids))
    constants: dict[str, Any] = {
        "TOP_ENTRIES": most > 0,
        "BLOCK": block_ids,
        "PART": min(kernels.PART, block_ids),
        "num_warps": kernels.WARPS,
        **arguments.constants(call),
    }
    if constants["BIAS"] or constants["SOFTCAP"]:
        constants["num_warps"] *= 2  # half the logits a thread, lest registers spill
    softcap = arguments.softcap(call)
    for start in products.starts():
        tile = products.tile(start)
        for block, columns_of_block in enumerate(blocks):
            raw = products.raw(block, tile)
            tokens, n = raw.shape
            launch(
                kernels.online_softmax_kernel,
                (tokens,),
                raw,
                arguments.pointer(call.bias, raw),
                *columns_of_block,
                start,
                n,
                n,
                most,
                *softcap,
                top_entries.LOG_EPS * LOG2_E,
                **constants,
            )
    state.dev.mul_(LN_2)
    return state
