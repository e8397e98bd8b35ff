"""An engine on each rank; each samples its part of the questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from siri_train import distributed
from siri_train.rollout.dealing import Deal, deal
from siri_train.rollout.engine import Completion, Engine, EngineError, SamplingParams

# The difference between the seeds of two parts. Seeds of two steps differ by less.
_APART = 0x9E37_79B1


class SharedEngine:
    """Share the questions of every call among the ranks; every rank gets all responses.

    The responses are dealt to ``shards`` parts, and part p is sampled with the seed
    ``seed + p * constant``. So they depend on ``shards`` and ``by``, not on the number of ranks.

    Args:
        engine: this rank's own.
        shards: how many parts; must be a multiple of the ranks.
        around: a context manager entered around sampling. Where the engine samples from the
            trainer's own sharded weights, it gathers them on this rank.
        by: ``rollout.deal``, see :func:`siri_train.rollout.dealing.deal`.

    Raises:
        ValueError: ``shards`` is not a multiple of the number of ranks.
    """

    def __init__(
        self,
        engine: Engine,
        shards: int,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        by: Deal = "questions",
    ) -> None:
        if shards < 1 or shards % distributed.world_size():
            raise ValueError(
                f"rollout.shards must be a multiple of the {distributed.world_size()} ranks, "
                f"got {shards}"
            )
        self.engine, self.shards, self.around, self.by = engine, shards, around, by

    def sync(self) -> None:
        """Make this rank's engine use the current weights."""
        self.engine.sync()

    def sleep(self) -> None:
        """Give this rank's trainer the memory of its engine."""
        self.engine.sleep()

    def close(self) -> None:
        """Free what this rank's engine holds."""
        self.engine.close()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
        *,
        on_finish: Callable[[int, Completion], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``params.n`` responses to every prompt, as :meth:`.Engine.generate`.

        Args:
            prompts: the same on every rank.
            params: see :class:`SamplingParams`.
            progress: called after each part of this rank.
            on_finish: called for responses of this rank's parts.
            cancelled: called while this rank's parts are sampled.

        Raises:
            EngineError: raised on every rank where the engine of one rank raises it.
        """

        def shifted(first: int) -> Callable[[int, Completion], None] | None:
            if on_finish is None:
                return None
            return lambda index, completion: on_finish(first + index, completion)

        dealt = deal(len(prompts), params.n, self.shards, self.by)
        sizes = [(part.last - part.first) * part.responses for part in dealt]

        def sample(parts: Sequence[int]) -> list[list[list[Completion]]]:
            done = []
            for number in parts:
                part = dealt[number]
                seed = params.seed + number * _APART
                own = dataclasses.replace(params, n=part.responses, seed=seed)
                groups = []
                if part.last > part.first:
                    groups = self.engine.generate(
                        prompts[part.first : part.last],
                        own,
                        on_finish=shifted(part.first),
                        cancelled=cancelled,
                    )
                done.append([[_compact(c) for c in group] for group in groups])
                if progress is not None:
                    progress(sum(sizes[: number + 1]), len(prompts) * params.n)
            return done

        def guarded(parts: Sequence[int]) -> list[Any]:
            try:
                return sample(parts)
            except EngineError as error:  # the other ranks wait for this rank's part
                return [error] * len(parts)

        with self.around():
            parts = distributed.spread(guarded, range(self.shards))
        results: list[list[Completion]] = [[] for _ in prompts]
        for part, sampled in zip(dealt, parts, strict=True):
            if isinstance(sampled, EngineError):
                raise sampled
            for index, group in enumerate(sampled, start=part.first):
                results[index] += [_plain(c) for c in group]
        return results


def _compact(completion: Completion) -> Completion:
    """Numbers as arrays, 4 bytes each, to send between ranks."""
    arrays = {}
    for field in dataclasses.fields(completion):
        value = getattr(completion, field.name)
        if isinstance(value, list) and value and all(type(v) in (int, float) for v in value):
            whole = all(type(v) is int for v in value)
            arrays[field.name] = np.array(value, dtype=np.int32 if whole else np.float32)
    return dataclasses.replace(completion, **arrays)  # type: ignore[arg-type]


def _plain(completion: Completion) -> Completion:
    lists = {
        field.name: value.tolist()
        for field in dataclasses.fields(completion)
        if isinstance(value := getattr(completion, field.name), np.ndarray)
    }
    return dataclasses.replace(completion, **lists)
