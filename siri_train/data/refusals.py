"""One line about the rows that a run cannot use."""

from __future__ import annotations

from collections.abc import Iterable

from siri_train.config.base import ConfigError
from siri_train.data.questions import Question

_SHOWN = 5


def place(question: Question) -> str:
    """Where a question comes from: file and line, or its id where it was generated."""
    return question.where or question.id


def refuse(key: str, found: Iterable[tuple[Question, str]], total: int) -> None:
    """Raise for the first of ``found``, with the number of rows that have a problem of the kind.

    Args:
        key: of the list in the recipe.
        found: questions and what is wrong with each; may be empty.
        total: questions of the list.

    Raises:
        ConfigError: ``found`` holds one.
    """
    rows = list(found)
    if not rows:
        return
    (first, reason), others = rows[0], [place(q).rpartition(", ")[2] for q, _ in rows[1:]]
    more = ""
    if others:
        shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        more = f"; {len(rows)} of {total} rows are like this (also {shown})"
    raise ConfigError(f"{key}: {place(first)}: {reason}{more}")
