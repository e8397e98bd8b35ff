"""Runs side by side on the same questions: ``siri-train compare``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from siri_train.ablate.compare import holm
from siri_train.config.base import ConfigError
from siri_train.files import shown
from siri_train.monitor.question_records import FILE, QuestionRecord, read_question_records
from siri_train.monitor.run_logs import of_evaluation
from siri_train.statistics.compression import Result, accuracy_per_length
from siri_train.statistics.intervals import Interval, bootstrap, share_interval
from siri_train.statistics.paired import Paired, Verdict, paired_test, verdict
from siri_train.statistics.pareto import front, hypervolume, hypervolume_interval

NAMED = ("siri-low", "siri-high")
"""Checkpoints that are tested, each with the one of the same name; a run without has its last."""


@dataclass(frozen=True)
class Point:
    """An evaluated checkpoint.

    Attributes:
        run: the label of its run.
        step: steps done; None of a model that is no checkpoint of a run.
        name: ``start``, ``siri-low``, ...; None between.
        record: its results on the compared set.
        sets: its results on every set that does not select.
    """

    run: str
    step: int | None
    name: str | None
    record: QuestionRecord
    sets: dict[str | None, QuestionRecord] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """At the largest budget."""
        return _mean(self.record.shares())

    @property
    def tokens(self) -> float:
        """Mean response length at the largest budget."""
        return _mean(self.record.tokens)

    @property
    def place(self) -> dict[str, Any]:
        """Run, name and step, for the JSON."""
        return {"run": self.run, "name": self.name, "step": self.step}


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
        dominated: whether another point beats it, for each point, in the order of ``points``.
        tests: each run's named checkpoints against its start, then the runs against each other.
        verdicts: (accuracy, tokens) of each test, with the p-values of ``corrected``.
        corrected: (accuracy, tokens): p-values with Holm's correction for all of the tests.
    """

    runs: dict[str, list[Point]]
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


def compare(folders: Sequence[Path], wanted: str | None = None) -> Comparison:
    """Compare runs, or checkpoints that ``siri-train eval`` has graded, question by question.

    Args:
        folders: of runs, of graded checkpoints, or folders that hold such, as a demo's.
        wanted: the evaluation set; default: the first.

    Raises:
        ConfigError: a folder without evaluations by question, an unknown set, or runs that were
            evaluated on other questions or within another largest budget.
    """
    sources = _labelled([folder for given in folders for folder in _expanded(given)])
    runs = {label: _points(label, folder, wanted) for label, folder in sources.items()}
    points = [point for some in runs.values() for point in some]
    _same_questions(points)
    on_front = set(front([(point.tokens, point.accuracy) for point in points]))
    tests = [_test(one, two) for one, two in _pairs(runs)]
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
        runs, [i not in on_front for i in range(len(points))], tests, verdicts, corrected
    )


def chosen(points: Sequence[Point]) -> dict[str, Point]:
    """The checkpoints of a run that have a name, by it: the last of each, and ``last``."""
    named = {point.name: point for point in points if point.name is not None}
    return {**named, "last": points[-1]}


def start_of(points: Sequence[Point]) -> Point | None:
    """The model that a run started from, if it was evaluated."""
    return next((point for point in points if point.step == 0), None)


def gain_per_length(point: Point, start: Point | None) -> float | None:
    """The paper's ratio over all sets that do not select; None where it does not exist."""
    if start is None or point.sets.keys() != start.sets.keys():
        return None
    current, initial = ([_result(one) for one in of.sets.values()] for of in (point, start))
    return accuracy_per_length(current, initial)


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
    """All of a comparison, with every evaluated checkpoint."""
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
                    "gain_per_length": gain_per_length(point, start_of(points)),
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


def _expanded(folder: Path) -> list[Path]:
    """The folder itself if it holds evaluations by question, else those in it that do."""
    if not folder.is_dir():
        raise ConfigError(f"compare: {shown(folder)} is not a folder; takes folders of runs")
    if (folder / FILE).is_file():
        return [folder]
    inner = [path for path in sorted(folder.iterdir()) if (path / FILE).is_file()]
    # Runs with cycles first: they are compared with the others.
    inner.sort(key=lambda path: not {*_names(path)[0].values()} & {*NAMED})
    if not inner and (folder / "ablate.json").is_file():
        raise ConfigError(
            f"compare: {shown(folder)} is the folder of an ablation, whose table is in ablate.md; "
            "give folders of its runs, ARM/seed-N"
        )
    if not inner:
        raise ConfigError(
            f"compare: {shown(folder)} holds no evaluation question by question ({FILE} is "
            "missing); give a run's folder, or grade a checkpoint with siri-train eval and give "
            "that"
        )
    return inner


def _labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Labels that are short and different: a run's name, run and step of a checkpoint."""
    different = list({path.resolve(): path for path in folders}.values())
    labels = []
    for path in different:
        whole = path.resolve()
        of_run = whole.parent.name == "checkpoints"
        labels.append(f"{whole.parents[1].name}/{whole.name}" if of_run else whole.name)
    return {
        label if labels.count(label) == 1 else shown(path): path
        for label, path in zip(labels, different, strict=True)
    }


def _points(label: str, folder: Path, wanted: str | None) -> list[Point]:
    records = read_question_records(folder)
    if not records:
        raise ConfigError(f"compare: {shown(folder / FILE)} holds no whole record")
    sets = list(dict.fromkeys(record.set for record in records))
    if wanted is not None and wanted not in sets:
        there = ", ".join(name or "one without a name" for name in sets)
        raise ConfigError(f"compare: --set {wanted}: {label} has no such set; it has {there}")
    of = sets[0] if wanted is None else wanted
    names, selecting = _names(folder)
    # A set that is only there to choose by is no result.
    left = [name for name in sets if name != selecting] if selecting != sets[0] else sets
    by_step: dict[int | None, dict[str | None, QuestionRecord]] = {}
    for record in records:
        by_step.setdefault(record.step, {})[record.set] = record
    return [
        Point(
            label,
            step,
            names.get(step),
            found[of],
            {name: found[name] for name in left if name in found},
        )
        for step, found in sorted(by_step.items(), key=lambda item: item[0] or 0)
        if of in found
    ]


def _names(folder: Path) -> tuple[dict[int | None, str | None], str | None]:
    """The names of a run's evaluations by step, and the set by which it chooses."""
    names: dict[int | None, str | None] = {}
    selecting = None
    for path in (folder / "eval.jsonl", folder / "eval.json"):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # half-written or damaged: its checkpoint has no name
            if isinstance(row, dict) and of_evaluation(row):
                names[row.get("step")] = row.get("name")
                selecting = row.get("set")
    return names, selecting


def _same_questions(points: Sequence[Point]) -> None:
    """Refuse results that cannot be paired."""
    first = points[0]
    for point in points:
        if point.record.fingerprint != first.record.fingerprint:
            raise ConfigError(
                f"compare: {described(point)} and {described(first)} answered other questions; "
                "paired figures need the same data.eval: evaluate one again with siri-train eval "
                "CHECKPOINT --recipe, or choose a common set by --set"
            )
        if point.record.budgets[-1] != first.record.budgets[-1]:
            raise ConfigError(
                f"compare: {described(point)} was evaluated within {point.record.budgets[-1]} "
                f"tokens, {described(first)} within {first.record.budgets[-1]}; take the same "
                "largest of eval.budgets"
            )


def described(point: Point) -> str:
    """A checkpoint in words: run, name, step."""
    parts = [point.run, *([point.name] if point.name else [])]
    return " ".join(parts) + (f" (step {point.step})" if point.step is not None else "")


def _pairs(runs: dict[str, list[Point]]) -> Iterator[tuple[Point, Point]]:
    for points in runs.values():
        start, by_name = start_of(points), chosen(points)
        tested = [by_name[name] for name in NAMED if name in by_name] or [by_name["last"]]
        if start is not None:
            yield from ((point, start) for point in tested if point is not start)
    for (_, ones), (_, twos) in combinations(runs.items(), 2):
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


def _result(record: QuestionRecord) -> Result:
    return Result(_mean(record.shares()), _mean(record.tokens))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
