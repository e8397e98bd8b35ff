"""PyTorch: eager, by checkpointed chunks, compiled, and its own fused loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from bench.inputs import CLIP_HIGH, CLIP_LOW, GroupIds, LossBatch, gradient
from bench.peers.base import Contender, Entry, Missing, Peer, Where


def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probs in the plain way: all logits, softmax in at least float32.

    Args:
        hidden: [T, D].
        weight: [V, D].
        targets: [T] int64.

    Returns:
        [T], in float32 (float64 for float64 inputs).
    """
    logits = hidden @ weight.T
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def eager(where: Where) -> Contender:
    """All logits at once."""
    return Contender(logprobs, "hidden @ weight.T, log_softmax in float32, gather", (2.0, "same"))


def chunks(where: Where) -> Contender:
    """Eager by chunks of tokens, so that the logits fit.

    Raises:
        Missing: on a CPU.
    """
    if where.device.type == "cpu" and not where.triton:
        raise Missing("for GPUs, where eager's logits may not fit")

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(hidden.split(2048), targets.split(2048), strict=True)
        return torch.cat(
            [
                torch.utils.checkpoint.checkpoint(logprobs, h, weight, y, use_reentrant=False)
                for h, y in pairs
            ]
        )

    return Contender(call, "eager by chunks of 2048 tokens under torch.utils.checkpoint")


def compiled(where: Where) -> Contender:
    """The eager code under Inductor."""
    call = torch.compile(logprobs, dynamic=False)
    return Contender(call, "torch.compile(eager, dynamic=False), compiled before it is timed")


def native(where: Where) -> Contender:
    """PyTorch's own chunked loss; a sum only.

    Raises:
        Missing: this version of torch does not have it.
    """
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None:
        raise Missing(f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy")
    return Contender(
        lambda h, w, y: -function(h, w, y, reduction="sum"),
        'torch.nn.functional.linear_cross_entropy(reduction="sum"), default options',
    )


def clipped_loss(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """The formula alone, a mean over all tokens without metrics.

    Args:
        logprobs: [T].
        old: [T], log-probs of the policy that sampled.
        advantages: [T].
    """
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def eager_loss(where: Where) -> Contender:
    """The clipped loss on packed tokens, without metrics."""

    def call(b: LossBatch) -> Any:
        return gradient(clipped_loss(b.logprobs, b.old, b.advantage_per_token()), b.logprobs)

    return Contender(call, "the formula on packed tokens, no metrics")


def compiled_loss(where: Where) -> Contender:
    """The same under Inductor."""
    loss = torch.compile(clipped_loss, dynamic=False)

    def call(b: LossBatch) -> Any:
        return gradient(loss(b.logprobs, b.old, b.advantage_per_token()), b.logprobs)

    return Contender(call, "torch.compile(the formula, dynamic=False) on packed tokens, no metrics")


def eager_advantages(where: Where) -> Contender:
    """Equal groups as rows of a matrix."""

    def call(rewards: Tensor, size: int, ids: GroupIds) -> Tensor:
        groups = rewards.view(-1, size)
        spread = groups.std(1, keepdim=True) + 1e-6
        return ((groups - groups.mean(1, keepdim=True)) / spread).flatten()

    return Contender(call, "rows of a matrix, mean and std, no check of anything")


PEER = Peer(
    order=10,
    entries=(
        Entry("eager", eager, ("head", "scalar"), ("few", "sweep", "growth")),
        Entry("eager, chunks", chunks, cases=("few", "growth")),
        Entry("torch.compile", compiled, ("head", "scalar"), ()),
        Entry("torch linear_cross_entropy", native, ("scalar",)),
        Entry("eager", eager_loss, ("loss",), bare=True),
        Entry("torch.compile", compiled_loss, ("loss",)),
        Entry("eager", eager_advantages, ("advantages",), bare=True),
    ),
)
