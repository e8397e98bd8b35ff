"""The program in a response: its last closed fenced block of Python."""

from __future__ import annotations

import re
import textwrap

from siri_train.rewards.extract import ThinkMode, answer_part

_FENCE = re.compile(r"[ \t]*(?P<marks>`{3,}|~{3,})[ \t]*(?P<rest>[^\n]*)")
_PYTHON = frozenset(("", "python", "py", "python3"))


def last_program(text: str, *, think: ThinkMode = "required") -> str | None:
    """The program that a response commits to, or None.

    A block is closed by a line of as many marks as opened it, as Markdown has it: one that is
    indented by four blanks more belongs to the code, such as to a docstring. A block that is not
    closed holds no answer: a truncated program is not one. Blocks of other languages are passed
    over, a block without a language counts.

    Args:
        text: the decoded response, without the prompt.
        think: where in the response the program may stand, see ``final_answer``.

    Returns:
        The code, common indentation of an indented block removed; None without a closed block of
        Python, or with an empty one.

    Raises:
        ValueError: an unknown ``think``.
    """
    part = answer_part(text, think)
    if part is None:
        return None
    found: str | None = None
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in part.split("\n"):
        fence = _FENCE.fullmatch(line.rstrip("\r"))
        if opened is None:
            if fence is not None and "`" not in fence["rest"]:
                opened, lines = fence, []
        elif fence is not None and _closes(fence, opened):
            language = (opened["rest"].split() or [""])[0].lower()
            if language in _PYTHON:
                found = _unindented(lines, opened)
            opened = None
        else:
            lines.append(line)
    return found if found and found.strip() else None


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    marks, opening = fence["marks"], opened["marks"]
    return (
        not fence["rest"]
        and marks[0] == opening[0]
        and len(marks) >= len(opening)
        and _indentation(fence) < _indentation(opened) + 4
    )


def _indentation(fence: re.Match[str]) -> int:
    return len(fence.string[: fence.start("marks")].expandtabs(4))


def _unindented(lines: list[str], opened: re.Match[str]) -> str:
    """The block's lines; a block inside of a list is as far in as its fence."""
    code = "\n".join(lines)
    return textwrap.dedent(code) if opened["marks"] and opened.start("marks") else code
