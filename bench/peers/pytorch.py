"""PyTorch: eager, by checkpointed chunks, compiled, and its own fused loss."""

from __future__ import annotations

import torch
import torch.utils.checkpoint
from torch import Tensor

from bench.peers.base import Contender, Missing, Where


def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What a trainer writes first: all logits, softmax in at least float32, gather; [T]."""
    logits = hidden @ weight.T
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def eager(where: Where) -> Contender:
    """All logits at once."""
    return Contender(logprobs, "hidden @ weight.T, log_softmax in float32, gather", (2.0, "same"))


def chunks(where: Where) -> Contender:
    """So that the logits fit."""
    if where.device.type == "cpu" and not where.triton:
        raise Missing("for GPUs, where eager's logits may not fit")

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = zip(hidden.split(2048), targets.split(2048), strict=True)
        return torch.cat(
            [
                torch.utils.checkpoint.checkpoint(logprobs, h, weight, y, use_reentrant=False)
                for h, y in rows
            ]
        )

    return Contender(call, "eager by chunks of 2048 tokens under torch.utils.checkpoint")


def compiled(where: Where) -> Contender:
    """The eager code under Inductor."""
    call = torch.compile(logprobs, dynamic=False)
    return Contender(call, "torch.compile(eager, dynamic=False), compiled before it is timed")


def native(where: Where) -> Contender:
    """PyTorch's own chunked loss; a sum only."""
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None:
        raise Missing(f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy")
    return Contender(
        lambda h, w, y: -function(h, w, y, reduction="sum"),
        'torch.nn.functional.linear_cross_entropy(reduction="sum"), default options',
    )
