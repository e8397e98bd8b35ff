"""The verdict for a terminal."""

from __future__ import annotations

import textwrap

from siri_train.files import printable

from .types import Finding, Verdict

MARKS = {"good": "[+]", "bad": "[!]", "unclear": "[?]", "missing": "[ ]"}
"""Before each finding: good, bad, mixed or not decided by the figures, not judged."""
LEGEND = "[+] good  [!] bad  [?] mixed, or not decided by the figures  [ ] not judged"
_JOINED = "\xa0"
_COLOURS = {"good": "32", "bad": "31", "unclear": "33", "missing": "2"}


def verdict_text(verdict: Verdict, width: int = 80, colour: bool = False) -> str:
    """The verdict as text, wrapped by words.

    Args:
        verdict: of `judge`.
        width: of a line; at least 40. Commands stay on one line, to be copied.
        colour: mark the findings with ANSI colours.

    Returns:
        Text without a newline at its end.
    """
    width = max(width, 40)
    of = "" if verdict.steps is None else f" of {verdict.steps:,}"
    state = f"{verdict.state}, " if verdict.steps is not None or verdict.state == "finished" else ""
    lines = [*_wrapped(f"{printable(verdict.run)}: {state}{verdict.step:,}{of} steps", width)]
    if verdict.others:
        lines += _wrapped(f"Compared with {', '.join(map(printable, verdict.others))}.", width)
    for one in verdict.findings:
        if one.key != "state" or one.status != "good":
            lines += ["", *_finding(one, width, colour)]
    lines += ["", *_shipped(verdict, width)]
    lines += ["", *_wrapped(LEGEND, width)]
    return "\n".join(lines)


def _finding(one: Finding, width: int, colour: bool) -> list[str]:
    mark = MARKS[one.status]
    title = _wrapped(printable(one.title), width - 4) or [""]
    if colour:
        mark = f"\x1b[{_COLOURS[one.status]}m{mark}\x1b[0m"
        title = [f"\x1b[1m{line}\x1b[0m" for line in title]
    lines = [f"{mark} {title[0]}", *(f"    {line}" for line in title[1:])]
    lines += _wrapped(printable(one.text), width, "    ")
    for detail in one.details:
        lines += _wrapped(printable(detail), width, "    - ", "      ")
    return lines


def _shipped(verdict: Verdict, width: int) -> list[str]:
    if not verdict.ship:
        return _wrapped(printable(verdict.advice or "No checkpoint to recommend."), width)
    lines: list[str] = []
    same = verdict.same
    for one in verdict.ship[:1] if same else verdict.ship:
        purpose = "Strong and cheap model" if same else f"{one.purpose.capitalize()} model"
        lines += [""] if lines else []
        lines += _wrapped(f"{purpose}: {printable(one.named)}", width)
        lines += _wrapped(printable(one.facts), width, "    ")
        lines += _wrapped(printable(one.why), width, "    ")
        if same:
            cheap = verdict.ship[1]
            lines += _wrapped(
                f"As the cheap one: {cheap.facts}. {printable(cheap.why)}", width, "    "
            )
        if one.path is not None:
            lines.append(f"    path: {printable(one.path)}")
        if one.command:
            lines.append(f"    {printable(one.command)}")
    return lines


def _wrapped(text: str, width: int, first: str = "", rest: str | None = None) -> list[str]:
    lines = textwrap.wrap(
        text.replace(" %", f"{_JOINED}%"),  # a number and its % stay on one line
        width,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_on_hyphens=False,
    )
    return [line.replace(_JOINED, " ") for line in lines]
