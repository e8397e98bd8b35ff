"""The evaluated checkpoints that ``siri-train compare`` puts side by side, read from folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.files import shown
from siri_train.monitor.question_records import FILE, QuestionRecord, read_question_records
from siri_train.monitor.run_logs import of_evaluation
from siri_train.statistics.compression import Result, accuracy_per_length
from siri_train.statistics.pass_at_k import mean_pass_at

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
        sets: its results on every set that is reported, by name: those that do not select, the
            compared one among them; with a wanted set that one alone.
        unreported: the set that selects (``eval.select``), where it is none of these.
    """

    run: str
    step: int | None
    name: str | None
    record: QuestionRecord
    sets: dict[str | None, QuestionRecord] = field(repr=False)
    unreported: str | None = None

    @property
    def accuracy(self) -> float:
        """At the largest budget."""
        return mean(self.record.shares())

    @property
    def tokens(self) -> float:
        """Mean response length at the largest budget."""
        return mean(self.record.tokens)

    @property
    def place(self) -> dict[str, Any]:
        """Run, name and step, for the JSON."""
        return {"run": self.run, "name": self.name, "step": self.step}


def chosen(points: Sequence[Point]) -> dict[str, Point]:
    """The checkpoints of a run that have a name, by it: the last of each, and ``last``."""
    named = {point.name: point for point in points if point.name is not None}
    return {**named, "last": points[-1]}


def own_start(points: Sequence[Point]) -> Point | None:
    """The model that a run started from, if it was evaluated in that run."""
    return next((point for point in points if point.step == 0), None)


def mean(values: Sequence[float]) -> float:
    """The mean over questions, or over sets."""
    return sum(values) / len(values)


def gain_per_length(point: Point, start: Point | None) -> float | None:
    """The paper's ratio over the reported sets; None where it does not exist.

    Args:
        point: a checkpoint.
        start: what its run started from.
    """
    if start is None or point.sets.keys() != start.sets.keys():
        return None
    return gain_over(point, start, list(point.sets))


def gain_over(point: Point, start: Point, names: Sequence[str | None]) -> float | None:
    """The paper's ratio over some sets; None where it does not exist.

    Args:
        point: a checkpoint.
        start: what its run started from.
        names: sets that both have; without any there is no ratio.
    """
    if not names:
        return None
    current, initial = (
        [Result(mean(of.sets[name].shares()), mean(of.sets[name].tokens)) for name in names]
        for of in (point, start)
    )
    return accuracy_per_length(current, initial)


def pass_curve(record: QuestionRecord) -> list[float]:
    """Unbiased pass@k at the largest budget for k = 1 to the number of samples.

    Args:
        record: of a checkpoint on a set.
    """
    ks = range(1, record.samples + 1)
    return mean_pass_at(record.samples, record.right[-1], ks)


def described(point: Point) -> str:
    """A checkpoint in words: run, name, step."""
    parts = [point.run, *([point.name] if point.name else [])]
    return " ".join(parts) + (f" (step {point.step})" if point.step is not None else "")


@dataclass(frozen=True)
class Compared:
    """Runs with what each of them started from.

    Attributes:
        runs: the evaluated checkpoints of each run, by its label, in order of their steps.
        starts: of each run the start; None where none is known.
    """

    runs: dict[str, list[Point]]
    starts: dict[str, Point | None]


def read_points(
    folders: Sequence[Path], wanted: str | None = None, start: Path | None = None
) -> Compared:
    """Read the evaluations of folders.

    A run's start is its own evaluation after 0 steps. A graded checkpoint of a run that lies in
    its ``checkpoints`` folder has the run's, if that answered the same questions. ``start`` stands
    for all that have none, and for all graded checkpoints.

    Args:
        folders: of runs, of graded checkpoints, or folders that hold such, as a demo's.
        wanted: the evaluation set; None: the first of each.
        start: folder of the model that training began from, graded by ``siri-train eval``; of a
            run its evaluation after 0 steps.

    Raises:
        ConfigError: a folder without evaluations by question, an unknown set, or runs that were
            evaluated on other questions or within another largest budget.
    """
    if start is not None and not (start / FILE).is_file():
        raise ConfigError(
            f"compare: --start {shown(start)} holds no evaluation question by question ({FILE} is "
            "missing); grade the model with siri-train eval and give its folder"
        )
    given = [inner for folder in folders for inner in _expanded(folder)]
    there = {path.resolve() for path in given}
    first = [] if start is None or start.resolve() in there else [start]
    parents = [] if start is not None else [
        path.resolve().parents[1] for path in given if _of_a_run(path)
    ]  # fmt: skip
    parents = [path for path in dict.fromkeys(parents)
               if path not in there and (path / FILE).is_file()]  # fmt: skip
    sources = _labelled([*first, *given, *parents])
    runs = {label: _points(label, path, wanted) for label, path in sources.items()
            if path not in parents}  # fmt: skip
    _same_questions([point for points in runs.values() for point in points])
    some = next(iter(runs.values()))[0]
    for label, path in sources.items():
        began = _began(label, path, wanted) if path in parents else None
        if began is not None and _alike(began.record, some.record):
            runs = {label: [began], **runs}
    own = {sources[label].resolve(): own_start(points) for label, points in runs.items()}
    of_all = None
    if start is not None:
        label = next(key for key, path in sources.items() if path.resolve() == start.resolve())
        of_all = own_start(runs[label]) or runs[label][-1]
    starts = {}
    for label, points in runs.items():
        path = sources[label].resolve()
        parent = own.get(path.parents[1]) if _of_a_run(path) else None
        starts[label] = own_start(points) or of_all or parent
    return Compared(runs, starts)


def _began(label: str, folder: Path, wanted: str | None) -> Point | None:
    """The start of a run that was not asked for itself, where it can be used."""
    try:
        return own_start(_points(label, folder, wanted))
    except ConfigError:
        return None


def _of_a_run(path: Path) -> bool:
    return path.resolve().parent.name == "checkpoints"


def _alike(one: QuestionRecord, two: QuestionRecord) -> bool:
    return one.fingerprint == two.fingerprint and one.budgets[-1] == two.budgets[-1]


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
    by_step: dict[int | None, dict[str | None, QuestionRecord]] = {}
    for record in records:
        by_step.setdefault(record.step, {})[record.set] = record
    steps = sorted(by_step, key=lambda step: step or 0)
    # Sets may have come later, or have got names later: the last evaluation says which is first.
    sets = list(dict.fromkeys(name for step in reversed(steps) for name in by_step[step]))
    if wanted is not None and wanted not in sets:
        there = ", ".join(name or "one without a name" for name in sets)
        raise ConfigError(f"compare: --set {wanted}: {label} has no such set; it has {there}")
    of = sets[0] if wanted is None else wanted
    names, selecting = _names(folder)
    if _of_a_run(folder):  # graded alone: its names are in the run's log
        names = {**_names(folder.resolve().parents[1])[0], **_known(names)}
    # A set that is only there to choose by is no result.
    unreported = selecting if selecting != sets[0] and selecting in sets else None
    left = [name for name in sets if unreported is None or name != unreported]
    left = left if wanted is None else [wanted]
    return [
        Point(
            label,
            step,
            names.get(step),
            by_step[step][of],
            {name: by_step[step][name] for name in left if name in by_step[step]},
            unreported,
        )
        for step in steps
        if of in by_step[step]
    ]


def _known(names: dict[int | None, str | None]) -> dict[int | None, str | None]:
    return {step: name for step, name in names.items() if name is not None}


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
