"""``eval_questions.jsonl``: the results of evaluations question by question, for paired tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_train.monitor.run_logs import is_number

FILE = "eval_questions.jsonl"
"""In a run's folder, or in that of a checkpoint that ``siri-train eval`` has graded."""


@dataclass(frozen=True)
class QuestionRecord:
    """The results of one evaluation on one set.

    Args:
        step: steps done; None of a model that is no checkpoint of a run.
        set: name of the set; None where sets have no names.
        budgets: in tokens, ascending.
        samples: responses to each question.
        ids: of the questions, in order.
        fingerprint: the same for the same questions with the same answers in the same order.
        right: for each budget the number of right answers to each question.
        tokens: mean response tokens of each question at the largest budget.
    """

    step: int | None
    set: str | None
    budgets: tuple[int, ...]
    samples: int
    ids: tuple[str, ...]
    fingerprint: str
    right: tuple[tuple[int, ...], ...]
    tokens: tuple[float, ...]

    def shares(self, budget: int = -1) -> list[float]:
        """The share of right answers to each question.

        Args:
            budget: place in ``budgets``; default: the largest.
        """
        return [count / self.samples for count in self.right[budget]]

    def row(self) -> dict[str, Any]:
        """The line of the file, as an object."""
        return {
            "step": self.step,
            "set": self.set,
            "budgets": list(self.budgets),
            "samples": self.samples,
            "ids": list(self.ids),
            "fingerprint": self.fingerprint,
            "right": [list(counts) for counts in self.right],
            "tokens": list(self.tokens),
        }


def read_question_records(run_dir: Path) -> list[QuestionRecord]:
    """Read the records of a run, or of a checkpoint that was graded on its own.

    Args:
        run_dir: the folder that holds ``eval_questions.jsonl``; without the file there are none.

    Returns:
        In order of their first appearance. Of two of one step and set the last counts; a line
        that holds no record (half-written, damaged) is left out.

    Raises:
        OSError: the file is there and cannot be read.
    """
    path = Path(run_dir) / FILE
    found: dict[tuple[int | None, str | None], QuestionRecord] = {}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                record = _record(line)
                if record is not None:
                    found[record.step, record.set] = record
    return list(found.values())


def fingerprint(questions: Sequence[tuple[str, str]]) -> str:
    """A short hash of questions with their answers, in order.

    Args:
        questions: (question, answer) texts.
    """
    text = json.dumps([list(pair) for pair in questions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_questions(row: dict[str, Any]) -> bool:
    """Whether an object is a whole record: numbers of the right kind, lists of one length."""
    lists = [row.get(key) for key in ("budgets", "ids", "right", "tokens")]
    if not all(isinstance(value, list) and value for value in lists):
        return False
    budgets, ids, right, tokens = lists
    assert budgets is not None and ids is not None and right is not None and tokens is not None
    samples, step = row.get("samples"), row.get("step")
    if not _whole(samples, 1) or not (step is None or _whole(step, 0)):
        return False
    counted = len(right) == len(budgets) and all(
        isinstance(counts, list)
        and len(counts) == len(ids)
        and all(_whole(count, 0) and count <= samples for count in counts)
        for counts in right
    )
    return (
        counted
        and len(tokens) == len(ids)
        and all(_whole(budget, 1) for budget in budgets)
        and all(is_number(value, True) and value >= 0 for value in tokens)
        and all(isinstance(one, str) for one in ids)
        and isinstance(row.get("fingerprint"), str)
        and isinstance(row.get("set"), (str, type(None)))
    )


def _record(line: str) -> QuestionRecord | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not of_questions(row):
        return None
    return QuestionRecord(
        step=row.get("step"),
        set=row.get("set"),
        budgets=tuple(row["budgets"]),
        samples=row["samples"],
        ids=tuple(row["ids"]),
        fingerprint=row["fingerprint"],
        right=tuple(tuple(counts) for counts in row["right"]),
        tokens=tuple(float(value) for value in row["tokens"]),
    )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
