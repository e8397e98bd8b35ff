"""Problems whose answer is a program, as questions: from files, from the hub, or ours."""

from __future__ import annotations

import os
import re
from pathlib import Path

from siri_train.data.damage import invisible
from siri_train.data.questions import Question
from siri_train.data.row_files import rows_of
from siri_train.data.rows import DataError
from siri_train.rewards.code.problems import ProblemError, read_problem

OURS = Path(__file__).with_name("code_problems")
"""The folder of our own problems, ``train.jsonl`` and ``test.jsonl``."""
_MARKS = re.compile(r"^[ \t]*(`{3,})", re.MULTILINE)


def load_problems(
    path: str | os.PathLike[str], *, split: str = "train", limit: int | None = None, offset: int = 0
) -> list[Question]:
    """Load problems in the form of HumanEval or MBPP; a file may hold both.

    Args:
        path: see :func:`siri_train.data.questions.load_questions`, as the following.
        split: which part of a folder or hub set.
        limit: at most this many problems.
        offset: skip this many rows first.

    Returns:
        At least one ``Question`` of the form ``"code"``. Its solution is a response: the reference
        program in a fenced block.

    Raises:
        DataError: a row that is no problem (file, line, field and reason), or see
            :func:`siri_train.data.questions.load_questions`.
    """
    found = []
    for name, row in rows_of(path, split, limit=limit, offset=offset):
        try:
            problem = read_problem(row.fields)
        except ProblemError as error:
            raise DataError(f"{row.where}: {error}") from error
        where = f"{row.where} ({problem.id})" if problem.id else row.where
        if invisible(problem.question):
            raise DataError(f"{where}: the question is empty; correct or drop the row")
        solution = None
        if problem.reference is not None:
            # A line of marks in the program must not close the block.
            marks = "`" * max([3, *(len(run) + 1 for run in _MARKS.findall(problem.reference))])
            solution = f"{marks}python\n{problem.reference.strip(chr(10))}\n{marks}"
        found.append(
            Question(
                f"{name}-{row.number}",
                problem.question,
                problem.gold,
                solution,
                where=where,
                form="code",
            )
        )
    return found
