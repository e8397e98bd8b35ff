"""Tiled PyTorch: a block of rows times a tile of the vocabulary at a time, in fp32, on any device.

The vocabulary is the outer loop, so a tile of ``weight`` is widened to fp32 once, and its gradient
is complete, and rounded, when its turn ends.

On a CPU every block has the same number of rows (the last one is padded) and the number depends on
the vocabulary alone, so that a row meets the same GEMM kernel, and gets the same bits, in any batch
(each row of a GEMM's result is one order of sums in MKL and oneDNN for a given shape; tested).
"""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.online_softmax import (
    Fold,
    FoldState,
    GradientRule,
    finish,
    gradient_rule,
    logit_gradient,
)
from siri_kernels.linear_logprob.portable.sparse_backward import WeightGradient
from siri_kernels.linear_logprob.top_entries import Collector, Slots
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import Shard, is_local


def tile_shape(vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Rows in a block and ids in a tile; of V alone, never of T."""
    if device.type == "cpu":
        # Tall enough for the GEMM to reuse a tile of weight, and still (nearly) in a core's L2
        # while a dozen elementwise passes go over it: 128 rows cost the GEMM 10 %.
        ids = min(vocabulary, 2048)
        return min(1024, 2 ** ((2**19 // ids).bit_length() - 1)), ids
    return 2048, min(vocabulary, 16384)


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, sums and accumulated gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Tiles:
    """The loop over blocks of rows and tiles of ids, and the logits of each."""

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rule: LogitRule,
        gemm_dtype: torch.dtype,
        few: bool = False,
    ) -> None:
        """``few``: blocks need not be larger than there are rows (bits may differ by batch)."""
        self.weight, self.bias, self.softcap = weight, bias, rule.softcap
        self.acc = widened(gemm_dtype)
        # Tensor cores take 16-bit inputs and give fp32; elsewhere the inputs are widened, exactly.
        self.mixed = hidden.device.type == "cuda" and gemm_dtype != self.acc
        self.gemm = gemm_dtype
        self.rows, self.ids = tile_shape(weight.shape[0], hidden.device)
        self.pad = hidden.device.type == "cpu"
        self.total = hidden.shape[0]
        if few:
            self.rows = min(self.rows, max(1, -(-self.total // 16) * 16))
        self.hidden = self.blocks(hidden)
        self.padded = sum(len(block) for block in self.hidden)
        temperature = rule.temperature
        self.temperature: list[float | torch.Tensor]
        if isinstance(temperature, torch.Tensor):
            self.temperature = list(self.blocks(temperature.to(self.acc), fill=1))
        else:
            self.temperature = [temperature] * len(self.hidden)
        size = (self.hidden[0].shape[0] if self.hidden else 0) * self.ids
        self.buffers = [hidden.new_empty(size, dtype=self.acc) for _ in range(2)]

    def blocks(self, x: torch.Tensor, fill: float = 0) -> list[torch.Tensor]:
        """``x`` in blocks of rows; on a CPU the last one is filled up."""
        whole = self.total // self.rows * self.rows if self.pad else self.total
        blocks = list(x[:whole].split(self.rows)) if whole else []
        if whole < self.total:
            last = x.new_full((self.rows, *x.shape[1:]), fill)
            last[: self.total - whole] = x[whole:]
            blocks.append(last)
        return blocks

    def starts(self) -> range:
        return range(0, self.weight.shape[0], self.ids)

    def weight_tile(self, start: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A tile of ``weight`` as the GEMM takes it, and of ``bias``."""
        stop = start + self.ids
        tile = self.weight[start:stop].to(self.gemm)
        bias = None if self.bias is None else self.bias[start:stop].to(self.acc)
        return tile if self.mixed else tile.to(self.acc), bias

    def scratch(self, which: int, rows: int, ids: int) -> torch.Tensor:
        return self.buffers[which][: rows * ids].view(rows, ids)

    def raw(
        self, block: int, tile: torch.Tensor, bias: torch.Tensor | None, buffer: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw logits of a block and a tile, in a buffer, and the block as the GEMM took it."""
        x = self.hidden[block].to(self.gemm)
        out = self.scratch(buffer, x.shape[0], tile.shape[0])
        if self.mixed:
            torch.mm(x, tile.t(), out_dtype=self.acc, out=out)
        else:
            x = x.to(self.acc)
            torch.mm(x, tile.t(), out=out)
        if bias is not None:
            out.add_(bias)
        return out, x

    def target_logits(self, block: int, targets: torch.Tensor) -> torch.Tensor:
        """Each row's target logit, but for the order of the GEMM's sums."""
        x = self.hidden[block].to(self.gemm).to(self.acc)
        targets = targets.clamp(0, len(self.weight) - 1)
        raw = (x * self.weight[targets].to(self.gemm)).sum(1)
        if self.bias is not None:
            raw += self.bias[targets].to(self.acc)
        return self.logits(raw[:, None], block)[:, 0]

    def logits(self, raw: torch.Tensor, block: int) -> torch.Tensor:
        """Softcap, then temperature, in place."""
        if self.softcap is not None:
            masked = raw == float("-inf")  # stays impossible, see the reference
            raw.div_(self.softcap).tanh_().mul_(self.softcap).masked_fill_(masked, float("-inf"))
        temperature = self.temperature[block]
        if isinstance(temperature, torch.Tensor):
            raw.div_(temperature[:, None])
        elif temperature != 1.0:
            raw.div_(temperature)
        return raw


def forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    rule: LogitRule,
    gemm_dtype: torch.dtype,
    slots: Slots | None = None,
    shard: Shard | None = None,
) -> SoftmaxStats:
    """Statistics of every row of ``hidden`` [T, D], their lists in ``slots``; all targets count.

    With a ``shard``, ``targets`` are counted from its first id.
    """
    tiles = Tiles(hidden, weight, bias, rule, gemm_dtype)
    folds = [Fold(t, tiles.acc) for t in tiles.blocks(targets)]
    if slots is not None:
        for block, fold in enumerate(folds):
            first = block * tiles.rows
            part = slots.block(first, first + tiles.rows)
            estimate = tiles.target_logits(block, fold.targets)
            if shard is not None:
                here = is_local(fold.targets, len(weight))
                estimate = shard.total(torch.where(here, estimate, 0))
            fold.collector = Collector(part, estimate)
    for start in tiles.starts():
        tile, bias_tile = tiles.weight_tile(start)
        for block, fold in enumerate(folds):
            z = tiles.logits(tiles.raw(block, tile, bias_tile)[0], block)
            fold.add(z, start, tiles.scratch(1, *z.shape))
    if not folds:
        return SoftmaxStats(*(hidden.new_zeros(0, dtype=tiles.acc) for _ in range(4)))
    for fold in folds:
        if fold.collector is not None:
            fold.collector.finish()
    states = zip(*(fold.state() for fold in folds), strict=True)
    state = FoldState(*(torch.cat(column) for column in states))
    if shard is not None:
        whole = torch.cat([fold.targets for fold in folds])
        state = shard.merged(state, is_local(whole, len(weight)))
    stats = finish(state)
    return SoftmaxStats(*(s[: tiles.total] for s in stats))


def backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    rule: LogitRule,
    gemm_dtype: torch.dtype,
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    needs: tuple[bool, bool, bool],
    more: WeightGradient | None = None,
    hidden_grad: torch.dtype | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of ``hidden``, ``weight`` and ``bias`` (None where not needed), exact.

    ``more`` is added to those of ``weight`` and ``bias``, before they are rounded;
    ``hidden_grad`` is the dtype of that of ``hidden`` (None: its own).
    """
    tiles = Tiles(hidden, weight, bias, rule, gemm_dtype, few=more is not None)
    acc, (need_hidden, need_weight, need_bias) = tiles.acc, needs
    whole_rule = gradient_rule(stats, grad_logprobs, grad_entropy, rule.temperature)
    columns = [
        [None] * len(tiles.hidden) if column is None else tiles.blocks(column)
        for column in whole_rule
    ]
    block_rules = [GradientRule(*row) for row in zip(*columns, strict=True)]
    block_targets = tiles.blocks(targets)
    whole = hidden.new_zeros(tiles.padded if need_hidden else 0, hidden.shape[1], dtype=acc)
    d_hidden = whole.split(tiles.rows)
    d_weight = torch.empty_like(weight) if need_weight else None
    d_bias = torch.empty_like(bias) if bias is not None and need_bias else None
    for start in tiles.starts():
        tile, bias_tile = tiles.weight_tile(start)
        n = tile.shape[0]
        d_tile = tile.new_zeros(tile.shape, dtype=acc) if need_weight else None
        d_bias_tile = tile.new_zeros(n, dtype=acc) if d_bias is not None else None
        left = tiles.total
        for block, block_rule in enumerate(block_rules):
            raw, x = tiles.raw(block, tile, bias_tile)
            slope = None
            if tiles.softcap is not None:
                slope = (raw / tiles.softcap).tanh_().square_().neg_().add_(1)
            z = tiles.logits(raw, block)
            scratch = tiles.scratch(1, *z.shape)
            dz = logit_gradient(z, block_targets[block], start, block_rule, scratch)
            if slope is not None:
                dz.mul_(slope)
            if need_hidden:
                d_hidden[block].addmm_(dz, tile.to(acc))
            real = min(left, dz.shape[0])  # a padding row has no gradient to give
            left -= real
            if d_tile is not None:
                d_tile.addmm_(dz[:real].t(), x[:real].to(acc))
            if d_bias_tile is not None:
                d_bias_tile += dz[:real].sum(0)
        if more is not None and d_tile is not None:
            ids, rows = more.rows(start, start + n)
            d_tile.index_add_(0, ids - start, rows)
        if more is not None and d_bias_tile is not None:
            ids, values = more.bias(start, start + n)
            d_bias_tile.index_add_(0, ids - start, values)
        if d_weight is not None and d_tile is not None:
            d_weight[start : start + n] = d_tile
        if d_bias is not None and d_bias_tile is not None:
            d_bias[start : start + n] = d_bias_tile
    if not need_hidden:
        return None, d_weight, d_bias
    return whole[: tiles.total].to(hidden_grad or hidden.dtype), d_weight, d_bias
