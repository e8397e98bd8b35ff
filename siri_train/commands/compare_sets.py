"""The checkpoints of a comparison on every evaluation set: the rows of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from siri_train.commands.compare_points import Point, chosen, gain_over, mean, own_start, pass_curve
from siri_train.monitor.question_records import QuestionRecord
from siri_train.statistics.intervals import Interval, bootstrap, share_interval
from siri_train.statistics.set_means import mean_interval


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval.

    Attributes:
        value: the figure.
        bounds: the interval.
    """

    value: float
    bounds: Interval


@dataclass(frozen=True)
class Cell:
    """A checkpoint on a set, or on the mean of sets.

    Attributes:
        accuracy: share of right answers within the largest budget.
        tokens: mean response length there.
    """

    accuracy: Figure
    tokens: Figure

    def to_json(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "accuracy": self.accuracy.value,
            "accuracy_interval": list(self.accuracy.bounds),
            "tokens": self.tokens.value,
            "tokens_interval": list(self.tokens.bounds),
        }


@dataclass(frozen=True)
class SetRow:
    """A checkpoint on every set.

    Attributes:
        point: the checkpoint.
        last: whether it is the last one of its run.
        cells: by set, of those it was evaluated on.
        mean: the mean over :attr:`SetTable.common`, each set counting once; None without any.
        gain_per_length: the paper's dAcc/CR over these sets; None where there is no start.
    """

    point: Point
    last: bool
    cells: dict[str, Cell]
    mean: Cell | None
    gain_per_length: float | None

    def samples(self, name: str) -> int:
        """Responses to each question of a set.

        Args:
            name: of a set it was evaluated on.
        """
        return self.point.sets[name].samples


@dataclass(frozen=True)
class SetTable:
    """The reported sets side by side; no figure is over the questions of two sets together.

    Attributes:
        names: of the sets, in the recipe's order.
        questions: how many each has.
        common: those on which every row was evaluated: means and dAcc/CR are over these.
        other_questions: sets that are left out as two rows answered other questions there, or
            within another largest budget.
        unreported: sets that select and are left out.
        rows: the named checkpoints and the last one of each run.
    """

    names: tuple[str, ...]
    questions: dict[str, int]
    common: tuple[str, ...]
    other_questions: tuple[str, ...]
    unreported: tuple[str, ...]
    rows: tuple[SetRow, ...]

    def to_json(self) -> dict[str, Any]:
        """The table as a JSON object."""
        return {
            "sets": list(self.names),
            "mean_over": list(self.common),
            "other_questions": list(self.other_questions),
            "selecting": list(self.unreported),
            "rows": [
                {
                    **row.point.place,
                    "sets": {
                        name: {
                            **cell.to_json(),
                            "samples": row.samples(name),
                            "pass_curve": pass_curve(row.point.sets[name]),
                        }
                        for name, cell in row.cells.items()
                    },
                    "mean_of_sets": None if row.mean is None else row.mean.to_json(),
                    "gain_per_length": row.gain_per_length,
                }
                for row in self.rows
            ],
        }


def set_table(runs: dict[str, list[Point]], starts: dict[str, Point | None]) -> SetTable:
    """The start, the named checkpoints and the last one of each run, on every reported set.

    Args:
        runs: of :func:`siri_train.commands.compare_points.read_points`.
        starts: the same.

    Returns:
        Without named sets ``names`` is empty.
    """
    kept = [(point, point is points[-1]) for points in runs.values() for point in _rows(points)]
    newest = [points[-1] for points in runs.values()]
    orders = [point.sets for point in [*newest, *(point for point, _ in kept)]]
    every = [name for name in dict.fromkeys(name for sets in orders for name in sets) if name]
    other = [name for name in every if not _comparable(_records(kept, name))]
    names = tuple(name for name in every if name not in other)
    common = tuple(name for name in names if all(name in point.sets for point, _ in kept))
    rows = []
    for point, last in kept:
        cells = {name: _cell(point.sets[name]) for name in names if name in point.sets}
        start = starts[point.run]
        both = [name for name in common if start is not None and name in start.sets]
        ratio = None
        if start is not None and len(both) == len(common):
            ratio = gain_over(point, start, common)
        rows.append(SetRow(point, last, cells, _mean([cells[name] for name in common]), ratio))
    left = dict.fromkeys(point.unreported for point, _ in kept if point.unreported)
    return SetTable(
        names,
        {name: len(_records(kept, name)[0].ids) for name in names},
        common,
        tuple(other),
        tuple(name for name in left if name not in every),
        tuple(rows),
    )


def _rows(points: Sequence[Point]) -> list[Point]:
    named = [*chosen(points).values(), own_start(points)]
    return [point for point in points if any(point is one for one in named)]


def _records(kept: Sequence[tuple[Point, bool]], name: str) -> list[QuestionRecord]:
    return [point.sets[name] for point, _ in kept if name in point.sets]


def _comparable(records: Sequence[QuestionRecord]) -> bool:
    return len({(one.fingerprint, one.budgets[-1]) for one in records}) == 1


def _cell(record: QuestionRecord) -> Cell:
    shares = record.shares()
    return Cell(
        Figure(mean(shares), share_interval(shares)),
        Figure(mean(record.tokens), bootstrap(record.tokens)),
    )


def _mean(cells: Sequence[Cell]) -> Cell | None:
    if not cells:
        return None
    found = []
    for of in ([cell.accuracy for cell in cells], [cell.tokens for cell in cells]):
        values = [one.value for one in of]
        found.append(Figure(mean(values), mean_interval(values, [one.bounds for one in of])))
    return Cell(*found)
