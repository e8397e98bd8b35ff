"""Log-prob and entropy in plain eager PyTorch: the specification, and the oracle of the tests.

Stores all logits. Runs in float64 when given float64, else in float32, and is differentiated by
autograd, also twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from siri_kernels.linear_logprob.types import LogitRule, LogprobOutput


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    rule: LogitRule,
    ignore_index: int,
) -> LogprobOutput:
    """Log-prob of each target and entropy of each distribution.

    Args:
        hidden: [T, D].
        weight: [V, D].
        targets: [T] int64.
        bias: [V], or None.
        rule: softcap and temperature.
        ignore_index: targets with this value are masked.
    """
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    tokens = (targets != ignore_index).nonzero()[:, 0]
    raw = F.linear(
        hidden[tokens].to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    )
    return _scatter(_from_raw(raw, targets[tokens], rule.select(tokens)), tokens, len(targets))


def selective_logprob(
    logits: torch.Tensor, targets: torch.Tensor, rule: LogitRule, ignore_index: int
) -> LogprobOutput:
    """Log-prob of each target and entropy of each distribution, from logits.

    Args:
        logits: [T, V].
        targets: [T] int64.
        rule: softcap and temperature.
        ignore_index: targets with this value are masked.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    tokens = (targets != ignore_index).nonzero()[:, 0]
    raw = logits[tokens].to(dtype)
    return _scatter(_from_raw(raw, targets[tokens], rule.select(tokens)), tokens, len(targets))


def _from_raw(raw: torch.Tensor, targets: torch.Tensor, rule: LogitRule) -> LogprobOutput:
    logits = raw
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
        # A masked id stays impossible: the cap alone would give it the finite logit -softcap.
        logits = logits.masked_fill(raw == float("-inf"), float("-inf"))
    temperature = rule.temperature
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(logits.dtype)[:, None]
    logits = logits / temperature
    if logits.shape[1] == 1:  # one token: certain of it, whatever its logit (NaN stays NaN)
        zero = logits[:, 0] - logits[:, 0]
        return LogprobOutput(zero, zero)
    target = targets[:, None]
    # log p = -log(1 + exp(lse of the others - z)): right to the last bit where lse - z would be 0.
    others = logits.scatter(1, target, float("-inf"))
    # All others impossible: the gradient of logsumexp would be NaN.
    alone = (others == float("-inf")).all(1)
    others = others.masked_fill(alone[:, None], 0).logsumexp(1).masked_fill(alone, float("-inf"))
    gap = others - logits.gather(1, target)[:, 0]
    logprobs = -torch.logaddexp(gap, torch.zeros_like(gap))
    log_softmax = torch.log_softmax(logits, 1)
    # A token of probability 0 adds nothing (0 * -inf would be NaN).
    entropy = -(log_softmax.exp() * log_softmax.clamp(min=-1e4)).sum(1)
    return LogprobOutput(logprobs, entropy)


def _scatter(out: LogprobOutput, tokens: torch.Tensor, total: int) -> LogprobOutput:
    """Unmasked tokens to their places among ``total``, zeros elsewhere."""
    return LogprobOutput(*(values.new_zeros(total).index_put((tokens,), values) for values in out))
