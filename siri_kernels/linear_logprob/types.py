"""Results of the log-prob operations and of their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class LogprobOutput(NamedTuple):
    """Log-prob of the target and entropy of the distribution, in nats, one per token.

    Both are float32 (float64 for float64 inputs), shaped as the targets, and differentiable. Tokens
    whose target is ``ignore_index`` are 0 in both.

    Attributes:
        logprobs: [...] log-prob of each target.
        entropy: [...] entropy of each distribution.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor


class SoftmaxStats(NamedTuple):
    """Statistics of each token's softmax; backward recomputes any part of it from them.

    Attributes:
        logprobs: [T] log-prob of the target.
        entropy: [T] entropy, in nats.
        max: [T] largest logit, in the backend's unit (see
            :class:`siri_kernels.linear_logprob.online_softmax.SoftmaxState`).
        log_sum: [T] log of the sum of exp(logit - max), after the temperature.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor
    max: torch.Tensor
    log_sum: torch.Tensor


class Needed(NamedTuple):
    """Which gradients backward has to compute.

    Attributes:
        hidden: that of ``hidden``.
        weight: that of ``weight``.
        bias: that of ``bias``.
    """

    hidden: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients of the inputs; None where not needed.

    Attributes:
        hidden: [T, D].
        weight: [V, D].
        bias: [V].
    """

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


Upstream = tuple["torch.Tensor | None", ...]  # [T] gradients of the log-probs and of the entropy


@dataclass(frozen=True)
class LogitRule:
    """From the raw product to the logits: ``softcap * tanh(raw / softcap) / temperature``.

    A raw logit of -inf, as that of a masked id, stays -inf.

    Attributes:
        temperature: a number, or [T] one per token.
        softcap: a number, or None: no cap.
    """

    temperature: float | torch.Tensor = 1.0
    softcap: float | None = None

    def select(self, index: torch.Tensor | None) -> LogitRule:
        """The rule of the tokens ``index`` (None: all of them)."""
        if index is None or not isinstance(self.temperature, torch.Tensor):
            return self
        return LogitRule(self.temperature.index_select(0, index), self.softcap)


def select(index: torch.Tensor | None, *tensors: Any) -> tuple[Any, ...]:
    """The tokens ``index`` of each tensor (None: all of them); None stays None."""
    return tensors if index is None else tuple(t if t is None else t[index] for t in tensors)
