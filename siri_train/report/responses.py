"""The responses of a run for the page: cut where they were truncated, with their words marked."""

from __future__ import annotations

import re
from typing import Any

from .data import RunFolder, number
from .markup import clean
from .readers import Row
from .samples import LONGEST_SAMPLE, contrast, verdict

Values = dict[str, Any]
Span = tuple[int, int, str]

HEAD = LONGEST_SAMPLE * 2 // 3
LONGEST_NAME = 40
MOST_GROUPS = 12
WORDS = "backtracking"
"""The group of the words that are marked where a run has recorded no groups."""
_BACKTRACKING = re.compile(r"\b(?:wait|hold on)\b", re.IGNORECASE)
_MOST_MARKS = 2000  # of a response: one that repeats a word for ever


def cards(folder: RunFolder) -> list[Values]:
    """A few responses of the first and of the last step, for a reader without the script.

    Args:
        folder: as it was read.

    Returns:
        A ``title`` and ``cards`` for each run and step.
    """
    blocks: list[Values] = []
    for run in folder.runs:
        caps = run.caps
        for step, rows in [*run.samples[:1], *run.samples[1:][-1:]]:
            found = [_card(row, _cap(caps, step, row)) for row in contrast(rows)]
            if found:
                several = f"{run.label}, " if len(folder.runs) > 1 else ""
                blocks.append({"title": f"{several}step {step:,}", "cards": found})
    return blocks


def browsed(folder: RunFolder) -> Values | None:
    """All responses of the page for its script; None without any.

    Args:
        folder: as it was read.

    Returns:
        ``groups``, ``prompts``, ``questions`` and ``rows``. A row names its prompt by its place,
        and its marks are (start, end, place of the group) in UTF-16 units, as scripts count.
    """
    prompts: dict[str, int] = {}
    groups: dict[str, int] = {}
    rows: list[Values] = []
    for place, run in enumerate(folder.runs):
        caps = run.caps
        for step, some in run.samples:
            for row in some:
                rows.append(_browsed(row, _cap(caps, step, row), prompts, groups))
                rows[-1] |= {"run": place, "step": step}
    if not rows:
        return None
    return {"groups": list(groups), "prompts": list(prompts), "rows": rows}


def left_out(folder: RunFolder) -> str:
    """Which responses the page leaves out, in words; empty if it has all.

    Args:
        folder: as it was read.
    """
    parts = [
        f"{len(run.samples):,} of {run.recorded:,} recorded steps"
        + (f" of {run.label}" if len(folder.runs) > 1 else "")
        for run in folder.runs
        if len(run.samples) < run.recorded
    ]
    cut = [run.label for run in folder.runs if run.parts]
    if not parts and not cut:
        return ""
    said = f"the responses of {', '.join(parts)}, evenly apart" if parts else ""
    if cut:
        whose = f" of {', '.join(cut)}" if len(cut) < len(folder.runs) else ""
        said += ", and " if said else ""
        said += f"of some steps{whose} only a part of the responses"
    return f"To keep the page small it has {said}; the others are in rollouts/."


def spans(row: Row) -> list[Span]:
    """(start, end, group) of the marked words in a response, in order and without overlaps.

    Args:
        row: of a rollout file. Without ``marks`` the words "wait" and "hold on" are marked; marks
            that fit no text are left out.
    """
    text = str(row.get("response", ""))
    if "marks" not in row:
        return [(*found.span(), WORDS) for found in _BACKTRACKING.finditer(text)][:_MOST_MARKS]
    found = []
    for mark in row["marks"] if isinstance(row["marks"], list) else []:
        if not isinstance(mark, list) or len(mark) != 3:
            continue
        start, end, group = mark
        if type(start) is int and type(end) is int and isinstance(group, str):
            if 0 <= start < end <= len(text):
                found.append((start, end, group))
    kept: list[Span] = []
    for one in sorted(found)[:_MOST_MARKS]:
        if not kept or one[0] >= kept[-1][1]:
            kept.append(one)
    return kept


def shortened(text: str, marks: list[Span]) -> tuple[str, str, int, list[Span]]:
    """A long response as its head and its tail, with the marks that are in either.

    Args:
        text: the response.
        marks: see `spans`.

    Returns:
        head, tail (empty where nothing was left out), the characters left out, and the marks in
        head + tail.
    """
    hidden = len(text) - LONGEST_SAMPLE
    if hidden <= 0:
        return text, "", 0, marks
    resume = HEAD + hidden
    kept = [mark for mark in marks if mark[1] <= HEAD]
    kept += [(a - hidden, b - hidden, group) for a, b, group in marks if a >= resume]
    return text[:HEAD], text[resume:], hidden, kept


def _cap(caps: dict[int, float], step: int, row: Row) -> float | None:
    """The cap that a response was sampled under: its own, else the step's."""
    own = number(row.get("cap"))
    return caps.get(step) if own is None else own


def _words(value: object) -> str:
    return str(clean(str(value)))


def _browsed(
    row: Row, cap: float | None, prompts: dict[str, int], groups: dict[str, int]
) -> Values:
    prompt = _words(row.get("prompt", ""))[-LONGEST_SAMPLE:]
    head, tail, hidden, marks = shortened(_words(row.get("response", "")), spans(row))
    ends = _units(head + tail)
    placed = []
    for a, b, group in marks:
        name = _words(group)[:LONGEST_NAME]
        if name in groups or len(groups) < MOST_GROUPS:
            placed += [ends(a), ends(b), groups.setdefault(name, len(groups))]
    found: Values = {
        "prompt": prompts.setdefault(prompt, len(prompts)),
        "text": head,
        "grade": verdict(row),
        "marks": placed,
    }
    if tail:
        found |= {"tail": tail, "hidden": hidden}
    if row.get("truncated"):
        found |= {"truncated": True, "cap": None if cap is None else int(cap)}
    for key, value in (("answer", row.get("answer")), ("gold", row.get("gold"))):
        if value is not None:
            found[key] = _words(value)[:400]
    if isinstance(row.get("question"), (str, int)):
        found["question"] = _words(row["question"])[:LONGEST_NAME]
    for key in ("tokens", "reward"):
        amount = number(row.get(key))
        if amount is not None:
            found[key] = float(f"{amount:.6g}")
    return found


def _units(text: str) -> Any:
    """Places in ``text`` as UTF-16 units: a character outside of the basic plane counts two."""
    far = [place for place, char in enumerate(text) if ord(char) > 0xFFFF]
    if not far:
        return lambda place: place
    return lambda place: place + sum(1 for one in far if one < place)


def _card(row: Row, cap: float | None) -> Values:
    grade, truncated = verdict(row), bool(row.get("truncated"))
    tokens = number(row.get("tokens"))
    facts = [] if tokens is None else [f"{tokens:,.0f} tokens"]
    facts.append(f"answer {row['answer']}" if row.get("answer") is not None else "no answer")
    facts.append(f"expected {row.get('gold', '–')}")
    head, tail, hidden, marks = shortened(str(row.get("response", "")), spans(row))
    said = {"right": "right", "wrong": "wrong", "unjudged": "not judged"}[grade]
    return {
        "verdict": f"{said}, truncated at the cap" if truncated else said,
        "css": "high" if grade == "right" and not truncated else "low",
        "facts": " · ".join(facts),
        "prompt": str(row.get("prompt", ""))[-LONGEST_SAMPLE:],
        "pieces": _pieces(head, [mark for mark in marks if mark[1] <= len(head)], 0),
        "tail": _pieces(tail, [mark for mark in marks if mark[0] >= len(head)], len(head)),
        "hidden": f"{hidden:,}" if hidden > 0 else "",
        "cut": cut(grade, cap) if truncated else "",
    }


def _pieces(text: str, marks: list[Span], start: int) -> list[tuple[str, str | None]]:
    """The text in pieces, each with the group that marks it or None; ``start`` is its place."""
    pieces: list[tuple[str, str | None]] = []
    at = 0
    for a, b, group in marks:
        pieces += [
            (text[at : a - start], None),
            (text[a - start : b - start], group[:LONGEST_NAME]),
        ]
        at = b - start
    return [*pieces, (text[at:], None)] if text else []


def cut(grade: str, cap: float | None) -> str:
    """The words at the end of a truncated response.

    Args:
        grade: see `siri_train.report.samples.verdict`.
        cap: in tokens; None if it is not known.
    """
    text = "truncated here" + ("" if cap is None else f": cap {cap:,.0f} tokens")
    return text + ("; right all the same, its answer stands before this" * (grade == "right"))
