"""The policy loss over packed tokens in PyTorch, value and gradient in one pass.

Block by block of tokens, so that what lies between input and gradient stays in the cache and costs
no memory. Nothing here reads a tensor's value on the host; every sum has one order.
float64 is used for float64 log-probs alone: there are devices without it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from siri_kernels.policy_loss import objectives
from siri_kernels.policy_loss.types import LossInputs, LossOptions, metric_names, over_zero

BLOCK = 1 << 15
# Tokens of one running sum: sums of 32 768 would lose digits that a sequence's mean needs.
PIECE = 256


class LossAndGradient(NamedTuple):
    """Loss, gradients without their common factor, and metrics.

    Args:
        loss: 0-d.
        d_logprobs: [T], to be multiplied by ``scale``.
        d_entropy: [T], to be multiplied by ``scale``; None: no entropy bonus.
        scale: 0-d or a number.
        metrics: by name, 0-d.
    """

    loss: torch.Tensor
    d_logprobs: torch.Tensor
    d_entropy: torch.Tensor | None
    scale: torch.Tensor | float
    metrics: dict[str, torch.Tensor]


class _Block:
    """The tokens ``start`` to ``stop``: inputs, with zeros at masked tokens."""

    def __init__(self, x: LossInputs, start: int, stop: int) -> None:
        self._x, self._start, self._stop = x, start, stop
        self.size = stop - start
        self._whole = self.size == len(x.logprobs)
        self.mask = None if x.mask is None else x.mask[start:stop]
        self._ids: torch.Tensor | None = None
        self._pieces: tuple[torch.Tensor, torch.Tensor] | None = None
        self.logprobs = self.read(x.logprobs)
        self.old = self.read(x.old_logprobs)
        if x.advantage_per_token:
            self.advantages = self.read(x.advantages)
        else:
            self.advantages = self.unmasked(self.spread(x.advantages.to(x.dtype)))

    def _offsets(self) -> torch.Tensor:
        """[B+1] int64: where sequences begin and end within the block."""
        offsets = self._x.cu_seqlens.long()
        return offsets if self._whole else offsets.clamp(self._start, self._stop) - self._start

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """[T] -> [n]."""
        if not self._whole:
            values = values[self._start : self._stop]
        return self.unmasked(values.detach().to(self._x.dtype))

    def unmasked(self, values: torch.Tensor) -> torch.Tensor:
        # where, not a product: infinity and NaN outside the mask must not come through.
        return values if self.mask is None else torch.where(self.mask, values, 0)

    def spread(self, per_sequence: torch.Tensor) -> torch.Tensor:
        """[B] -> [n]."""
        if len(per_sequence) == 1:
            return per_sequence.expand(self.size)
        if self._ids is None:
            sizes = self._offsets().diff()
            self._ids = torch.repeat_interleave(sizes, output_size=self.size)
        return per_sequence.index_select(0, self._ids)

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """[n] -> [B]: sums of pieces, then sums of these.

        Pieces end at the ends of sequences and after every PIECE tokens.
        """
        if self._pieces is None:
            offsets = self._offsets()
            device = offsets.device
            every = torch.arange(0, self.size, PIECE, dtype=torch.int64, device=device)
            bounds = torch.cat([offsets, every]).sort().values
            self._pieces = bounds, torch.searchsorted(bounds, offsets)
        bounds, pieces = self._pieces
        return _segment_sums(_segment_sums(values.to(self._x.dtype), bounds), pieces)


def _segment_sums(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """[n], [m+1] -> [m]."""
    # unsafe: without it torch reads the offsets back to check them.
    return torch.segment_reduce(values, "sum", offsets=offsets, unsafe=True, initial=0)


def policy_loss(x: LossInputs, options: LossOptions) -> LossAndGradient:
    """Loss, its gradient with respect to logprobs and entropy, and metrics."""
    total, device = len(x.logprobs), x.logprobs.device
    sequences = _per_sequence(x, options)
    d_logprobs = torch.empty(total, dtype=x.dtype, device=device)
    d_entropy = torch.empty_like(d_logprobs) if options.entropy_coef != 0 else None
    names = metric_names(x, options.off_policy_threshold is not None)
    found: list[dict[str, torch.Tensor]] = []  # sums of each block

    for start, stop in _blocks(x):
        block = _Block(x, start, stop)
        sums: dict[str, torch.Tensor] = {}
        found.append(sums)
        loss, slope = _losses(x, options, block, sequences, sums)
        if x.entropy is not None:
            entropy = block.read(x.entropy)
            sums["entropy"] = entropy.sum()
            if options.entropy_coef != 0:
                loss = loss - options.entropy_coef * entropy
        slope = block.unmasked(slope)
        weight: torch.Tensor | float = 1.0
        if options.aggregation == "seq-mean-token-mean":
            weight = block.spread(sequences["weight"])
            loss = loss * weight
            slope = slope * weight
        sums["loss"] = loss.sum()
        if len(slope) == total:
            d_logprobs = slope
        else:
            d_logprobs[start:stop] = slope
        if d_entropy is not None:
            ones = block.unmasked(torch.ones_like(slope))
            torch.mul(ones, -options.entropy_coef * weight, out=d_entropy[start:stop])

    if x.mask is None:
        tokens = torch.full((), float(total), dtype=x.dtype, device=device)
    else:
        tokens = x.mask.count_nonzero().to(x.dtype)
    at_least_one = tokens if x.mask is None and total else tokens.clamp(min=1)
    divisor: float | torch.Tensor
    if options.denominator is not None:
        divisor = options.denominator
        if isinstance(divisor, torch.Tensor):
            divisor = over_zero(divisor.to(x.dtype))
    elif options.aggregation.startswith("seq-mean"):
        divisor = (sequences["count"] > 0).sum().clamp(min=1).to(x.dtype)
    else:
        divisor = at_least_one
    loss, metrics = _added(found, names, tokens, at_least_one)
    return LossAndGradient(loss / divisor, d_logprobs, d_entropy, 1 / divisor, metrics)


def _added(
    found: list[dict[str, torch.Tensor]],
    names: list[str],
    tokens: torch.Tensor,
    at_least_one: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum of the loss, and the metrics, from the sums of each block.

    Args:
        found: by name, 0-d, for each block; a metric that is missing is 0.
        names: of the metrics.
        tokens: how many are unmasked, 0-d.
        at_least_one: the same, and 1 in place of 0.
    """
    zero = torch.zeros_like(tokens)
    summed = [name for name in names if name not in ("tokens", "ratio_max")]
    rows = [
        torch.stack([sums.get(name, zero).to(zero.dtype) for name in ("loss", *summed)])
        for sums in found
    ]
    if not rows:
        rows = [zero.expand(1 + len(summed))]
    total = rows[0] if len(rows) == 1 else torch.stack(rows).sum(0)
    metrics = dict(zip(summed, (total[1:] / at_least_one).unbind(), strict=True))
    largest = [sums["ratio_max"] for sums in found]
    if len(largest) > 1:
        largest = [torch.stack(largest).max()]
    metrics["ratio_max"], metrics["tokens"] = (largest or [zero])[0], tokens
    return total[0], {name: metrics[name] for name in names}


def _blocks(x: LossInputs) -> list[tuple[int, int]]:
    total = len(x.logprobs)
    size = max(BLOCK, x.sequences)  # a block's cost grows with the number of sequences too
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def _per_sequence(x: LossInputs, options: LossOptions) -> dict[str, torch.Tensor]:
    """Values of whole sequences [B] by name; none that no option needs."""
    by_sequence = options.aggregation.startswith("seq-mean")
    if not (by_sequence or options.needs_sequences):
        return {}
    count = x.cu_seqlens.diff().to(x.dtype)
    by_weight = options.correction is not None and options.correction.level != "token"
    names = ["log_ratio"] * options.sequence_ratio + ["gap"] * by_weight
    names += ["drift"] * (options.off_policy_threshold is not None)
    if names or (x.mask is not None and by_sequence):
        sums = {name: torch.zeros_like(count) for name in ("count", *names)}
        for start, stop in _blocks(x):
            block = _Block(x, start, stop)
            for name, values in _to_be_summed(x, options, block, names).items():
                sums[name] += block.sums(values)
        if x.mask is not None:
            count = sums["count"]
        divisor = count.clamp(min=1)
        out = {name: sums[name] / divisor for name in names}
        if by_weight and options.correction.level == "sequence":  # type: ignore[union-attr]
            out["gap"] = sums["gap"]
    else:
        out, divisor = {}, count.clamp(min=1)
    out["count"], out["weight"] = count, 1 / divisor
    return out


def _to_be_summed(
    x: LossInputs, options: LossOptions, block: _Block, names: list[str]
) -> dict[str, torch.Tensor]:
    values = {}
    if block.mask is not None:
        values["count"] = block.mask
    if "log_ratio" in names:
        ratio, _ = objectives.log_ratio(block.logprobs, block.old)
        if options.objective == "gmpo":
            ratio, _, _ = objectives.one_sided(ratio, block.advantages, options)
        values["log_ratio"] = ratio
    if "gap" in names:
        assert x.rollout_logprobs is not None
        values["gap"] = objectives.evidence(
            objectives.finite(block.old), block.read(x.rollout_logprobs)
        )
    if "drift" in names:
        sampler = x.old_logprobs if x.rollout_logprobs is None else x.rollout_logprobs
        values["drift"] = -objectives.evidence(block.logprobs, block.read(sampler))
    return values


def _losses(
    x: LossInputs,
    options: LossOptions,
    block: _Block,
    sequences: dict[str, torch.Tensor],
    sums: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each token but for the entropy bonus, and its derivative; adds to the metrics."""

    def note(name: str, values: torch.Tensor) -> None:
        sums[name] = block.unmasked(values).sum()

    def note_zeros(name: str, values: torch.Tensor) -> None:
        """For values that are 0 at masked tokens, because all their inputs are."""
        sums[name] = values.count_nonzero() if values.dtype == torch.bool else values.sum()

    log_ratio, raw = objectives.log_ratio(block.logprobs, block.old)
    note_zeros("approx_kl", log_ratio.expm1() - log_ratio)
    if options.sequence_ratio:
        ratio = block.spread(sequences["log_ratio"].exp())
    else:
        ratio = log_ratio.exp()
    unmasked_ratio = block.unmasked(ratio)
    sums["ratio_mean"] = unmasked_ratio.sum()
    sums["ratio_max"] = unmasked_ratio.max()
    loss, slope, clipped_low, clipped_high = objectives.objective(
        log_ratio, raw, ratio, block.advantages, block.logprobs, options
    )
    if clipped_low is not None and clipped_high is not None:
        # These two are False where the advantage is 0.
        counts = note_zeros if options.objective in ("clip", "gmpo") else note
        counts("clip_frac_low", clipped_low)
        counts("clip_frac_high", clipped_high)

    if x.rollout_logprobs is not None:
        gap = objectives.evidence(objectives.finite(block.old), block.read(x.rollout_logprobs))
        note_zeros("rollout_kl", gap.expm1() - gap)
        if options.correction is None:
            note("rollout_weight_mean", gap.exp_())
        else:
            if options.correction.level == "token":
                weight = objectives.correction_weight(gap, options.correction)
            else:
                weight = objectives.correction_weight(sequences["gap"], options.correction)
                weight = block.spread(weight)
            note("rollout_weight_mean", weight)
            loss, slope = loss * weight, slope * weight
    if options.off_policy_threshold is not None:
        far = block.spread(sequences["drift"] > options.off_policy_threshold)
        dropped = (block.advantages < 0).logical_and_(far)
        note_zeros("off_policy_frac", dropped)
        loss, slope = loss.masked_fill(dropped, 0), slope.masked_fill(dropped, 0)

    if x.ref_logprobs is not None:
        kl, d_kl, both = objectives.kl(block.logprobs, block.read(x.ref_logprobs), options)
        if options.kl_unbiased:
            weight = log_ratio.exp()
            kl, d_kl = weight * kl, weight * torch.where(log_ratio == raw, both, d_kl)
        note_zeros("ref_kl", kl)
        if options.with_kl:
            loss, slope = loss + options.kl_coef * kl, slope + options.kl_coef * d_kl
    return loss, slope
