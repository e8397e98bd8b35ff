"""Results of the runs of an ablation, read from their folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.files import shown
from siri_train.monitor.question_records import QuestionRecord, read_question_records
from siri_train.monitor.run_logs import spent as spent_until

ENDS = ("siri-low", "siri-high")
"""The checkpoints that count by default in a run that has them; else the last one."""
_NAMES = ("start", *(end + late for end in ENDS for late in ("", "-lagged", "-measured")))
CHECKPOINTS = (*_NAMES, "last", "best")
"""Every name that a row of a table can have."""


@dataclass(frozen=True)
class Scores:
    """One run at one checkpoint.

    Attributes:
        step: steps done.
        questions: the same for the same questions in the same order.
        budgets: tokens, ascending.
        shares: for each budget the share of right answers to each question.
        lengths: mean tokens of the responses to each question.
        trained_tokens: response tokens sampled in training until then.
        seconds: of sampling and training until then, without evaluations.
    """

    step: int
    questions: str
    budgets: list[int]
    shares: list[list[float]]
    lengths: list[float]
    trained_tokens: int
    seconds: float


def finished(run: Path) -> bool:
    """Whether a run has ended: it writes ``summary.json`` last."""
    return bool(_json(run / "summary.json"))


def tokens_of(run: Path) -> int:
    """The response tokens that a finished run sampled in training."""
    return spent(run, None)[0]


def spent(run: Path, steps: int | None) -> tuple[int, float]:
    """Response tokens and seconds of sampling and updates in the first steps of a finished run.

    Args:
        run: its folder.
        steps: how many; None: all, up to the last evaluation.

    Raises:
        ConfigError: ``metrics.jsonl`` is damaged or lacks one of these steps.
    """
    if steps is None:
        steps = max((record.step or 0 for record in read_question_records(run)), default=0)
    path = run / "metrics.jsonl"
    found = spent_until(path, {steps}).get(steps)
    if found is None:
        raise ConfigError(
            f"{shown(path)}: lacks a step before {steps}, or says nothing about its tokens; remove "
            "the run's folder and run the same command again"
        )
    return found


def named_steps(run: Path, select: str | None) -> dict[str, int]:
    """The checkpoints of a finished run that have a name and were evaluated: steps by name.

    Every run is evaluated at its end, so without a record its file is missing or damaged.

    Args:
        run: its folder.
        select: the set by which ``best`` is chosen: the highest accuracy at the largest budget, of
            equal ones the shorter, then the earlier.

    Raises:
        ConfigError: it has no evaluation question by question.
    """
    rows = {one.step: one for one in read_question_records(run) if one.set == select}
    if not rows:
        raise _without_questions(run, "")
    named = {
        entry["name"]: entry["step"]
        for entry in _json(run / "summary.json")
        if isinstance(entry, dict)
        and entry.get("name") in _NAMES
        and isinstance(entry.get("step"), int)
        and entry["step"] in rows
    }
    trained = [step for step in rows if step]
    if trained:
        named["last"] = max(trained)
        named["best"] = max(
            trained,
            key=lambda step: (sum(rows[step].right[-1]), -sum(rows[step].tokens), -step),
        )
    return named


def scores(run: Path, step: int, named: str | None) -> Scores:
    """The evaluation of a run after ``step`` steps.

    Args:
        run: its folder.
        step: steps done.
        named: the set of questions; None where sets have no names.

    Raises:
        ConfigError: there is none question by question.
    """
    record = _record(run, step, named)
    tokens, seconds = spent(run, step)
    return Scores(
        step=step,
        questions=record.fingerprint,
        budgets=list(record.budgets),
        shares=[record.shares(place) for place in range(len(record.budgets))],
        lengths=list(record.tokens),
        trained_tokens=tokens,
        seconds=seconds,
    )


def _record(run: Path, step: int, named: str | None) -> QuestionRecord:
    for record in read_question_records(run):
        if (record.step, record.set) == (step, named):
            return record
    raise _without_questions(run, f" of step {step}")


def _without_questions(run: Path, of: str) -> ConfigError:
    return ConfigError(
        f"{shown(run)}: has no evaluation{of} by question (eval_questions.jsonl), which the tests "
        "need; remove the run's folder and run the same command again"
    )


def _json(path: Path) -> list[Any]:
    """The entries of ``summary.json``; empty if the file is missing or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
