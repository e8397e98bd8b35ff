"""Reads the fields of data rows: text, a number, or a chat."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from siri_train.data.damage import eaten_backslash
from siri_train.data.numbers import written_number
from siri_train.data.rows import DataError, Row, nearest

Messages = tuple[tuple[str, str], ...]
"""(role, text) of each message of a chat."""

ROLES = ("system", "user", "assistant")

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def read_field(row: Row, name: str) -> Any:
    """The value of a field.

    Args:
        row: of the data file.
        name: the field's; dots descend into structures.

    Raises:
        DataError: no such field; names the fields of the row and the nearest.
    """
    if name in row.fields:
        return row.fields[name]
    value: Any = row.fields
    walked: list[str] = []
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            inside = f" in {'.'.join(walked)!r}" if walked else ""
            if not isinstance(value, dict):
                raise DataError(
                    f"{row.where}: no field {name!r}: {'.'.join(walked)!r} has no fields; "
                    f"give a field that the row has: {', '.join(map(_shown, row.fields))[:300]}"
                )
            near = nearest(part, map(str, value))
            raise DataError(
                f"{row.where}: no field {part!r}{inside}; it has "
                f"{', '.join(map(_shown, value))[:300] or 'none'}"
                f"{near or '; correct the row, or set the source to a field it has'}"
            )
        value = value[part]
        walked.append(part)
    return value


def read_text(value: Any, row: Row, name: str) -> str:
    """The text of a field: a string, a number's digits, or a list of one of these.

    Args:
        value: of the field.
        row: where it stands.
        name: the field's.

    Raises:
        DataError: another kind of value, a number that is not finite, or half a surrogate pair.
    """
    if isinstance(value, str):
        return whole_text(value, row, name)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        text = written_number(value)
        if text is None:
            raise DataError(
                f"{row.where}: field {name!r}: expected text or a finite number that can be "
                f"written out, got {str(value):.40}"
            )
        return text
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], (list, dict)):
        return read_text(value[0], row, name)
    hint = ""
    if is_chat(value):
        hint = "; a chat can be the question, not the answer or the solution"
    elif _is_sharegpt(value):
        hint = "; a chat has the keys 'role' and 'content', not 'from' and 'value'"
    raise DataError(
        f"{row.where}: field {name!r}: expected text, a number or a chat, got {_kind(value)}{hint}"
    )


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages with ``role`` and ``content``."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item and "content" in item for item in value)
    )


def read_chat(value: Any, row: Row, name: str) -> Messages:
    """The whole chat of a field.

    Args:
        value: a list for which ``is_chat`` holds.
        row: where it stands.
        name: the field's.

    Returns:
        (role, text) of every message, blanks around the text stripped.

    Raises:
        DataError: a chat of which something would be lost, or that is no question: no user message,
            a last message that is not the user's, another role, content that is not text, an empty
            message, a system message that is not the first, or further keys with a value.
    """
    place = f"{row.where}: field {name!r}"
    found: list[tuple[str, str]] = []
    for number, item in enumerate(value):
        message = f"{place}: message {number}"
        role = item["role"]
        if role not in ROLES:
            raise DataError(f"{message}: role {_shown(role)!r}; takes {', '.join(ROLES)}")
        if role == "system" and number:
            raise DataError(f"{message}: a system message must be the first")
        more = [str(k) for k, v in item.items() if k not in ("role", "content") and v]
        if more:
            raise DataError(
                f"{message}: {', '.join(map(_shown, more))} would not reach the model; takes role "
                "and content only"
            )
        text = stripped(_content(item["content"], row, name))
        if not text:
            raise DataError(f"{message}: the {role} message is empty; correct or drop the row")
        found.append((role, text))
    if not any(role == "user" for role, _ in found):
        raise DataError(f"{place} is a chat without a user message; add one at its end")
    if found[-1][0] != "user":
        raise DataError(
            f"{place}: the chat ends with the {found[-1][0]} message; a question ends with the "
            "user's (leave the answer to the model)"
        )
    return tuple(found)


def stripped(text: str) -> str:
    """``text`` without blanks around it, unless one of them replaced a backslash.

    A form feed or a tab at the start may come from a LaTeX command whose backslash JSON took as an
    escape. It must stay, so that the checks of the data refuse the row.
    """
    return text if eaten_backslash(text) else text.strip()


def whole_text(text: str, row: Row, name: str) -> str:
    """``text`` itself, if every tokenizer and every file can take it.

    Args:
        text: of the field.
        row: where it stands, for the message.
        name: the field's, for the message.

    Raises:
        DataError: half of a surrogate pair, which no UTF-8 file can hold.
    """
    half = _HALF_PAIR.search(text)
    if half is not None:
        raise DataError(
            f"{row.where}: field {name!r}: half of a surrogate pair (U+{ord(half[0]):04X}) at "
            f"character {half.start()}: the text was split inside a character; "
            "correct or drop the row"
        )
    return text


def _content(content: Any, row: Row, name: str) -> str:
    """A message's content: text, or a list of text parts."""
    if isinstance(content, str):
        return whole_text(content, row, name)
    if isinstance(content, list):
        texts = []
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            if not isinstance(text, str):
                kind = part.get("type") if isinstance(part, dict) else _kind(part)
                raise DataError(
                    f"{row.where}: field {name!r}: a message has a part that is no text "
                    f"({_shown(kind)}); only text reaches the model"
                )
            texts.append(whole_text(text, row, name))
        return "".join(texts)
    raise DataError(
        f"{row.where}: field {name!r}: a message's content is {_kind(content)}, not text; "
        "put its text there, or drop the row"
    )


def _is_sharegpt(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, dict) and "from" in v for v in value)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return type(value).__name__


def _shown(value: Any) -> str:
    """A name from the data for a message of one line."""
    return _HALF_PAIR.sub("?", " ".join(str(value).split()))[:60]
