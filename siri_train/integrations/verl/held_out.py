"""Held-out questions for verl, which samples all of them equally often (``val_kwargs.n``).

A set with more samples has its questions several times in the file. Each of them counts as a
question in verl, with an equal number of responses, so the means of a set are over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from siri_train.config.run import RunConfig
from siri_train.data.sources import EncodedQuestion


def validation_samples(config: RunConfig) -> int:
    """The value of ``val_kwargs.n``: the largest number that divides that of each set.

    Args:
        config: the recipe; ``data.eval`` and ``eval.samples`` are used.
    """
    return math.gcd(*(config.samples_of(name) for name in config.data.set_names or [""]))


def repeated(config: RunConfig, questions: Sequence[EncodedQuestion]) -> list[EncodedQuestion]:
    """Each question as often as its set has more samples than :func:`validation_samples`.

    Args:
        config: the recipe, with the number of samples of each set.
        questions: held-out questions.
    """
    one = validation_samples(config)
    return [q for q in questions for _ in range(config.samples_of(q.set) // one)]


def samples_notes(config: RunConfig) -> list[str]:
    """A line about sets whose questions are repeated; empty if there is none.

    Args:
        config: the recipe, with the number of samples of each set.
    """
    one = validation_samples(config)
    times = {name: config.samples_of(name) // one for name in config.data.set_names}
    more = ", ".join(f"{name} {number} times" for name, number in times.items() if number > 1)
    if not more:
        return []
    return [
        f"data.eval.N.samples: verl samples every held-out question {one} times, so questions are "
        f"repeated in its file: {more}; means are over all of them"
    ]
