"""Kernels for reinforcement learning of language models: log-probs, advantages, policy loss.

Every operation has three forms behind one signature: ``reference`` (plain eager PyTorch, the
specification), ``portable`` (tiled PyTorch, any device) and ``triton``. ``backend=None`` takes the
fastest that is there. Packed batches follow flash-attention's ``cu_seqlens`` convention, see
:mod:`siri_kernels.varlen`.
"""

from __future__ import annotations

from siri_kernels import varlen
from siri_kernels.group_advantages import GroupAdvantages, group_advantages
from siri_kernels.linear_logprob import (
    LogprobHead,
    LogprobOutput,
    linear_logprob,
    release_screens,
    selective_logprob,
    take_backward_stats,
    take_forward_stats,
)
from siri_kernels.policy_loss import PolicyLoss, policy_loss

__version__ = "0.1.0"

__all__ = [
    "GroupAdvantages",
    "LogprobHead",
    "LogprobOutput",
    "PolicyLoss",
    "group_advantages",
    "linear_logprob",
    "policy_loss",
    "release_screens",
    "selective_logprob",
    "take_backward_stats",
    "take_forward_stats",
    "varlen",
]
