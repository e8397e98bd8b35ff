"""FlexAttention over packed rows, on a GPU, for calls that no flash kernel here can do.

The blocks of the mask are computed from where the sequences are, in memory of the number of blocks
squared; PyTorch's own ``create_block_mask`` evaluates every pair of tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128


def packed_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    compiled: bool = True,
) -> Tensor:
    """Attention within each sequence of a row.

    Args:
        query: [1, H, T, d].
        key: [1, H_kv, T, d]; H is a multiple of H_kv.
        value: [1, H_kv, T, d].
        mask: :func:`block_mask` of the row.
        scale: of the scores, 1 / sqrt(d) if None.
        softcap: scores s become softcap * tanh(s / softcap).
        compiled: False: PyTorch's own plain implementation, for tests.

    Returns:
        [1, H, T, d].
    """

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)  # type: ignore[operator]

    # With sizes left open PyTorch 2.13 writes C++ that does not compile; on GPUs rows differ.
    function = _compiled(dynamic=query.is_cuda) if compiled else flex_attention
    return function(
        query,
        key,
        value,
        score_mod=capped if softcap else None,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def block_mask(lengths: Tensor, window: int | None = None) -> BlockMask:
    """Causal attention within sequences as blocks of 128 x 128 pairs of tokens.

    Args:
        lengths: [B] tokens of each sequence, in the row's order; T in all.
        window: tokens that each token sees, itself included; None: all before it.
    """
    total = int(lengths.sum())
    positions = torch.arange(total, device=lengths.device)
    # The first token that each token sees; it never decreases along the row.
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    if window is not None:
        first = torch.maximum(first, positions - window + 1)
    starts = positions[::BLOCK]
    ends = (starts + BLOCK).clamp(max=total)
    number = torch.arange(len(starts), device=lengths.device)
    below = number[None] < number[:, None]
    seen = (ends[None] > first[starts][:, None]) & (below | (number[None] == number[:, None]))
    full = below & (starts[None] >= first[ends - 1][:, None])
    return BlockMask.from_kv_blocks(
        *_set_blocks(seen & ~full),
        *_set_blocks(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, q, k: (k <= q) & (k >= first[q]),
        seq_lengths=(total, total),
    )


def _set_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The number of set blocks in each row, and all blocks of the row, the set ones first."""
    order = (~blocks).to(torch.int8).argsort(dim=1, stable=True)
    return blocks.sum(1)[None, None].int(), order[None, None].int().contiguous()


@lru_cache(maxsize=2)
def _compiled(dynamic: bool) -> Any:
    return torch.compile(flex_attention, dynamic=dynamic)
