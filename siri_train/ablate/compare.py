"""The rows of an ablation's table: figures over seeds with intervals, and paired tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from siri_train.ablate.figures import ENDS, Scores, named_steps, scores
from siri_train.ablate.plan import Arm, Member
from siri_train.config.base import ConfigError
from siri_train.statistics.intervals import DRAWS, Interval, quantiles, share_interval
from siri_train.statistics.paired import Paired, paired_test, verdict
from siri_train.statistics.resample import drawn_means


@dataclass(frozen=True)
class Sets:
    """The sets of questions that count.

    Attributes:
        shown: the one that figures and tests are about; None where sets have no names.
        select: the one that caps and checkpoints are chosen by.
    """

    shown: str | None
    select: str | None


@dataclass
class Row:
    """One arm at one checkpoint.

    Attributes:
        arm: its name.
        member: the chosen one of an arm that sweeps, as ``cap=32``; else empty.
        checkpoint: a name of ``--at``.
        scores: of each seed that has the checkpoint.
        accuracy: for each budget the mean over seeds and questions.
        intervals: of these.
        tokens: mean response tokens in the evaluation, over seeds and questions.
        tokens_interval: of it.
        against: the difference of accuracy at the largest budget from the reference; None for the
            reference itself.
        adjusted: its p-value by Holm's correction over all rows.
        shorter: the difference of mean tokens from the reference.
        verdict: of the difference of accuracy, with the corrected p-value.
    """

    arm: str
    member: str
    checkpoint: str
    scores: dict[int, Scores]
    accuracy: list[float] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    tokens: float = 0.0
    tokens_interval: Interval = Interval(0.0, 0.0)
    against: Paired | None = None
    adjusted: float | None = None
    shorter: Paired | None = None
    verdict: str = "reference"

    @property
    def name(self) -> str:
        """As ``--against`` takes it: ARM@CHECKPOINT."""
        return f"{self.arm}@{self.checkpoint}"

    @property
    def budgets(self) -> list[int]:
        """Budgets of the evaluation in tokens, ascending."""
        return next(iter(self.scores.values())).budgets

    def shares(self, budget: int = -1) -> list[list[float]]:
        """``[seeds][questions]``: shares of right answers at a budget."""
        return [one.shares[budget] for one in self.scores.values()]

    def lengths(self) -> list[list[float]]:
        """``[seeds][questions]``: mean tokens."""
        return [one.lengths for one in self.scores.values()]

    def mean(self, figure: str) -> float:
        """The mean over seeds of ``step``, ``trained_tokens`` or ``seconds``."""
        values = [getattr(one, figure) for one in self.scores.values()]
        return sum(values) / len(values)


def rows_of(
    arm: Arm, member: Member, at: Sequence[str], missing: Sequence[str], sets: Sets
) -> list[Row]:
    """The rows of an arm, without figures.

    Args:
        arm: whose.
        member: the one that counts.
        at: names of checkpoints; empty: siri-low and siri-high where a run has them (where the
            length turned, with ``checkpoint.lag_window``), else last.
        missing: labels of runs that have not finished.
        sets: of questions.
    """
    steps = {
        seed: named_steps(run.folder, sets.select)
        for seed, run in member.runs.items()
        if run.label not in missing
    }
    names = list(at)
    if not names:
        known = {name for found in steps.values() for name in found}
        late = [f"{name}-measured" if f"{name}-measured" in known else name for name in ENDS]
        names = [name for name in late if name in known]
    rows = []
    for name in names or ["last"]:
        found = {
            seed: scores(member.runs[seed].folder, named[name], sets.shown)
            for seed, named in steps.items()
            if name in named
        }
        if found:
            rows.append(Row(arm.name, member.name, name, found))
    return rows


def set_figures(rows: Sequence[Row]) -> None:
    """Means and intervals of all rows; each budget's spread between seeds is that of all rows.

    The model before training has no luck of a training run in it, so the rows of ``start`` have a
    spread of their own.

    Args:
        rows: of all arms; changed in place.
    """
    _set_figures([row for row in rows if row.checkpoint == "start"])
    _set_figures([row for row in rows if row.checkpoint != "start"])


def _set_figures(rows: Sequence[Row]) -> None:
    arms = _independent(rows)
    lengths = between_seeds([row.lengths() for row in rows], arms)
    at = {}
    for budget in {budget for row in rows for budget in row.budgets}:
        there = [(row, arm) for row, arm in zip(rows, arms, strict=True) if budget in row.budgets]
        shares = [row.shares(row.budgets.index(budget)) for row, _ in there]
        at[budget] = between_seeds(shares, [arm for _, arm in there])
    for row in rows:
        shares = [row.shares(place) for place in range(len(row.budgets))]
        row.accuracy = [float(np.mean(values)) for values in shares]
        row.intervals = [
            figure_interval(values, at[budget], share=True)
            for values, budget in zip(shares, row.budgets, strict=True)
        ]
        row.tokens = float(np.mean(row.lengths()))
        row.tokens_interval = figure_interval(row.lengths(), lengths)


class Spread(NamedTuple):
    """The spread between seeds.

    Args:
        variance: of a seed's mean.
        degrees: of freedom.
    """

    variance: float
    degrees: int


def _independent(rows: Sequence[Row]) -> list[str]:
    """For each row the arm whose runs it shows: two arms can have the same ones."""
    found: list[str] = []
    for place, row in enumerate(rows):
        same = [found[i] for i in range(place) if rows[i].scores == row.scores]
        found.append(same[0] if same else row.arm)
    return found


def between_seeds(
    rows: Sequence[Sequence[Sequence[float]]], arms: Sequence[str] | None = None
) -> Spread:
    """The pooled variance of the seeds' means over several rows.

    Two or three seeds of one arm say little about the spread; all arms together say more, if it is
    about the same in each. Two rows of an arm are checkpoints of the same runs, which are lucky
    together, so its degrees of freedom count once.

    Args:
        rows: ``[seeds][questions]`` of each.
        arms: of each row; None: all differ.
    """
    squares, count = 0.0, 0
    degrees: dict[str, int] = {}
    names = [str(place) for place in range(len(rows))] if arms is None else arms
    for values, arm in zip(rows, names, strict=True):
        means = np.asarray(values, dtype=np.float64).mean(axis=1)
        squares += float(((means - means.mean()) ** 2).sum())
        count += len(means) - 1
        degrees[arm] = max(degrees.get(arm, 0), len(means) - 1)
    return Spread(squares / count if count else 0.0, sum(degrees.values()))


def figure_interval(
    values: Sequence[Sequence[float]], spread: Spread, share: bool = False
) -> Interval:
    """The 95 % interval of a mean over seeds and questions.

    Questions are drawn with replacement. What other seeds would give is added to each draw:
    Student's t with the spread between seeds, as in the paired test. Where no arm has two seeds the
    spread is not known, and the interval is about that run only.

    Args:
        values: ``[seeds][questions]``.
        spread: between seeds.
        share: shares from 0 to 1, whose interval is never narrower than Wilson's on either side.
    """
    array = np.asarray(values, dtype=np.float64)
    drawn = drawn_means(array.mean(axis=0)[:, None], DRAWS, 0)[:, 0]
    if spread.degrees:
        error = (spread.variance / len(array)) ** 0.5
        drawn = drawn + error * np.random.default_rng(1).standard_t(spread.degrees, DRAWS)
    low, high = quantiles(drawn, 0.95)
    if share:
        least = share_interval(array.mean(axis=0).tolist())
        low, high = max(0.0, min(low, least.low)), min(1.0, max(high, least.high))
    return Interval(low, high)


def reference_row(rows: Sequence[Row], name: str) -> Row:
    """The row that the others are compared with.

    Args:
        rows: all of them, at least one.
        name: ARM or ARM@CHECKPOINT. Without a checkpoint the arm's last row counts: siri-high
            where there is one. If there is no such row, the first arm that has one counts.
    """
    found = [row for row in rows if name in (row.arm, row.name)]
    return (found or [row for row in rows if row.arm == rows[0].arm])[-1]


def compare(rows: Sequence[Row], reference: Row) -> None:
    """Test every other row against the reference, with Holm's correction over these tests.

    Args:
        rows: of all arms; changed in place.
        reference: one of them.

    Raises:
        ConfigError: rows were evaluated on different questions.
    """
    questions = next(iter(reference.scores.values())).questions
    for row, (seed, one) in itertools.chain.from_iterable(
        [(row, item) for item in row.scores.items()] for row in rows
    ):
        if one.questions != questions:
            raise ConfigError(
                f"{row.name} seed {seed} was evaluated on other questions than {reference.name}; "
                "paired tests need the same: do not vary data.eval"
            )
    others = [row for row in rows if row is not reference]
    for row in others:
        row.against = paired_test(row.shares(), reference.shares())
        row.shorter = paired_test(row.lengths(), reference.lengths())
    adjusted = holm([row.against.p_value for row in others if row.against is not None])
    for row, p_value in zip(others, adjusted, strict=True):
        assert row.against is not None
        row.adjusted = p_value
        row.verdict = verdict(row.against._replace(p_value=p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of any false verdict stays that of one test.

    The smallest of n p-values is multiplied by n, the next by n - 1, and so on; none is smaller
    than one before it, none is above 1.

    Args:
        p_values: of all tests that are looked at together.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def as_json(row: Row) -> dict[str, Any]:
    """A row for ``ablate.json``."""
    return {
        "arm": row.arm,
        "member": row.member,
        "checkpoint": row.checkpoint,
        "seeds": list(row.scores),
        "steps": [one.step for one in row.scores.values()],
        "budgets": row.budgets,
        "accuracy": row.accuracy,
        "accuracy_interval": [list(interval) for interval in row.intervals],
        "accuracy_by_seed": [
            [float(np.mean(shares)) for shares in one.shares] for one in row.scores.values()
        ],
        "tokens": row.tokens,
        "tokens_interval": list(row.tokens_interval),
        "tokens_by_seed": [float(np.mean(one.lengths)) for one in row.scores.values()],
        "trained_tokens": row.mean("trained_tokens"),
        "seconds": row.mean("seconds"),
        "difference": row.against._asdict() if row.against else None,
        "tokens_difference": row.shorter._asdict() if row.shorter else None,
        "p_value_holm": row.adjusted,
        "verdict": row.verdict,
    }
