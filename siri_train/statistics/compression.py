"""The paper's ratio of accuracy gained to length kept (arXiv 2509.25176, Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Result(NamedTuple):
    """A model on one evaluation set.

    Args:
        accuracy: share of right answers.
        tokens: mean response length.
    """

    accuracy: float
    tokens: float


def delta_accuracy(current: float, initial: float) -> float:
    """max(current / initial - 1, 0): the relative gain; a loss counts as 0.

    Args:
        current: accuracy of the model.
        initial: accuracy of the model that training started from; above 0.
    """
    return max(current / initial - 1, 0.0)


def compression_rate(current: float, initial: float) -> float:
    """Current / initial: the share of the length that is left.

    Args:
        current: mean tokens of the model.
        initial: mean tokens of the model that training started from; above 0.
    """
    return current / initial


def accuracy_per_length(
    current: Sequence[Result],
    initial: Sequence[Result],
    of: Literal["means", "ratios"] = "means",
) -> float | None:
    """The paper's delta-accuracy over compression rate, over evaluation sets.

    The paper does not say in which order it takes mean and ratio. ``means`` comes closest to its
    Table 1, and is what the commands here show.

    Args:
        current: the model on each set.
        initial: the model that training started from, on the same sets in the same order.
        of: means: mean delta-accuracy over mean compression rate; ratios: the mean of each set's
            ratio.

    Returns:
        None where it does not exist: a start that has no right answer or no token on some set, or
        a model without tokens.

    Raises:
        ValueError: no set, or not the same number of sets.
    """
    if not current or len(current) != len(initial):
        raise ValueError(
            f"got {len(current)} and {len(initial)} sets; takes the same ones, at least one"
        )
    if any(start.accuracy <= 0 or start.tokens <= 0 for start in initial):
        return None
    if any(model.tokens <= 0 for model in current):
        return None
    pairs = list(zip(current, initial, strict=True))
    gains = [delta_accuracy(model.accuracy, start.accuracy) for model, start in pairs]
    rates = [compression_rate(model.tokens, start.tokens) for model, start in pairs]
    if of == "means":
        return sum(gains) / sum(rates)
    return sum(gain / rate for gain, rate in zip(gains, rates, strict=True)) / len(pairs)
