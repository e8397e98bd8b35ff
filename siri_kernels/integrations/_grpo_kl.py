"""GSPO's KL term with ``use_bias_correction_kl``: tokens' estimates times a sequence's ratio."""

from __future__ import annotations

import torch


def corrected_sequence_kl(
    loss_type: str,
    logprobs: torch.Tensor,
    old: torch.Tensor | None,
    ref: torch.Tensor,
    mask: torch.Tensor,
    denominator: float | torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """TRL's and Liger's term, whose gradient also passes through the ratio, without ``beta``.

    ``policy_loss`` corrects tokens by their own ratios only.

    Args:
        loss_type: decides how tokens are summed, as in :func:`._grpo.grpo_loss`.
        logprobs: [B, L].
        old: [B, L], or None: ``logprobs`` themselves, ratio 1.
        ref: [B, L].
        mask: [B, L] bool.
        denominator: of the aggregation; None: this call's tokens. 0: the term and its gradient
            are 0, as those of ``policy_loss``.

    Returns:
        The aggregated term, 0-d, and the mean over unmasked tokens, detached.
    """
    before = logprobs.detach() if old is None else old
    # Masked positions may hold anything, infinities too, whose gradient would be NaN.
    change = (logprobs - before).masked_fill(~mask, 0.0)
    gap = (ref - logprobs).masked_fill(~mask, 0.0)
    tokens = mask.sum(1).clamp(min=1)
    ratio = (change.sum(1) / tokens).exp()[:, None]
    kl = (gap.exp() - gap - 1) * ratio  # 0 where masked
    if loss_type in ("grpo", "sapo"):
        total = (kl.sum(1) / tokens).sum()
    else:
        total = kl.sum()
    count = mask.sum().clamp(min=1)
    by = count if denominator is None else denominator
    if isinstance(by, torch.Tensor):
        by = by.float()
        by = by.masked_fill(by == 0, float("inf"))
    else:
        by = by or float("inf")
    return total / by, kl.detach().sum() / count
