"""Reads a run folder for its report.

A report is needed most after a crash. So a missing, half-written or damaged file raises nothing:
the data have gaps and notes name the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .arms import averaged, seeds_by_arm, uneven
from .latest import latest_rows
from .many import MOST_RUNS
from .readers import Row, interval, number, read_json, read_rows, read_text
from .records import SEEDS, Evaluation, Run, RunFolder
from .samples import SAMPLE_BYTES, read_samples

ABOUT = "about.txt"
"""Beside ``summary.json``: a paragraph a line, shown at the top of the page."""
LONGEST_ABOUT = 4000
"""Characters of it."""
CHOOSE = "To choose the runs of a page: siri-train compare RUN RUN --page FILE."
"""Said where a folder holds too many."""


__all__ = ["Evaluation", "Run", "RunFolder", "interval", "number", "read_run_folder", "series"]


def series(rows: list[Row], key: str) -> list[tuple[float, float | None]]:
    """(step, value) of one metric over the steps; None where a record has no finite value.

    Args:
        rows: of ``metrics.jsonl``, by step, or a mean of several; see `over`.
        key: of the metric.
    """
    return over(rows, lambda row: number(row.get(key)))


def over(
    rows: Sequence[Row], value: Callable[[Row], float | None]
) -> list[tuple[float, float | None]]:
    """(step, value) of something that records say.

    A mean over seeds has a gap before each step from which it is over other than as many
    seeds as before, at half a step: `running_mean` does not look over it.

    Args:
        rows: of ``metrics.jsonl``, by step, or a mean of several.
        value: of a record; None where it has none.
    """
    found: list[tuple[float, float | None]] = []
    before: object = None
    for row in rows:
        count = row.get(SEEDS)
        if found and count != before:
            found.append((row["step"] - 0.5, None))
        before = count
        found.append((float(row["step"]), value(row)))
    return found


def read_run_folder(folder: Path) -> RunFolder:
    """Read a run folder, or a folder of runs; missing files leave gaps.

    Args:
        folder: holds a run's files itself, or sub-folders that do (``siri/`` and ``constant/`` of
            the demo), or both. ``summary.json`` lies at the top.

    Returns:
        The runs with their records sorted by step (where a resumed run wrote a step twice, the last
        record counts), the summary, and notes on what is missing or could not be read.

    Raises:
        FileNotFoundError: if ``folder`` itself does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"run_dir: got {str(folder)!r}, which is no folder")
    notes: list[str] = []
    arms = seeds_by_arm(folder)
    if arms and not _holds_run(folder):
        return _read_arms(folder, arms)
    inner = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name not in ("checkpoints", "rollouts") and _holds_run(path)
    ]
    if len(inner) > MOST_RUNS:
        left = ", ".join(path.name for path in inner[MOST_RUNS:])
        notes.append(f"More than {MOST_RUNS} runs; left out: {left}. {CHOOSE}")
        inner = inner[:MOST_RUNS]
    room = SAMPLE_BYTES // max(1, len(inner))
    runs = [_read_run(path, f"{path.name}/", notes, room) for path in inner]
    if not inner or _holds_run(folder):
        runs.insert(0, _read_run(folder, "", notes, room))
    else:  # files that belong to all sub-runs together
        shared = Run(folder.name, folder, alarms=read_rows(folder / "alarms.jsonl", "", notes))
        shared.config = read_text(folder / "config.yaml")
        shared.manifest = read_json(folder / "checkpoints" / "manifest.json", "", notes, dict) or {}
        first = next((run for run in runs if not run.control), runs[0])
        first.alarms = shared.alarms + first.alarms
        first.manifest = first.manifest or shared.manifest
        first.config = first.config or shared.config
    for run in runs:
        if run.config is None and not any(other.config for other in runs):
            notes.append(f"{run.name}: config.yaml is missing, so the configuration is not shown.")
    summary = read_json(folder / "summary.json", "", notes, list)
    if summary is None:
        notes.append(
            "summary.json is missing, so there is no headline table. A run writes it when it ends."
        )
    rows = [row for row in summary or [] if isinstance(row, dict)]
    runs.sort(key=lambda run: run.control)  # stable: controls are drawn and named last
    about = (read_text(folder / ABOUT) or "")[:LONGEST_ABOUT]
    return RunFolder(folder, runs, rows, notes, about)


def _read_arms(folder: Path, arms: dict[str, list[Path]]) -> RunFolder:
    """An ablation: each arm is one run, the mean of its seeds that have begun."""
    notes: list[str] = []
    begun = {
        arm: there for arm, seeds in arms.items() if (there := [p for p in seeds if _holds_run(p)])
    }
    runs = []
    seeds_of: list[str] = []
    for arm, seeds in list(begun.items())[:MOST_RUNS]:
        missing: list[str] = []
        room = SAMPLE_BYTES // min(len(begun), MOST_RUNS)
        read = [
            _read_run(path, f"{arm}/{path.name}/", missing, room if path is seeds[0] else 0)
            for path in seeds
        ]
        notes += missing[:3]
        runs.append(averaged(arm, read))
        seeds_of.append(f"{arm} {len(seeds)}")
        notes += uneven(runs[-1])
    said = (
        "An ablation: each curve is the mean of an arm's seeds (" + ", ".join(seeds_of) + "), the "
        "bars of an accuracy are the range of its seeds, and responses are of each arm's first "
        "seed. A seed has a page and a verdict of its own: siri-train report with its folder. The "
        "tests between arms are in ablate.md."
    )
    if len(begun) > MOST_RUNS:
        left = ", ".join(list(begun)[MOST_RUNS:])
        notes.insert(0, f"More than {MOST_RUNS} arms; left out: {left}. {CHOOSE}")
    runs.sort(key=lambda run: run.control)
    about = (read_text(folder / ABOUT) or "")[:LONGEST_ABOUT]
    summary = [row for run in runs for row in latest_rows(run)]
    return RunFolder(folder, runs, summary, notes, f"{said}\n{about}", several=True)


def _holds_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.jsonl", "eval.jsonl"))


def _read_run(folder: Path, prefix: str, notes: list[str], room: int) -> Run:
    run = Run(folder.resolve().name, folder)
    for name, needed_for in (
        ("metrics.jsonl", "the curves over the steps"),
        ("eval.jsonl", "the accuracy-length plane and the held-out accuracy"),
    ):
        if not (folder / name).is_file():
            notes.append(f"{prefix}{name} is missing, which is where {needed_for} come from.")
    by_step = {row["step"]: row for row in _steps(folder / "metrics.jsonl", prefix, notes)}
    run.metrics = [by_step[step] for step in sorted(by_step)]
    evals = [_evaluation(row) for row in _steps(folder / "eval.jsonl", prefix, notes)]
    by_key = {(one.step, one.name): one for one in evals}
    run.evals = sorted(by_key.values(), key=lambda one: (one.step, one.name or ""))
    run.alarms = read_rows(folder / "alarms.jsonl", prefix, notes)
    run.config = read_text(folder / "config.yaml")
    run.manifest = read_json(folder / "checkpoints" / "manifest.json", prefix, notes, dict) or {}
    if not run.manifest and not run.control:
        notes.append(
            f"{prefix}checkpoints/manifest.json is missing, so no siri-low or siri-high "
            "checkpoint is marked by it."
        )
    found = read_samples(folder / "rollouts", prefix, notes, room)
    run.samples, run.recorded, run.parts = found
    return run


def _evaluation(row: Row) -> Evaluation:
    sets = row.get("sets")  # by name; the first is the one to report
    others: list[Evaluation] = []
    if isinstance(sets, dict):
        whole = {**row, "sets": None}
        fixed = {key: whole.get(key) for key in ("step", "name", "budgets", "sets")}
        each = [
            {**whole, **one, **fixed, "set": key}
            for key, one in sets.items()
            if isinstance(one, dict)
        ]
        row, others = (each or [whole])[0], [_evaluation(one) for one in each[1:]]

    def listed(key: str) -> list[Any]:
        value = row.get(key)
        return list(value) if isinstance(value, (list, tuple)) else []

    def at(values: list[Any], index: int) -> Any:
        return values[index] if index < len(values) else None

    budgets = [number(value) for value in listed("budgets")]
    order = sorted(
        (i for i, value in enumerate(budgets) if value is not None),
        key=lambda i: budgets[i] or 0.0,
    )
    name, questions, samples = row.get("name"), number(row.get("questions")), row.get("samples")
    count = number(samples)
    return Evaluation(
        step=row["step"],
        name=name if isinstance(name, str) else None,
        budgets=tuple(int(budgets[i] or 0) for i in order),
        accuracy=tuple(number(at(listed("accuracy"), i)) for i in order),
        intervals=tuple(interval(at(listed("accuracy_interval"), i)) for i in order),
        tokens=number(row.get("tokens")),
        tokens_at=tuple(number(at(listed("tokens_at"), i)) for i in order),
        truncated=tuple(number(at(listed("truncated_frac"), i)) for i in order),
        backtrack=number(row.get("backtrack_per_1k")),
        questions=None if questions is None else int(questions),
        samples=None if count is None else int(count),
        set=of_set if isinstance(of_set := row.get("set"), str) else None,
        seconds=number(row.get("seconds")),
        sampled=number(row.get("tokens_sampled")),
        others=tuple(others),
    )


def _steps(path: Path, prefix: str, notes: list[str]) -> Iterator[Row]:
    """Records with a usable step number, as a plain int."""
    dropped = 0
    for row in read_rows(path, prefix, notes):
        step = number(row.get("step"))
        if step is None or not 0 <= step < 1e12:
            dropped += 1
        else:
            yield {**row, "step": int(step)}
    if dropped:
        notes.append(f"{prefix}{path.name}: {dropped} row(s) without a step number were left out.")
