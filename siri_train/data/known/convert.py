"""Makes our rows from those of a public set, so that the checks before a run take them.

No row disappears without a word: each that is left out is counted by its reason, and named.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from siri_train.data.damage import invisible
from siri_train.data.fields import is_chat, read_chat, read_field, read_text, stripped
from siri_train.data.gate import damaged, same_answer, unmeetable
from siri_train.data.known.registry import KnownSet
from siri_train.data.questions import Question
from siri_train.data.repeats import loose_key, strict_key
from siri_train.data.rows import DataError, Row
from siri_train.rewards import Verifier, last_boxed
from siri_train.rewards.code.problems import ProblemError, read_problem

_IDS = ("id", "unique_id", "problem_id", "task_id", "ID")
_LOOKED = 100
"""Rows in which columns are looked for."""
_NO_VALUE = frozenset({"none", "nan", "null", "<na>"})


@dataclass(frozen=True)
class Columns:
    """The columns of a source.

    Attributes:
        question: of the question.
        answer: of the answer.
        solution: of the worked solution; None: there is none.
        id: of the source's own number; None: there is none.
    """

    question: str
    answer: str
    solution: str | None
    id: str | None


@dataclass
class Converted:
    """The rows of a split.

    Attributes:
        kept: (question, row to write) in the order of the source.
        left_out: reason -> ``"FILE, line N: detail"`` of each row.
    """

    kept: list[tuple[Question, dict[str, Any]]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str, detail: str = "") -> None:
        """Count a row that is not written.

        Args:
            reason: a few words, the same for all rows of the kind.
            where: the row.
            detail: what is wrong with it.
        """
        self.left_out.setdefault(reason, []).append(f"{where}: {detail}" if detail else where)

    def sieve(self, found: Mapping[int, tuple[str, str]]) -> None:
        """Leave rows out.

        Args:
            found: position in ``kept`` -> (reason, detail).
        """
        for position, (reason, detail) in sorted(found.items()):
            self.leave_out(reason, self.kept[position][0].where, detail)
        self.kept = [pair for position, pair in enumerate(self.kept) if position not in found]


def find_columns(entry: KnownSet, rows: Sequence[Row], given: Mapping[str, str | None]) -> Columns:
    """Which columns hold question, answer and solution.

    Args:
        entry: the set; its names are tried in order.
        rows: of the source, at least one.
        given: ``question``, ``answer``, ``solution`` -> the user's column, or None.

    Raises:
        DataError: there is no such column; the message lists those that are there.
    """
    first, looked = rows[0], rows[:_LOOKED]

    def there(name: str) -> bool:
        return any(_held(row, name) is not None for row in looked)

    def chosen(role: str, names: tuple[str, ...]) -> str:
        wanted = given.get(role)
        for name in (wanted,) if wanted else names:
            if there(name):
                return name
        columns = ", ".join(map(str, first.fields))[:300]
        tried = f"no column {wanted!r}" if wanted else f"none of {', '.join(names)} is there"
        raise DataError(
            f"{first.where}: {role}: {tried}, or it is empty; the columns are {columns}; name one "
            f"with --{role}-field"
        )

    answers = entry.answer
    if entry.answer_after:
        marked = [
            n for n in answers if there(n) and entry.answer_after in str(read_field(first, n))
        ]
        answers = tuple(marked) or answers
    answer = chosen("answer", answers)
    solution = given.get("solution") or next((n for n in entry.solution if there(n)), None)
    if given.get("solution"):
        chosen("solution", ())
    return Columns(
        chosen("question", entry.question),
        answer,
        solution,
        next((name for name in _IDS if there(name)), None),
    )


def _held(row: Row, name: str) -> Any:
    """The value of a field; None where it is missing or, as in some copies, empty."""
    try:
        value = read_field(row, name)
    except DataError:
        return None
    return None if str(value).strip().casefold() in ("", *_NO_VALUE) else value


def convert(entry: KnownSet, rows: Sequence[Row], columns: Columns) -> Converted:
    """Make the rows of a set of questions with answers.

    Args:
        entry: the set.
        rows: of a split.
        columns: of the source.
    """
    found = Converted()
    for row in rows:
        try:
            question, written = _row(entry, row, columns)
        except DataError as error:
            found.leave_out("not readable", row.where, str(error).removeprefix(f"{row.where}: "))
            continue
        found.kept.append((question, written))
    return found


def _row(entry: KnownSet, row: Row, columns: Columns) -> tuple[Question, dict[str, Any]]:
    asked = read_field(row, columns.question)
    if is_chat(asked):
        messages = read_chat(asked, row, columns.question)
        if len(messages) > 1:
            raise DataError(f"{row.where}: field {columns.question!r}: a chat of several messages")
        prompt = messages[0][1]
    else:
        prompt = stripped(read_text(asked, row, columns.question))
    column = stripped(read_text(read_field(row, columns.answer), row, columns.answer))
    answer = column
    if entry.answer_after:
        _, mark, answer = column.rpartition(entry.answer_after)
        answer = stripped(answer)
        if not mark:
            raise DataError(f"{row.where}: field {columns.answer!r}: no {entry.answer_after!r}")
    else:
        inside = last_boxed(column)
        if inside is None and columns.answer == columns.solution:
            raise DataError(
                f"{row.where}: field {columns.answer!r}: no \\boxed{{}} holds an answer"
            )
        answer = column = column if inside is None else inside
    if invisible(prompt) or invisible(answer) or answer.casefold() in _NO_VALUE:
        raise DataError(f"{row.where}: no question or no answer")
    written: dict[str, Any] = {}
    if columns.id is not None and (number := row.fields.get(columns.id)) is not None:
        written["id"] = number if isinstance(number, (int, str)) else str(number)
    written |= {"question": prompt, "answer": column}
    solution = None
    if columns.solution is not None:
        value = _held(row, columns.solution)
        solution = None if value is None else stripped(read_text(value, row, columns.solution))
    if solution:
        written["solution"] = solution
    return Question(str(row.number), prompt, answer, solution or None, where=row.where), written


def convert_code(rows: Sequence[Row]) -> Converted:
    """Take problems whose answer is a program as they are, if they can be used.

    Args:
        rows: of a split.
    """
    found = Converted()
    for row in rows:
        try:
            problem = read_problem(row.fields)
        except ProblemError as error:
            found.leave_out("not readable", row.where, str(error))
            continue
        question = Question(str(row.number), problem.question, problem.gold, where=row.where)
        found.kept.append((question, dict(row.fields)))
    return found


def leave_out_unusable(found: Converted, verifier: Verifier) -> None:
    """Leave out what the checks before a run refuse.

    Args:
        found: rows of a split. All rows of a question with two answers go, as nobody knows which
            one is right.
        verifier: decides which answers are equal.
    """
    for reason, check in (
        ("text that lost a backslash", damaged),
        ("answer that no response can match", lambda asked: unmeetable(asked, verifier)),
    ):
        questions = [question for question, _ in found.kept]
        places = {id(question): place for place, question in enumerate(questions)}
        found.sieve({places[id(q)]: (reason, detail) for q, detail in check(questions)})
    groups: dict[str, list[int]] = {}
    for place, (question, _) in enumerate(found.kept):
        groups.setdefault(strict_key(question), []).append(place)
    refused: dict[int, tuple[str, str]] = {}
    for same in (group for group in groups.values() if len(group) > 1):
        first, *others = [found.kept[place][0] for place in same]
        if not all(same_answer(first, other, verifier) for other in others):
            said = ", ".join(dict.fromkeys(f"{q.answer!r:.40}" for q in (first, *others)))
            refused |= {place: ("question with two answers", said) for place in same}
    found.sieve(refused)


def leave_out_repeats(found: Converted, verifier: Verifier) -> None:
    """Leave out rows that repeat an earlier one but for blanks, case and punctuation.

    Args:
        found: rows of a split. Repeats with another answer stay: 5! is not 5.
        verifier: decides which answers are equal.
    """
    earlier: dict[str, list[Question]] = {}
    repeats: dict[int, tuple[str, str]] = {}
    for place, (question, _) in enumerate(found.kept):
        same = earlier.setdefault(loose_key(question), [])
        first = next((q for q in same if same_answer(q, question, verifier)), None)
        if first is None:
            same.append(question)
        else:
            repeats[place] = ("repeats an earlier row", f"of {first.where}")
    found.sieve(repeats)


def leave_out_held_out(found: Converted, sets: Mapping[str, Sequence[Question]]) -> dict[str, int]:
    """Leave the questions of test sets out of a training set.

    Args:
        found: rows of the training set.
        sets: name -> questions.

    Returns:
        Name -> rows left out.
    """
    keys: dict[str, str] = {}
    for name, questions in sets.items():
        for question in questions:
            keys.setdefault(loose_key(question), name)
    refused = {
        place: (f"question of {keys[key]}", "")
        for place, (question, _) in enumerate(found.kept)
        if (key := loose_key(question)) in keys
    }
    found.sieve(refused)
    names = [reason.removeprefix("question of ") for reason, _ in refused.values()]
    return {name: names.count(name) for name in sets}


def choose_apart(found: Converted, number: int) -> frozenset[str]:
    """Choose the validation questions of a set by a hash of the question alone.

    Order and spelling of the questions never matter. Another version of the set may move some:
    of those with the smallest hashes one more may come, or one go. Call it before
    :func:`leave_out_held_out`, so that a question of a test set takes none of the training side.
    A question whose text stands twice is never chosen.

    Args:
        found: rows of the set.
        number: of questions.

    Returns:
        Keys of the questions, for :func:`set_apart`.

    Raises:
        DataError: there are no more questions than that.
    """
    keys = [loose_key(question) for question, _ in found.kept]
    if keys and number >= len(keys):
        raise DataError(
            f"--validation: got {number}, but there are {len(keys)} questions; give less"
        )
    counts = Counter(keys)
    single = [key for key in keys if counts[key] == 1]
    return frozenset(sorted(single, key=lambda key: hashlib.sha256(key.encode()).digest())[:number])


def set_apart(
    found: Converted, apart: Collection[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide a set into training and validation rows.

    Args:
        found: rows of the set. A chosen question that is no longer there makes the validation
            set smaller, and changes nothing else.
        apart: of :func:`choose_apart`.

    Returns:
        Training rows and validation rows, each in the order of the set.

    Raises:
        DataError: one of both would be empty, though questions were chosen.
    """
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for question, row in found.kept:
        sides[loose_key(question) in apart].append(row)
    if apart and not all(sides):
        empty = "training" if not sides[0] else "validation"
        raise DataError(
            f"--validation: of {len(apart)} questions to set apart {len(sides[1])} are left and "
            f"{len(sides[0])} to train on, so the {empty} set is empty; give another number"
        )
    return sides
