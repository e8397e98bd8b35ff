"""``policy_loss`` of padded batches, for trainers that do not pack."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels.policy_loss import PolicyLoss, policy_loss


def padded_policy_loss(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    rollout: torch.Tensor | None = None,
    ref: torch.Tensor | None = None,
    **options: Any,
) -> PolicyLoss:
    """:func:`siri_kernels.policy_loss` of a padded batch; padding is masked, not copied.

    Args:
        logprobs: [B, L].
        old: [B, L].
        advantages: [B, L].
        mask: [B, L], true or 1 at unmasked tokens.
        rollout: [B, L], or None.
        ref: [B, L], or None.
        **options: of ``policy_loss``.
    """
    rows, length = logprobs.shape
    cu_seqlens = torch.arange(rows + 1, dtype=torch.int32, device=logprobs.device) * length

    def flat(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.expand_as(logprobs).reshape(-1)

    return policy_loss(
        logprobs.reshape(-1),
        flat(old),  # type: ignore[arg-type]
        flat(advantages),  # type: ignore[arg-type]
        cu_seqlens,
        mask=(mask > 0).expand_as(logprobs).reshape(-1),
        rollout_logprobs=flat(rollout),
        ref_logprobs=flat(ref),
        **options,
    )
