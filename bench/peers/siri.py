"""This library."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from bench.peers.base import Contender, Where
from siri_kernels import linear_logprob


def _call(hidden: Tensor, weight: Tensor, targets: Tensor, tail: float, backend: str | None):
    return linear_logprob(hidden, weight, targets, tail=tail, backend=backend).logprobs


def certified(where: Where) -> Contender:
    """As it comes."""
    return Contender(
        partial(_call, tail=1e-2, backend=where.backend),
        "linear_logprob(tail=1e-2), its default; entropy computed too, gradient of the log-prob",
        gate=(1.0, "bfloat16"),
        masks=True,
    )


def exact(where: Where) -> Contender:
    """Every row recomputed in backward."""
    return Contender(
        partial(_call, tail=0.0, backend=where.backend),
        "linear_logprob(tail=0); entropy computed too, gradient of the log-prob",
        gate=(2.0, "same"),
        masks=True,
    )
