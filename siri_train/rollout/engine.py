"""The interface that every rollout engine implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

CANCELLED = "cancelled"
"""``Completion.error`` of a response that was cancelled; see :attr:`Completion.cancelled`."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample.

    Args:
        max_tokens: response length cap of this call; the schedule changes it from step to step.
        n: responses per prompt.
        temperature: 0 is greedy.
        top_p: nucleus sampling; 1.0 is off.
        top_k: top-k sampling; 0 is off.
        stop_token_ids: the end-of-sequence *set*; many chat models have several ids.
        seed: the same seed, prompts and weights give the same responses.

    Raises:
        ValueError: a value out of range, which is named.
    """

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0, got {self.top_k}")


@dataclass
class Completion:
    """One response.

    Args:
        token_ids: sampled ids; the last one is in ``stop_token_ids`` iff the response finished.
        logprobs: the sampler's log-prob of each in nats, after temperature, top-p and top-k.
        finish_reason: ``"stop"`` (an end-of-sequence id was sampled), ``"length"`` (truncated by
            the cap) or ``"abort"`` (cancelled, or the engine failed). Truncation is read from here,
            never from the length.
        entropies: entropy in nats of each token's sampling distribution, where the engine has it.
        error: why a response was aborted.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length", "abort"]
    entropies: list[float] | None = field(default=None, repr=False)
    error: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether the cap ended it."""
        return self.finish_reason == "length"

    @property
    def cancelled(self) -> bool:
        """Whether the caller of ``generate`` ended it."""
        return self.finish_reason == "abort" and self.error == CANCELLED


class EngineError(RuntimeError):
    """The engine cannot go on: out of memory, crashed, unreachable, or its numbers are wrong.

    The trainer's state has not changed when it is raised: the newest checkpoint is good.
    """


class NonFiniteLogprobs(EngineError):
    """The engine reports log-probs that are NaN or infinite: no response can be used."""


class Engine(Protocol):
    """Samples responses. ``siri_train.config.engines`` lists all engines."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
        *,
        on_finish: Callable[[int, Completion], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``params.n`` responses to every prompt, in the order of the prompts.

        Args:
            prompts: token ids, at least one each.
            params: see :class:`SamplingParams`.
            progress: called with (finished responses, all responses) as they finish.
            on_finish: called with (index of the prompt, response) as each finishes.
            cancelled: called between decoding steps. Once it returns true, unfinished responses
                are returned with the finish reason ``"abort"``, the error ``CANCELLED`` and their
                tokens so far.

        Returns:
            A list of ``params.n`` responses for each prompt.

        Raises:
            ValueError: an empty prompt (its index is named).
            NonFiniteLogprobs: where the engine checks its log-probs itself.
            EngineError: the engine as a whole failed. A single prompt that fails does not raise:
                its responses are returned as ``"abort"`` with ``error`` set.
        """
        ...

    def sync(self) -> None:
        """Make the engine use the trainer's current weights, waking it up first."""
        ...

    def sleep(self) -> None:
        """Give memory to the trainer until the next :meth:`sync`, where there is any to give."""
        ...

    def close(self) -> None:
        """Free the engine's memory and processes; it is not used afterwards."""
        ...


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Refuse prompts without a token.

    Raises:
        ValueError: naming the first of them.
    """
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts[{index}] is empty: at least one token is needed")
