"""Questions with a known answer: from files, from the hub, or generated."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from siri_train.data.damage import invisible
from siri_train.data.fields import Messages, is_chat, read_chat, read_field, read_text, stripped
from siri_train.data.known.registry import get_hint
from siri_train.data.row_files import HUB, expanded, rows_of
from siri_train.data.rows import (
    DataError,
    MissingDataError,
    Row,
    describe_missing,
    nearest,
    read_rows,
)
from siri_train.data.worked_sums import worked_sum

__all__ = [
    "REASONING_GYM_TASKS",
    "DataError",
    "MissingDataError",
    "Question",
    "find_first",
    "load_questions",
    "read_rows",
    "reasoning_gym_questions",
]

_PATIENCE = 120.0
"""Seconds to wait for one generated question; the slowest task needs 0.1 s by default."""
MOST_GENERATED = 10**6
"""The largest ``size`` of a generated set."""

_CORRECT = "; correct or drop the row"

# Texts that pandas and similar libraries write for a missing value.
_NO_VALUE = frozenset({"nan", "<na>", "null"})

REASONING_GYM_TASKS = (
    "aiw",
    "basic_arithmetic",
    "binary_alternation",
    "chain_sum",
    "circuit_logic",
    "count_bits",
    "count_primes",
    "gcd",
    "gsm_symbolic",
    "largest_island",
    "lcm",
    "leg_counting",
    "letter_counting",
    "maze",
    "number_sequence",
    "products",
    "rectangle_count",
    "rotten_oranges",
    "self_reference",
    "simple_equations",
    "simple_geometry",
)
"""Tasks whose gold answer is always an integer, so that comparing numbers is a fair check.

Others have scorers that accept wrong answers (game_of_life_halting, acre) or answers in
another base (base_conversion).
"""


@dataclass(frozen=True)
class Question:
    """A question whose answer can be checked.

    Attributes:
        id: unique within its source and stable between runs.
        prompt: the question's text, without template or instruction; for a chat, all its messages
            with a blank line between them.
        answer: the right answer.
        solution: a worked solution as the source has it, or None.
        messages: (role, text) of each message where the row is a chat of several, the last one the
            user's; empty: ``prompt`` is the only message.
        where: file and line or row, for messages about it; empty where it was generated.
        set: name of the evaluation set it belongs to; empty: none has a name.
        form: ``"box"``: the answer stands in a box; ``"code"``: it is a program, ``answer`` holds
            the tests and ``solution`` is a response with a program that passes them.
    """

    id: str
    prompt: str
    answer: str
    solution: str | None = None
    messages: Messages = ()
    where: str = field(default="", compare=False)
    set: str = ""
    form: Literal["box", "code"] = "box"


def load_questions(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    question_field: str = "question",
    answer_field: str = "answer",
    answer_after: str | None = None,
    solution_field: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Question]:
    """Load questions from a file, a folder or the hub.

    Args:
        path: a ``.jsonl``, ``.json`` or ``.parquet`` file; a folder with ``SPLIT.jsonl`` (or the
            other suffixes, or ``SPLIT-*.parquet``); or ``"hub:OWNER/NAME"`` or
            ``"hub:OWNER/NAME:CONFIG"``, each with an optional ``@REVISION`` behind it.
        split: which part of a folder or hub set; a file is read whole.
        question_field: the column of the question. Dots descend into structures. A chat list
            (``[{"role": ..., "content": ...}]``) is taken whole, see ``Question.messages``.
        answer_field: the column of the answer; ``"reward_model.ground_truth"`` and
            ``"extra_info.answer"`` read DAPO's and DeepScaleR's training files. Text, a number
            (its digits written out, see ``written_number``), or a list of one of them.
        answer_after: the answer is what follows the last occurrence of this mark (GSM8K:
            ``"####"``). The whole column is then also the solution, unless ``solution_field``
            names another.
        solution_field: the column of the worked solution, if there is one; it may be empty.
        limit: at most this many questions.
        offset: skip this many rows first.

    Returns:
        At least one ``Question``. Ids are ``"train-12"``: the file's name and the row's number.

    Raises:
        DataError: a malformed row (file, line or row, reason), half a surrogate pair in a text, a
            number that is not finite, a chat that cannot be asked whole, a missing file (the
            nearest ones), an offset past the end, or no row at all.
        ImportError: pyarrow or datasets is needed and missing.
        ValueError: a negative offset or a limit below 1.
    """
    if offset < 0:
        raise ValueError(f"offset: got {offset}, takes 0 or more")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}, takes at least 1")
    return [
        _question(name, row, question_field, answer_field, answer_after, solution_field)
        for name, row in rows_of(path, split, limit=limit, offset=offset)
    ]


def reasoning_gym_questions(
    task: str,
    size: int,
    seed: int,
    *,
    progress: Callable[[int], None] | None = None,
    **params: Any,
) -> list[Question]:
    """Generate questions with reasoning-gym.

    Args:
        task: one of ``REASONING_GYM_TASKS``.
        size: how many.
        seed: the same seed gives the same questions; training and evaluation must differ in it.
            Sets of different seeds have no item in common, but small tasks repeat questions.
        progress: called about five times a second with the number of questions made.
        **params: the task's own parameters (``min_terms=2``).

    Returns:
        ``size`` questions with integer answers; those of ``gsm_symbolic`` and ``chain_sum`` have
        worked solutions too.

    Raises:
        DataError: a task that is not offered (names the nearest), a parameter that the task does
            not take or with which it makes no question in two minutes, or an answer that is not an
            integer.
        ImportError: reasoning-gym, or a package that it needs, is missing.
        ValueError: size below 1 or above :data:`MOST_GENERATED`.
    """
    if task not in REASONING_GYM_TASKS:
        raise DataError(
            f"reasoning-gym task {task!r} is not offered{nearest(task, REASONING_GYM_TASKS)}; "
            f"tasks with integer answers: {', '.join(REASONING_GYM_TASKS)}"
        )
    if not 1 <= size <= MOST_GENERATED:
        raise ValueError(f"size: got {size}, takes a whole number from 1 to {MOST_GENERATED}")
    try:
        import reasoning_gym  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"generated questions need reasoning-gym with its dependencies ({error}): "
            "pip install reasoning-gym==0.1.25"
        ) from error
    questions = []
    for index, entry in enumerate(_entries(task, size, seed, params, progress)):
        answer = str(entry["answer"]).strip()
        if not re.fullmatch(r"[+-]?[0-9]+", answer):
            raise DataError(
                f"reasoning-gym task {task}, item {index}: answer {answer!r} is no integer"
            )
        metadata = entry.get("metadata") or {}
        solution = metadata.get("answer_cot")
        if "expression" in metadata and task == "chain_sum":
            solution = worked_sum(metadata["expression"])
        questions.append(
            Question(f"{task}-{seed}-{index}", entry["question"].strip(), answer, solution)
        )
    return questions


def _entries(
    task: str,
    size: int,
    seed: int,
    params: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> list[dict[str, Any]]:
    """Generate with reasoning-gym, in a thread, as some parameters keep it busy for ever."""
    import reasoning_gym

    made: list[dict[str, Any]] = []
    failed: list[BaseException] = []
    given_up = threading.Event()

    def make() -> None:
        try:
            # It makes item i from seed + i, so neighbouring seeds would share nearly all items.
            apart = seed * MOST_GENERATED
            dataset = reasoning_gym.create_dataset(task, size=size, seed=apart, **params)
            for index in range(size):
                if given_up.is_set():
                    return
                made.append(dataset[index])
        except BaseException as error:  # tasks raise errors of many kinds
            failed.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        seen, since = 0, time.monotonic()
        while thread.is_alive():
            thread.join(0.2)
            if len(made) > seen:
                seen, since = len(made), time.monotonic()
            elif time.monotonic() - since > _PATIENCE and thread.is_alive():
                raise DataError(
                    f"reasoning-gym task {task}: parameters {params}: no question in "
                    f"{_PATIENCE:.0f} s ({seen} of {size} made); give smaller params"
                )
            if progress is not None:
                progress(seen)
    finally:
        given_up.set()
    if failed:
        error = failed[0]
        raise DataError(
            f"reasoning-gym task {task}: parameters {params}: {type(error).__name__}: {error}"
        ) from error
    return made


def find_first(paths: Sequence[str | os.PathLike[str]]) -> str:
    """The first candidate that exists.

    Args:
        paths: files, folders or ``"hub:..."`` names, best first; ``~`` is expanded. A hub name
            counts as existing, so it belongs last.

    Returns:
        The candidate, expanded.

    Raises:
        DataError: none exists (``MissingDataError``, listing all), the list is empty, or ``~NAME``
            of a user who does not exist.
    """
    if not paths:
        raise DataError("no path given")
    tried = []
    for path in paths:
        text = os.fspath(path)
        if text.startswith(HUB):
            return text
        text = expanded(text)
        if os.path.exists(text):
            return text
        tried.append(text)
    if len(tried) == 1:
        missing = Path(tried[0])
        raise MissingDataError(f"{describe_missing(missing)}{get_hint(missing)}")
    hint = next(filter(None, (get_hint(Path(text)) for text in tried)), "")
    raise MissingDataError(f"none of these exists: {', '.join(tried)}; give one that does{hint}")


def _question(
    name: str,
    row: Row,
    question_field: str,
    answer_field: str,
    answer_after: str | None,
    solution_field: str | None,
) -> Question:
    asked = read_field(row, question_field)
    messages = read_chat(asked, row, question_field) if is_chat(asked) else ()
    prompt = "\n\n".join(text for _, text in messages)
    if not messages:
        prompt = stripped(read_text(asked, row, question_field))
    column = read_text(read_field(row, answer_field), row, answer_field)
    answer, solution = column, None
    if answer_after is not None:
        _, mark, answer = column.rpartition(answer_after)
        if not mark:
            raise DataError(
                f"{row.where}: {answer_after!r} does not occur in field {answer_field!r}; set "
                "answer_after to a text that stands before every answer, or null, or correct the "
                "row"
            )
        solution = column
    if solution_field is not None:
        value = read_field(row, solution_field)
        solution = None if value is None else stripped(read_text(value, row, solution_field))
    answer = stripped(answer)
    if invisible(prompt):
        raise DataError(f"{row.where}: field {question_field!r} is empty{_CORRECT}")
    if invisible(answer):
        raise DataError(f"{row.where}: field {answer_field!r} holds no answer{_CORRECT}")
    if answer.casefold() in _NO_VALUE:
        raise DataError(
            f"{row.where}: field {answer_field!r} holds {answer!r}, a missing value written as text"
        )
    # A chat of one user message is a plain question.
    chat = messages if len(messages) > 1 else ()
    return Question(f"{name}-{row.number}", prompt, answer, solution or None, chat, row.where)
