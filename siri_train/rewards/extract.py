r"""The final answer of a response: the content of its last complete ``\boxed{...}``.

Only a box counts. Taking a trailing number instead would reward text that was truncated in the
middle of a sentence ("... because 6*7 is 42 and 5 is"), which is the opposite of a length cap.
"""

from __future__ import annotations

import re
from typing import Literal

ThinkMode = Literal["required", "optional", "none"]
THINK_MODES = ("required", "optional", "none")
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

# One pass over everything that moves the brace depth. An escaped brace does not, and "\\" followed
# by a brace is a line break and a real brace; "\\boxed" is read as a box, since models that emit
# JSON-like text double their backslashes.
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\\\(?!boxed|fbox)|\\[{}]|(?P<brace>[{}])")


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}`` or ``\fbox{...}`` in ``text``.

    Braces inside are balanced (``\{`` and ``\}`` do not count), a box that is never closed is
    ignored, blanks around the content are stripped. Of nested boxes the inner one is taken. Linear
    in the length of the text, however many boxes are left open.

    Args:
        text: any text.

    Returns:
        The content ("" for an empty box), or None when there is no complete box.
    """
    span = last_boxed_span(text)
    return None if span is None else text[span[0] : span[1]].strip()


def last_boxed_span(text: str) -> tuple[int, int] | None:
    """Where the content of ``last_boxed`` lies.

    Args:
        text: any text.

    Returns:
        (start, end) of the content in ``text``, blanks included, or None.
    """
    open_at: list[int | None] = []
    start = end = -1
    for match in _BRACES.finditer(text):
        if match["box"]:
            open_at.append(match.end())
        elif match["brace"] == "{":
            open_at.append(None)
        elif match["brace"] == "}" and open_at:
            begun = open_at.pop()
            if begun is not None and begun > start:
                start, end = begun, match.start()
    return (start, end) if start >= 0 else None


def final_answer(text: str, *, think: ThinkMode = "required") -> str | None:
    r"""The answer a response commits to, or None.

    Args:
        text: the decoded response, without the prompt.
        think: what the response must look like.
            ``"required"``: DeepScaleR's rule, which SIRI adopts (SIRI section 3.1): without
            ``</think>`` there is no answer, and only the text after the last one is read, so a
            response truncated while thinking has none, even if it has a box in its thoughts.
            ``"optional"``: the same where ``</think>`` or ``<think>`` occurs, else the whole text.
            ``"none"``: the whole text; for models that do not mark their thoughts.

    Returns:
        The content of the last complete box, or None. Thoughts opened again after the last
        ``</think>`` and never closed mean None as well (except with ``"none"``).

    Raises:
        ValueError: an unknown ``think``.
    """
    part = answer_part(text, think)
    return None if part is None else last_boxed(part)


def answer_part(text: str, think: ThinkMode) -> str | None:
    """The part of a response in which its answer may stand, see :func:`final_answer`.

    Args:
        text: the decoded response, without the prompt.
        think: what the response must look like.

    Returns:
        The text behind the thoughts, or None if there is none.

    Raises:
        ValueError: an unknown ``think``.
    """
    if think not in THINK_MODES:
        raise ValueError(f"think: got {think!r}, takes one of {', '.join(THINK_MODES)}")
    if think == "none":
        return text
    _, closed, tail = text.rpartition(THINK_CLOSE)
    if (think == "required" and not closed) or THINK_OPEN in tail:
        return None
    return tail
