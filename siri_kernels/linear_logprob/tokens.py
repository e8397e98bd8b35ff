"""Which tokens are computed: the unmasked ones forward, those with a gradient backward."""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.types import SoftmaxStats


def unmasked_tokens(unmasked: torch.Tensor) -> torch.Tensor | None:
    """Indices of the unmasked tokens; None: take all (reading the mask would wait for a GPU)."""
    if unmasked.device.type != "cpu" or bool(unmasked.all()):
        return None
    return unmasked.nonzero()[:, 0]


def with_gradient(unmasked: torch.Tensor, *upstream: torch.Tensor | None) -> torch.Tensor:
    """[T] bool: unmasked tokens with an incoming gradient that is not 0 (NaN is not 0)."""
    active = torch.zeros_like(unmasked)
    for grad in upstream:
        if grad is not None:
            active |= grad != 0
    active &= unmasked
    return active


def tokens_with_gradient(
    unmasked: torch.Tensor, *upstream: torch.Tensor | None
) -> torch.Tensor | None:
    """Indices of the tokens of :func:`with_gradient`; None: all of them."""
    index = with_gradient(unmasked, *upstream).nonzero()[:, 0]
    return None if len(index) == len(unmasked) else index


def spread(stats: SoftmaxStats, index: torch.Tensor | None, unmasked: torch.Tensor) -> SoftmaxStats:
    """Statistics of the computed tokens in the places of all tokens, 0 where masked.

    Args:
        stats: of the computed tokens.
        index: their places; None: all tokens were computed.
        unmasked: [T] bool.
    """
    if index is None:
        masked = ~unmasked
        return SoftmaxStats(*(s.masked_fill(masked, 0) for s in stats))
    return SoftmaxStats(*(s.new_zeros(unmasked.shape).index_copy_(0, index, s) for s in stats))
