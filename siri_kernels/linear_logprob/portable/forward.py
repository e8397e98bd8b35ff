"""Forward in PyTorch: blocks of tokens times tiles of the vocabulary, in fp32, on any device.

The vocabulary is the outer loop, so a tile of ``weight`` is upcast to fp32 once, and its gradient
is complete, and rounded, when its turn ends.

On a CPU the number of tokens of a block is a multiple of 32 (the last block is padded), and the
tiles of ids depend on the vocabulary alone, so that a token gets the same bits in any batch. Each
row of a float32 GEMM's result is one order of sums in MKL and oneDNN for any such number of rows,
and PyTorch's elementwise functions are vectors throughout: the last numbers, fewer than two vectors
of 16, may be computed by another function that rounds differently (tested).
"""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import OnlineSoftmax, SoftmaxState, finish
from siri_kernels.linear_logprob.portable.products import product, product_memory
from siri_kernels.linear_logprob.tokens import spread, unmasked_tokens
from siri_kernels.linear_logprob.top_entries import Collector, TopEntries
from siri_kernels.linear_logprob.types import SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import is_local


def tile_shape(vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Tokens in a block, at most, and ids in a tile; they depend on V alone, never on T."""
    if device.type == "cpu":
        # Tall enough for the GEMM to reuse a tile of weight, and still (nearly) in a core's L2
        # while a dozen elementwise passes go over it: 256 tokens cost the GEMM 5 %.
        ids = min(vocabulary, 1024)
        return min(1024, 2 ** ((2**19 // ids).bit_length() - 1)), ids
    return 2048, min(vocabulary, 16384)


def block_sizes(total: int, most: int, pad: bool) -> list[int]:
    """How many tokens each block holds.

    Args:
        total: tokens of all blocks.
        most: tokens of a block, a multiple of 32.
        pad: to a multiple of 32.
    """
    whole, rest = divmod(total, most)
    last = -(-rest // 32) * 32 if pad else rest
    return [most] * whole + [last] * (rest > 0)


class Tiles:
    """The loop over blocks of tokens and tiles of ids, and the logits of each.

    Args:
        call: whose tokens are all computed.
    """

    def __init__(self, call: HeadCall) -> None:
        hidden, weight = call.hidden, call.weight
        self.weight, self.bias, self.softcap = weight, call.bias, call.rule.softcap
        self.acc, self.gemm = call.accumulator, call.gemm_dtype
        # Tensor cores take 16-bit inputs and give fp32; elsewhere the inputs are upcast, exactly.
        self.mixed = hidden.device.type == "cuda" and self.gemm != self.acc
        most, self.ids = tile_shape(weight.shape[0], hidden.device)
        self.total = hidden.shape[0]
        self.sizes = block_sizes(self.total, most, hidden.device.type == "cpu")
        self.hidden = self.blocks(hidden)
        self.padded = sum(self.sizes)
        temperature = call.rule.temperature
        self.temperature: list[float | torch.Tensor]
        if isinstance(temperature, torch.Tensor):
            self.temperature = list(self.blocks(temperature.to(self.acc), fill=1))
        else:
            self.temperature = [temperature] * len(self.hidden)
        size = max(self.sizes, default=0) * self.ids
        self._product = product_memory(size, self.acc, hidden.device)
        self._scratch = hidden.new_empty(size, dtype=self.acc)

    def blocks(self, x: torch.Tensor, fill: float = 0) -> list[torch.Tensor]:
        """``x`` [T, ...] in blocks of tokens; on a CPU the last one is padded with ``fill``."""
        blocks, start = [], 0
        for size in self.sizes:
            block = x[start : start + size]
            if len(block) < size:
                last = x.new_full((size, *x.shape[1:]), fill)
                last[: len(block)] = block
                block = last
            blocks.append(block)
            start += size
        return blocks

    def starts(self) -> range:
        """The first id of each tile."""
        return range(0, self.weight.shape[0], self.ids)

    def weight_tile(self, start: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A tile of ``weight`` as the GEMM takes it, and of ``bias``."""
        stop = start + self.ids
        tile = self.weight[start:stop].to(self.gemm)
        bias = None if self.bias is None else self.bias[start:stop].to(self.acc)
        return tile if self.mixed else tile.to(self.acc), bias

    def scratch(self, like: torch.Tensor) -> torch.Tensor:
        """Memory for as many logits, the same for all blocks and tiles."""
        return self._scratch[: like.numel()].view_as(like)

    def raw(
        self, block: int, tile: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The raw logits of a block and a tile.

        Args:
            block: its number.
            tile: [n, D] from :meth:`weight_tile`.
            bias: [n] from the same, or None.

        Returns:
            The logits [tokens, n], and the block [tokens, D] as the GEMM took it.
        """
        x = self.hidden[block].to(self.gemm)
        if self.mixed:
            assert self._product is not None
            out = self._product[: x.shape[0] * tile.shape[0]].view(x.shape[0], -1)
            torch.mm(x, tile.t(), out_dtype=self.acc, out=out)
        else:
            x = x.to(self.acc)
            out = product(x, tile.t(), self._product)
        if bias is not None:
            out.add_(bias)
        return out, x

    def target_logits(self, block: int, targets: torch.Tensor) -> torch.Tensor:
        """Each token's target logit, but for the order of the GEMM's sums."""
        x = self.hidden[block].to(self.gemm).to(self.acc)
        targets = targets.clamp(0, len(self.weight) - 1)
        raw = (x * self.weight.index_select(0, targets).to(self.gemm)).sum(1)
        if self.bias is not None:
            raw += self.bias[targets].to(self.acc)
        return self.logits(raw[:, None], block)[:, 0]

    def logits(self, raw: torch.Tensor, block: int) -> torch.Tensor:
        """Softcap, then temperature, in place."""
        capped(raw, self.softcap)
        temperature = self.temperature[block]
        if isinstance(temperature, torch.Tensor):
            raw.div_(temperature[:, None])
        elif temperature != 1.0:
            raw.div_(temperature)
        return raw


def forward(call: HeadCall) -> tuple[SoftmaxStats, TopEntries | None]:
    """Statistics of every token, 0 where masked, and the top entries of the unmasked tokens."""
    unmasked = call.unmasked()
    index = unmasked_tokens(unmasked)
    stats, top = exact_statistics(call.local().select(index))
    return spread(stats, index, unmasked), top


def exact_statistics(call: HeadCall) -> tuple[SoftmaxStats, TopEntries | None]:
    """Statistics and top entries of every token.

    Args:
        call: of tokens that are all computed, with targets relative to the shard's first id.
    """
    top = None
    if call.entries:
        top = TopEntries.empty(len(call.hidden), call.entries, call.hidden, call.accumulator)
        top = top._replace(mass=top.logits.new_zeros(len(call.weight)))
    return _statistics(call, top), top


def capped(raw: torch.Tensor, softcap: float | None) -> None:
    """Softcap in place, if there is one.

    Args:
        raw: logits; one of -inf stays impossible, see the reference.
        softcap: of the rule.
    """
    if softcap is not None:
        masked = raw == float("-inf")
        raw.div_(softcap).tanh_().mul_(softcap).masked_fill_(masked, float("-inf"))


def logits_of(
    raw: torch.Tensor, row: torch.Tensor, ids: torch.Tensor, call: HeadCall
) -> torch.Tensor:
    """[N] logits of single entries from their raw products, in place.

    Args:
        raw: [N] products of hidden states and weight.
        row: [N] int64, the token of each.
        ids: [N] int64.
        call: of the tokens.
    """
    if call.bias is not None:
        raw += call.bias.to(raw.dtype).index_select(0, ids)
    capped(raw, call.rule.softcap)
    temperature = call.rule.temperature
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(raw.dtype).index_select(0, row)
    return raw.div_(temperature)


def _statistics(call: HeadCall, top: TopEntries | None) -> SoftmaxStats:
    """Statistics of every token; fills ``top``."""
    tiles = Tiles(call)
    softmaxes = [OnlineSoftmax(t, tiles.acc) for t in tiles.blocks(call.targets)]
    if top is not None:
        stop = 0
        for block, softmax in enumerate(softmaxes):
            first, stop = stop, stop + tiles.sizes[block]
            estimate = tiles.target_logits(block, softmax.targets)
            if call.shard is not None:
                here = is_local(softmax.targets, len(call.weight))
                estimate = call.shard.total(torch.where(here, estimate, 0))
            softmax.collector = Collector(top.block(first, stop), estimate)
    for start in tiles.starts():
        tile, bias = tiles.weight_tile(start)
        for block, softmax in enumerate(softmaxes):
            z = tiles.logits(tiles.raw(block, tile, bias)[0], block)
            softmax.update(z, start, tiles.scratch(z))
            del z  # the next product needs its memory
    if not softmaxes:
        return SoftmaxStats(*(call.hidden.new_zeros(0, dtype=tiles.acc) for _ in range(4)))
    for softmax in softmaxes:
        if softmax.collector is not None:
            softmax.collector.finish()
    states = zip(*(softmax.state() for softmax in softmaxes), strict=True)
    state = SoftmaxState(*(torch.cat(column) for column in states))
    if call.shard is not None:
        targets = torch.cat([softmax.targets for softmax in softmaxes])
        state = call.shard.merged(state, is_local(targets, len(call.weight)))
    return SoftmaxStats(*(s[: tiles.total] for s in finish(state)))
