"""The result of the demo: one summary of all its runs, and paired tests in sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_train.monitor.question_records import QuestionRecord, read_question_records
from siri_train.statistics.paired import Paired, paired_test, verdict

Entry = dict[str, Any]


@dataclass(frozen=True)
class Control:
    """A finished run with a constant cap.

    Attributes:
        cap: in tokens.
        folder: of the run.
    """

    cap: int
    folder: Path


def entries(out: Path, siri: Path, controls: Sequence[Control], select: str | None) -> list[Entry]:
    """One summary of all runs, with paths relative to the folder that holds them.

    ``constant-cap`` is the control with the longest cap, ``constant-N`` one with another, and
    ``best_constant`` is true in the entry whose mean accuracy over all budgets is the highest on
    the set that selects. ``siri-low`` and ``siri-high`` are the checkpoints where the measured
    length turned behind the last ends; ``siri-low-scheduled`` is the one at the shortest cap.

    Args:
        out: the folder that holds the runs.
        siri: of the run with the moving cap.
        controls: at least one, the longest cap first.
        select: name of the set of questions by which the best control is chosen.
    """
    own = {entry["name"]: entry for entry in _summary(siri)}
    found = [_placed(out, "start", own["start"], siri)]
    best = max(controls, key=lambda one: _mean_accuracy(one.folder, select))
    for place, control in enumerate(controls):
        name = f"constant-{control.cap}" if place else "constant-cap"
        entry = {row["name"]: row for row in _summary(control.folder)}["constant-cap"]
        placed = {**_placed(out, name, entry, control.folder), "cap": control.cap}
        found.append({**placed, "best_constant": control is best})
    found += [
        _placed(out, "siri-low", own["siri-low-measured"], siri),
        _placed(out, "siri-low-scheduled", own["siri-low"], siri),
        _placed(out, "siri-high", own["siri-high-measured"], siri),
    ]
    return found


def sentences(out: Path, summary: Sequence[Entry], named: str | None) -> list[str]:
    """The paired tests of siri-low and siri-high against controls, in words.

    Args:
        out: the folder that holds the runs.
        summary: as `entries` gave it.
        named: the set of questions that is reported.
    """
    of = {entry["name"]: _records(out / entry["run"])[entry["step"], named] for entry in summary}
    best = next(entry["name"] for entry in summary if entry.get("best_constant"))
    caps = {entry["name"]: entry["cap"] for entry in summary if "cap" in entry}
    said = []
    for name in ("siri-low", "siri-high"):
        for control in dict.fromkeys(("constant-cap", best)):
            one, two = of[name], of[control]
            what = "the best fixed cap" if control == best else "the longest cap"
            right = paired_test(one.shares(), two.shares())
            tokens = paired_test(one.tokens, two.tokens)
            said.append(
                f"{name} against {what} ({caps[control]}): "
                f"{_told(right, 100, 'points')}; {_told(tokens, 1, 'tokens')}."
            )
    count = len(next(iter(of.values())).ids)
    said.append(
        f"In brackets: 95 % intervals, paired on the same {count} test questions. One run of each: "
        "what other seeds give is not in them; python -m bench demo measures it."
    )
    return said


def _told(test: Paired, scale: float, unit: str) -> str:
    text = f"{scale * test.difference:+.1f} {unit} ({scale * test.low:+.1f} to "
    text += f"{scale * test.high:+.1f})"
    return text.replace("-", "−") + (", no difference shown" if "no " in verdict(test) else "")


def _placed(out: Path, name: str, entry: Entry, run: Path) -> Entry:
    place = run.relative_to(out).as_posix()
    path = entry["path"]
    if path.startswith("checkpoints/"):
        path = f"{place}/{path}"
    return {**entry, "name": name, "path": path, "run": place}


def _summary(run: Path) -> list[Entry]:
    found: list[Entry] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def _records(run: Path) -> dict[tuple[int | None, str | None], QuestionRecord]:
    return {(one.step, one.set): one for one in read_question_records(run)}


def _mean_accuracy(run: Path, named: str | None) -> float:
    """The accuracy of a run's last evaluation, in the mean over all budgets."""
    records = _records(run)
    last = max(step for step, _ in records if step is not None)
    shares = [
        records[last, named].shares(place) for place in range(len(records[last, named].right))
    ]
    return sum(sum(one) / len(one) for one in shares) / len(shares)
