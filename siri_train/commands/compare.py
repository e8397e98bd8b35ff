"""Runs side by side on the same questions: ``siri-train compare``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from siri_train.ablate.compare import holm
from siri_train.commands.compare_points import (
    NAMED,
    Point,
    chosen,
    gain_per_length,
    pass_curve,
    read_points,
)
from siri_train.commands.compare_sets import set_table
from siri_train.monitor.question_records import QuestionRecord
from siri_train.statistics.intervals import Interval, bootstrap, share_interval
from siri_train.statistics.paired import Paired, Verdict, paired_test, verdict
from siri_train.statistics.pareto import front, hypervolume, hypervolume_interval


@dataclass(frozen=True)
class Test:
    """Two checkpoints on the same questions; differences are first less second.

    Attributes:
        first, second: the checkpoints.
        accuracy, tokens: the differences.
    """

    first: Point
    second: Point
    accuracy: Paired
    tokens: Paired


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`.

    Attributes:
        runs: the evaluated checkpoints of each run, by its label, in order of their steps.
        starts: what each run started from; None where that is not known.
        dominated: whether another point beats it, for each point, in the order of ``points``.
        tests: each run's named checkpoints against its start, then the runs against each other.
        verdicts: (accuracy, tokens) of each test, with the p-values of ``corrected``.
        corrected: (accuracy, tokens): p-values with Holm's correction for all of the tests.
    """

    runs: dict[str, list[Point]]
    starts: dict[str, Point | None]
    dominated: list[bool]
    tests: list[Test]
    verdicts: list[tuple[Verdict, Verdict]]
    corrected: list[tuple[float, float]]

    @property
    def points(self) -> list[Point]:
        """All checkpoints."""
        return [point for points in self.runs.values() for point in points]

    @property
    def record(self) -> QuestionRecord:
        """Any record: set, questions and largest budget are those of all."""
        return self.points[0].record


def compare(
    folders: Sequence[Path], wanted: str | None = None, start: Path | None = None
) -> Comparison:
    """Compare runs, or checkpoints that ``siri-train eval`` has graded, question by question.

    Args:
        folders: of runs, of graded checkpoints, or folders that hold such, as a demo's.
        wanted: the evaluation set; default: the first.
        start: folder of the graded model that training began from, for what has no start of its
            own; see :func:`siri_train.commands.compare_points.read_points`.

    Raises:
        ConfigError: a folder without evaluations by question, an unknown set, or runs that were
            evaluated on other questions or within another largest budget.
    """
    read = read_points(folders, wanted, start)
    return _compared(read.runs, read.starts)


def on_set(found: Comparison, name: str) -> Comparison:
    """The comparison of the same checkpoints on another of their sets.

    Args:
        found: of :func:`compare`.
        name: a set whose records can be paired, see
            :attr:`siri_train.commands.compare_sets.SetTable.names`.
    """
    moved = {
        id(point): replace(point, record=point.sets[name], sets={name: point.sets[name]})
        for point in [*found.points, *filter(None, found.starts.values())]
        if name in point.sets
    }
    runs = {
        label: own
        for label, points in found.runs.items()
        if (own := [moved[id(point)] for point in points if id(point) in moved])
    }
    return _compared(runs, {label: moved.get(id(found.starts[label])) for label in runs})


def _compared(runs: dict[str, list[Point]], starts: dict[str, Point | None]) -> Comparison:
    points = [point for some in runs.values() for point in some]
    on_front = set(front([(point.tokens, point.accuracy) for point in points]))
    tests = [_test(one, two) for one, two in _pairs(runs, starts)]
    corrected = list(
        zip(
            holm([test.accuracy.p_value for test in tests]),
            holm([test.tokens.p_value for test in tests]),
            strict=True,
        )
    )
    verdicts = [
        (
            verdict(test.accuracy._replace(p_value=accuracy)),
            verdict(test.tokens._replace(p_value=tokens)),
        )
        for test, (accuracy, tokens) in zip(tests, corrected, strict=True)
    ]
    return Comparison(
        runs, starts, [i not in on_front for i in range(len(points))], tests, verdicts, corrected
    )


def covered(points: Sequence[Point]) -> tuple[float, Interval]:
    """The hypervolume of a run over that of the whole plane, with its interval.

    The reference is the largest budget with accuracy 0. So it is the mean, over all lengths up to
    the budget, of the best accuracy with at most that length.
    """
    budget = points[0].record.budgets[-1]
    reference = (float(budget), 0.0)
    area = hypervolume([(point.tokens, point.accuracy) for point in points], reference)
    bounds = hypervolume_interval(
        [point.record.tokens for point in points],
        [point.record.shares() for point in points],
        reference,
    )
    return area / budget, Interval(bounds.low / budget, bounds.high / budget)


def intervals(point: Point) -> tuple[Interval, Interval]:
    """The intervals of accuracy and tokens, over questions."""
    return share_interval(point.record.shares()), bootstrap(point.record.tokens)


def as_json(found: Comparison) -> dict[str, Any]:
    """All of a comparison, with every evaluated checkpoint.

    At the top stand the figures on the compared set. With several named sets ``table`` has every
    reported set of the checkpoints that the text shows, and ``sets`` by name what stands at the top
    for the compared one.
    """
    values = _of_one_set(found)
    table = set_table(found.runs, found.starts)
    if len(table.names) > 1:
        values["table"] = table.to_json()
        values["sets"] = {name: _of_one_set(on_set(found, name)) for name in table.names}
    return values


def _of_one_set(found: Comparison) -> dict[str, Any]:
    record = found.record
    dominated = iter(found.dominated)
    runs = []
    for label, points in found.runs.items():
        area, bounds = covered(points)
        checkpoints = []
        for point in points:
            of_accuracy, of_tokens = intervals(point)
            checkpoints.append(
                {
                    "name": point.name,
                    "step": point.step,
                    "samples": point.record.samples,
                    "accuracy": point.accuracy,
                    "accuracy_interval": list(of_accuracy),
                    "tokens": point.tokens,
                    "tokens_interval": list(of_tokens),
                    "gain_per_length": gain_per_length(point, found.starts[label]),
                    "pass_curve": pass_curve(point.record),
                    "dominated": next(dominated),
                }
            )
        runs.append(
            {
                "run": label,
                "hypervolume": area,
                "hypervolume_interval": list(bounds),
                "checkpoints": checkpoints,
            }
        )
    tests = [
        {
            "first": test.first.place,
            "second": test.second.place,
            "accuracy": {
                **test.accuracy._asdict(), "p_value_holm": holm_p[0], "verdict": said[0]
            },
            "tokens": {**test.tokens._asdict(), "p_value_holm": holm_p[1], "verdict": said[1]},
        }
        for test, holm_p, said in zip(found.tests, found.corrected, found.verdicts, strict=True)
    ]  # fmt: skip
    return {
        "set": record.set,
        "questions": len(record.ids),
        "budget": record.budgets[-1],
        "runs": runs,
        "tests": tests,
    }


def _pairs(
    runs: dict[str, list[Point]], starts: dict[str, Point | None]
) -> Iterator[tuple[Point, Point]]:
    for label, points in runs.items():
        start, by_name = starts[label], chosen(points)
        tested = [by_name[name] for name in NAMED if name in by_name] or [by_name["last"]]
        if start is not None:
            yield from ((point, start) for point in tested if point is not start)
    for (a, ones), (b, twos) in combinations(runs.items(), 2):
        if ones == [starts[b]] or twos == [starts[a]]:  # compared above
            continue
        one, two = chosen(ones), chosen(twos)
        names = [name for name in NAMED if name in one or name in two] or ["last"]
        for name in names:
            yield one.get(name, one["last"]), two.get(name, two["last"])


def _test(one: Point, two: Point) -> Test:
    return Test(
        one,
        two,
        paired_test(one.record.shares(), two.record.shares()),
        paired_test(one.record.tokens, two.record.tokens),
    )
