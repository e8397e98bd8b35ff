"""This library."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from bench.inputs import CLIP_HIGH, CLIP_LOW, LossBatch, gradient
from bench.peers.base import Contender, Entry, Missing, Peer, Where
from siri_kernels import group_advantages, linear_logprob, policy_loss
from siri_kernels.policy_loss.compiled import compile_loop, in_use


def _call(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return linear_logprob(hidden, weight, targets, **options).logprobs


def default(where: Where) -> Contender:
    """``linear_logprob`` with its defaults."""
    return Contender(
        partial(_call, tail=1e-2, backend=where.backend),
        "linear_logprob(tail=1e-2), its default; entropy computed too, gradient of the log-prob",
        gate=(1.0, "bfloat16"),
        masks=True,
    )


def exact(where: Where) -> Contender:
    """``linear_logprob`` that recomputes every token in backward."""
    return Contender(
        partial(_call, tail=0.0, backend=where.backend),
        "linear_logprob(tail=0); entropy computed too, gradient of the log-prob",
        gate=(2.0, "same"),
        masks=True,
    )


def screened(where: Where) -> Contender:
    """``linear_logprob`` with a screen; the weight's 8-bit copy is there already.

    Raises:
        Missing: in a rehearsal, where it takes minutes.
    """
    if where.backend is not None:
        raise Missing("the interpreter takes minutes for it")
    return Contender(
        partial(_call, tail=1e-2, backend=None, screen="int8"),
        "linear_logprob(screen='int8', tail=1e-2); the weight's 8-bit copy is kept from before",
        gate=(1.0, "bfloat16"),
        masks=True,
    )


def loss(where: Where) -> Contender:
    """``policy_loss`` with all its metrics; on a CPU the compiled loop, compiled before."""
    form = ""
    if where.device.type == "cpu" and where.backend is None:
        compile_loop(wait=True)
        form = f"; the {in_use()} form"

    def call(b: LossBatch) -> Any:
        value, _ = policy_loss(b.logprobs, b.old, b.advantages, b.cu_seqlens, clip_low=CLIP_LOW,
                               clip_high=CLIP_HIGH, backend=where.backend)  # fmt: skip
        return gradient(value, b.logprobs)

    return Contender(call, f"policy_loss, defaults, nine metrics computed with the loss{form}")


def advantages(where: Where) -> Contender:
    """``group_advantages`` of equal groups, by their size."""
    return Contender(
        lambda r, size, ids: group_advantages(r, size, backend=where.backend).advantages,
        "group_advantages(rewards, size), defaults; memory that NumPy takes on a CPU is not seen",
    )


def advantages_by_id(where: Where) -> Contender:
    """``group_advantages`` of groups by ids, in any order."""
    return Contender(
        lambda r, size, ids: group_advantages(r, ids.tensor, backend=where.backend).advantages,
        "group_advantages(rewards, ids), defaults; memory that NumPy takes on a CPU is not seen",
    )


PEER = Peer(
    order=0,
    entries=(
        Entry("ours", default, ("head", "scalar"), ("few", "sweep", "growth")),
        Entry("ours, tail=0", exact, ("head", "scalar"), ("few", "sweep", "growth")),
        Entry("ours, screened", screened, ("head",), ("few", "sweep", "growth")),
        Entry("ours", loss, ("loss",), bare=True),
        Entry("ours", advantages, ("advantages",), bare=True),
        Entry("ours, ids", advantages_by_id, ("advantages",), bare=True),
    ),
)
