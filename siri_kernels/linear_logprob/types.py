"""What goes in and comes out of the log-prob operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class LogprobOutput(NamedTuple):
    """Log-prob of the target and entropy of the distribution, in nats, one per token.

    Both are float32 (float64 for float64 inputs), shaped as the targets, and differentiable. Tokens
    whose target is ``ignore_index`` are 0 in both.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor


class SoftmaxStats(NamedTuple):
    """What the forward pass knows of each row's softmax; enough to recompute any part of it."""

    logprobs: torch.Tensor  # of the target
    entropy: torch.Tensor
    max: torch.Tensor  # largest logit, in the backend's unit (softmax_fold.FoldState)
    log_sum: torch.Tensor  # log of sum exp(logit - max), after the temperature


@dataclass(frozen=True)
class LogitRule:
    """From the raw product to the logits: ``softcap * tanh(raw / softcap) / temperature``.

    A raw logit of -inf, as that of a masked id, stays -inf.
    """

    temperature: float | torch.Tensor = 1.0  # number, or one per row
    softcap: float | None = None

    def rows(self, index: torch.Tensor | None) -> LogitRule:
        """The rule of some of the rows."""
        if index is None or not isinstance(self.temperature, torch.Tensor):
            return self
        return LogitRule(self.temperature[index], self.softcap)


def select(index: torch.Tensor | None, *tensors: Any) -> tuple[Any, ...]:
    """The rows ``index`` of each tensor (None: all of them); None stays None."""
    return tensors if index is None else tuple(t if t is None else t[index] for t in tensors)
