"""When a run ends: after ``train.steps``, or when ``train.max_tokens`` have been sampled."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from siri_train import distributed
from siri_train.checkpoint.save_load import steps_done, tokens_sampled
from siri_train.config.run import TrainConfig
from siri_train.rollout.batch import RolloutBatch


class RunEnd:
    """Counts the steps and the response tokens of a run; the same on every rank.

    Args:
        config: the recipe's section ``train``.
        done: steps done already.
        tokens: response tokens sampled in them.
    """

    def __init__(self, config: TrainConfig, done: int = 0, tokens: int = 0) -> None:
        self.config, self.done, self.tokens = config, done, tokens

    @classmethod
    def resumed(cls, config: TrainConfig, source: Path | None) -> RunEnd:
        """The counts of a checkpoint; of a run that begins, zeros. Every rank must call it.

        Args:
            config: the recipe's section ``train``.
            source: the checkpoint, None for a run that begins.
        """
        if source is None:
            return cls(config)
        return cls(config, *distributed.on_main(_counts, source))

    @property
    def over(self) -> bool:
        """Whether the run ends here."""
        return self.done >= self.config.steps or self._reached(self.tokens)

    def is_last(self, batch: RolloutBatch) -> bool:
        """Whether the run ends with the step of a batch; every rank must call it.

        Args:
            batch: of the step after those that were added.
        """
        tokens = self.tokens + distributed.from_main(batch.tokens_sampled)
        return batch.step + 1 >= self.config.steps or self._reached(tokens)

    def add(self, batch: RolloutBatch) -> None:
        """Count a step that has been trained on; every rank must call it."""
        self.tokens += distributed.from_main(batch.tokens_sampled)
        self.done = batch.step + 1

    def _reached(self, tokens: int) -> bool:
        return self.config.max_tokens is not None and tokens >= self.config.max_tokens


def _counts(source: Path) -> tuple[int, int]:
    """Steps and tokens of a checkpoint. Older ones hold no tokens: the run's log has them."""
    done, tokens = steps_done(source), tokens_sampled(source)
    return done, _logged(source.parent.parent / "metrics.jsonl", done) if tokens is None else tokens


def _logged(path: Path, below: int) -> int:
    """The response tokens of the steps before ``below``; of a step that is there twice the last."""
    found: dict[int, int] = {}
    if not path.is_file():
        return 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):  # a damaged record has no tokens
            row = json.loads(line)
            if row["step"] < below:
                found[row["step"]] = int(row["tokens"]) + int(row.get("tokens_discarded") or 0)
    return sum(found.values())
