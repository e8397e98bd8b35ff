"""The policy loss as a loop over sequences, differentiated by autograd: the specification."""

from __future__ import annotations

import torch

from siri_kernels.policy_loss.types import LOG_RATIO_LIMIT, LossInputs, LossOptions, PolicyLoss


def policy_loss(x: LossInputs, options: LossOptions) -> PolicyLoss:
    bounds = x.cu_seqlens.tolist()
    # Per non-empty sequence: the loss of its counted tokens.
    losses: list[torch.Tensor] = []
    seen: dict[str, list[torch.Tensor]] = {}
    for i, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        tokens = torch.arange(start, stop, device=x.logprobs.device)
        if x.mask is not None:
            tokens = tokens[x.mask[start:stop]]
        if len(tokens):
            advantage = x.advantages[tokens if x.advantage_per_token else i].detach()
            losses.append(_sequence(x, options, tokens, advantage.to(x.dtype), seen))
    if not losses:
        zero = x.logprobs.new_zeros((), dtype=x.dtype)
        # A sum over no token: zero, with a gradient of zeros.
        loss = x.logprobs[:0].to(x.dtype).sum()
        if x.entropy is not None:
            loss = loss + x.entropy[:0].to(x.dtype).sum()
        names = ["clip_frac_low", "clip_frac_high", "ratio_mean", "ratio_max", "approx_kl"]
        names += ["tokens"] + ["entropy"] * (x.entropy is not None)
        names += ["rollout_kl", "rollout_weight_mean"] * (x.rollout_logprobs is not None)
        return PolicyLoss(loss, dict.fromkeys(names, zero))

    token_count, sequence_count = sum(len(loss) for loss in losses), len(losses)
    if options.aggregation == "seq-mean-token-mean":
        total, count = sum(loss.mean() for loss in losses), sequence_count
    elif options.aggregation == "seq-mean-token-sum":
        total, count = sum(loss.sum() for loss in losses), sequence_count
    else:
        total, count = sum(loss.sum() for loss in losses), token_count
    divisor = count if options.denominator is None else options.denominator
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
    seen: dict[str, list[torch.Tensor]],
) -> torch.Tensor:
    """Losses of the counted tokens of a sequence; appends what the metrics are means of."""

    def note(name: str, values: torch.Tensor) -> None:
        seen.setdefault(name, []).append(values)

    limit = LOG_RATIO_LIMIT
    logprobs = x.logprobs[tokens].to(x.dtype)
    old = x.old_logprobs[tokens].detach().to(x.dtype)
    log_ratio = logprobs - old
    if options.ratio == "token":
        ratio = log_ratio.clamp(-limit, limit).exp()
    else:
        # GSPO-token: the value is the sequence's, the gradient of each token its own.
        mean = log_ratio.mean().detach()
        ratio = (mean + logprobs - logprobs.detach()).clamp(-limit, limit).exp()
    low, high = 1 - options.clip_low, 1 + options.clip_high
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))
    if options.dual_clip is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * options.dual_clip), loss)
    note("clip_frac_low", ((ratio < low) & (advantage < 0)).to(x.dtype))
    note("clip_frac_high", ((ratio > high) & (advantage > 0)).to(x.dtype))
    note("ratio_mean", ratio)
    note("ratio_max", ratio)
    token_log_ratio = log_ratio.clamp(-limit, limit)
    note("approx_kl", token_log_ratio.expm1() - token_log_ratio)

    if x.ref_logprobs is not None and options.kl_coef != 0:
        delta = logprobs - x.ref_logprobs[tokens].detach().to(x.dtype)
        delta = delta.clamp(-limit, limit)
        if options.kl_estimator == "k1":
            kl = delta
        elif options.kl_estimator == "k2":
            kl = delta.square() / 2
        else:
            kl = (-delta).expm1() + delta
        loss = loss + options.kl_coef * kl
    if x.entropy is not None:
        entropy = x.entropy[tokens].to(x.dtype)
        note("entropy", entropy)
        if options.entropy_coef != 0:
            loss = loss - options.entropy_coef * entropy
    if x.rollout_logprobs is not None:
        gap = old - x.rollout_logprobs[tokens].detach().to(x.dtype)
        gap = gap.clamp(-limit, limit)
        note("rollout_kl", gap.expm1() - gap)
        note("rollout_weight_mean", gap.exp())
    return loss
