"""TRL's chunked log-prob (github.com/huggingface/trl, Apache-2.0)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.peers.base import Contender, Where

CHUNK = 32768  # vocabulary ids a tile, TRL's default


def _contender(outputs: tuple[str, ...], settings: str) -> Contender:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Any:
        arguments = (hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, outputs)
        return ChunkedLogProbFunction.apply(*arguments)[0]

    return Contender(call, f"ChunkedLogProbFunction, chunks of {CHUNK} ids, {settings}")


def logprob(where: Where) -> Contender:
    """The log-prob alone, which is its fastest."""
    return _contender((), "log-prob only")


def with_entropy(where: Where) -> Contender:
    """As its GRPO trainer calls it."""
    return _contender(("entropy",), "with entropy, as GRPOTrainer asks for it")
