"""The policy loss as a loop over sequences, differentiated by autograd: the specification."""

from __future__ import annotations

import torch

from siri_kernels.policy_loss.formulas import OBJECTIVES
from siri_kernels.policy_loss.types import (
    LARGE,
    LOG_RATIO_LIMIT,
    LossInputs,
    LossOptions,
    PolicyLoss,
    metric_names,
    over_zero,
)

Seen = dict[str, list[torch.Tensor]]


def policy_loss(x: LossInputs, options: LossOptions) -> PolicyLoss:
    """Loss and metrics in plain PyTorch; the loss is differentiable any number of times."""
    bounds = x.cu_seqlens.tolist()
    # Per non-empty sequence: the losses of its unmasked tokens.
    losses: list[torch.Tensor] = []
    seen: Seen = {}
    for i, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        tokens = torch.arange(start, stop, dtype=torch.int64, device=x.logprobs.device)
        if x.mask is not None:
            tokens = tokens[x.mask[start:stop]]
        if len(tokens):
            advantage = x.advantages[tokens if x.advantage_per_token else i].detach()
            advantage = advantage.to(x.dtype).expand(len(tokens))
            losses.append(_sequence(x, options, tokens, advantage, seen))
    if not losses:
        zero = x.logprobs.new_zeros((), dtype=x.dtype)
        # A sum over no token: zero, with a gradient of zeros.
        loss = x.logprobs[:0].to(x.dtype).sum()
        if x.entropy is not None:
            loss = loss + x.entropy[:0].to(x.dtype).sum()
        names = metric_names(x, options.off_policy_threshold is not None)
        return PolicyLoss(loss, dict.fromkeys(names, zero))

    token_count, sequence_count = sum(len(loss) for loss in losses), len(losses)
    if options.aggregation == "seq-mean-token-mean":
        total, count = sum(loss.mean() for loss in losses), sequence_count
    elif options.aggregation == "seq-mean-token-sum":
        total, count = sum(loss.sum() for loss in losses), sequence_count
    else:
        total, count = sum(loss.sum() for loss in losses), token_count
    divisor = count if options.denominator is None else options.denominator
    if isinstance(divisor, torch.Tensor):
        divisor = over_zero(divisor.to(x.dtype))
    values = {name: torch.cat(parts).detach() for name, parts in seen.items()}
    metrics = {name: v.max() if name == "ratio_max" else v.mean() for name, v in values.items()}
    metrics["tokens"] = x.logprobs.new_tensor(float(token_count), dtype=x.dtype)
    assert isinstance(total, torch.Tensor)
    return PolicyLoss(total / divisor, metrics)


def _sequence(
    x: LossInputs,
    options: LossOptions,
    tokens: torch.Tensor,
    advantage: torch.Tensor,
    seen: Seen,
) -> torch.Tensor:
    """Losses of the unmasked tokens of a sequence; appends to ``seen`` for the metrics."""

    def note(name: str, values: torch.Tensor) -> None:
        seen.setdefault(name, []).append(values.to(x.dtype).expand(len(tokens)))

    logprobs = x.logprobs[tokens].to(x.dtype)
    old = _constant(x.old_logprobs, tokens, x.dtype)
    log_ratio = _limited(logprobs - old)
    note("approx_kl", log_ratio.expm1() - log_ratio)
    ratio = _ratio(log_ratio, advantage, options)
    note("ratio_mean", ratio)
    note("ratio_max", ratio)
    clipped_low, clipped_high = _clipped(log_ratio, ratio, advantage, options)
    note("clip_frac_low", clipped_low)
    note("clip_frac_high", clipped_high)

    loss = OBJECTIVES[options.objective].formula(logprobs, ratio, advantage, options)
    if x.rollout_logprobs is not None:
        gap = _evidence(old, x.rollout_logprobs, tokens)
        note("rollout_kl", gap.expm1() - gap)
        weight = _weight(gap, options)
        note("rollout_weight_mean", weight)
        if options.correction is not None:
            loss = loss * weight
    if options.off_policy_threshold is not None:
        sampler = x.old_logprobs if x.rollout_logprobs is None else x.rollout_logprobs
        drift = -_evidence(logprobs.detach(), sampler, tokens).mean()
        dropped = (advantage < 0) & (drift > options.off_policy_threshold)
        note("off_policy_frac", dropped)
        loss = torch.where(dropped, 0, loss)

    if x.ref_logprobs is not None:
        kl = _kl(_limited(logprobs - _constant(x.ref_logprobs, tokens, x.dtype)), options)
        if options.kl_unbiased:
            kl = kl * log_ratio.exp()
        note("ref_kl", kl)
        if options.with_kl:
            loss = loss + options.kl_coef * kl
    if x.entropy is not None:
        entropy = x.entropy[tokens].to(x.dtype)
        note("entropy", entropy)
        if options.entropy_coef != 0:
            loss = loss - options.entropy_coef * entropy
    return loss


def _ratio(log_ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions) -> torch.Tensor:
    if options.objective == "gmpo":
        low, high = options.bounds
        # One-sided: a ratio that makes the step smaller is not clipped.
        log_ratio = torch.where(
            advantage > 0,
            log_ratio.clamp(max=high),
            torch.where(advantage < 0, log_ratio.clamp(min=low), 0),
        )
    if options.sequence_ratio:
        # GSPO-token: the value is the sequence's, the gradient of each token its own.
        log_ratio = log_ratio.mean().detach() + (log_ratio - log_ratio.detach())
    return log_ratio.exp()


def _clipped(
    log_ratio: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    clipped = OBJECTIVES[options.objective].clipped
    if clipped is not None:
        return clipped(log_ratio, ratio, advantage, options)
    never = torch.zeros_like(advantage, dtype=torch.bool)
    return never, never


def _weight(gap: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """The factor of the objective; the raw weight without a correction."""
    correction = options.correction
    if correction is None:
        return gap.exp()
    if correction.level != "token":
        gap = gap.sum() if correction.level == "sequence" else gap.mean()
    weight = _limited(gap).exp()
    if correction.mode == "truncate":
        return weight.clamp(correction.low, correction.high)
    kept = (weight >= correction.low) & (weight <= correction.high)
    return torch.where(kept, weight if correction.mode == "mask" else 1, 0)


def _kl(delta: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """Estimate of KL(policy || reference) from ``delta = logprobs - ref``."""
    if options.kl_estimator == "k1":
        kl = delta
    elif options.kl_estimator == "k2":
        kl = delta.square() / 2
    else:
        kl = (-delta).expm1() + delta
    return kl if options.kl_limit is None else kl.clamp(-options.kl_limit, options.kl_limit)


def _evidence(ours: torch.Tensor, sampler: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """``ours`` minus the sampler's log-prob; 0 where the sampler reported none (NaN)."""
    return _limited(ours - _constant(sampler, tokens, ours.dtype)).nan_to_num(nan=0.0)


def _constant(values: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Without gradient and infinities."""
    return values[tokens].detach().to(dtype).clamp(-LARGE, LARGE)


def _limited(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
