"""The headline numbers of summary.json: as Markdown, as rows for the page, and in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siri_train.terminal.lines import words
from siri_train.terminal.table import aligned

from .data import interval, number
from .scale import show

Row = dict[str, Any]

COLOUR = {"siri-low": "low", "siri-high": "high", "constant-cap": "control", "start": "start"}
"""Checkpoint name to the colour class it has everywhere on the page."""

_SAID = 5
"""In a longer table only the checkpoints with a colour of their own have a sentence."""
_SPENT = {"trained_tokens": "trained", "train_seconds": "seconds"}
_SPENT_ON_PAGE = {"trained_tokens": "tokens in training", "train_seconds": "seconds of training"}


def summary_table(summary: list[Row], width: int | None = None) -> str:
    """The headline table as Markdown that is also aligned for a terminal.

    Args:
        summary: the rows of summary.json. The others are compared with the row named
            ``constant-cap``, or with ``start`` where there is none. Missing, null and NaN values
            are shown as "-".
        width: columns of the terminal: what is wider is divided, see
            :func:`siri_train.terminal.table.aligned`; None: one table, for a file.

    Returns:
        One line a checkpoint: accuracy in per cent with half its interval, mean response tokens,
        and the change of both; then a line that says with what they are compared. Accuracy at the
        low budget, response tokens sampled in training and seconds of training have a column if
        any row knows them. Ends without a newline.
    """
    base = _base(summary)
    low = _known(summary, "accuracy_low_budget")
    spent = [key for key in ("trained_tokens", "train_seconds") if _known(summary, key)]
    head = ["checkpoint", "step", "accuracy", *[_low_title(summary)] * low]
    head += ["tokens", "points", "tokens %", *map(_SPENT.__getitem__, spent)]
    body = []
    for row in summary:
        cells = [
            str(row.get("name", "-")),
            _count(row.get("step")),
            accuracy_text(row.get("accuracy"), row.get("accuracy_interval")),
        ]
        if low:
            bounds = row.get("accuracy_low_budget_interval")
            cells.append(accuracy_text(row.get("accuracy_low_budget"), bounds))
        cells += [
            _tokens(row.get("tokens")),
            _change(row, base, "accuracy", ""),
            _change(row, base, "tokens", ""),
            *(
                show(n, "tokens") if (n := number(row.get(key))) is not None else "-"
                for key in spent
            ),
        ]
        body.append(cells)
    breaks = (head.index("accuracy"), head.index("points"))
    lines = [aligned(head, body, (0,), width, breaks=breaks)]
    if base is not None:
        note = f"points, tokens %: change from {base.get('name')}"
        if spent:
            note += "; trained, seconds: response tokens and time of training until then"
        lines += ["", *([note] if width is None else words("", note, width))]
    return "\n".join(lines)


def table_rows(
    summary: list[Row], colours: Mapping[str, str] | None = None
) -> tuple[list[str], list[Row]]:
    """The headline table for the page's template.

    Args:
        summary: the rows of summary.json.
        colours: the runs' colour classes by name, for checkpoints that have none of their own.

    Returns:
        The headings from the accuracy on, and a row each with its ``name``, ``css``, ``run``,
        ``step`` and ``cells``: a number's heading, text, share of its bar (None for no bar) and
        change from the row that `compared_with` names.
    """
    base = _base(summary)
    headings = {"accuracy": "accuracy"}
    if _known(summary, "accuracy_low_budget"):
        headings["accuracy_low_budget"] = _low_title(summary)
    amounts = {"tokens": "mean tokens"}
    amounts |= {key: title for key, title in _SPENT_ON_PAGE.items() if _known(summary, key)}
    most = {key: max(_numbers(summary, key), default=0.0) for key in amounts}
    rows = []
    for row in summary:
        cells = [
            _cell(heading, accuracy_text(row.get(key), row.get(f"{key}_interval")),
                  number(row.get(key)), row, base, key)
            for key, heading in headings.items()
        ]  # fmt: skip
        for key, heading in amounts.items():
            amount = number(row.get(key))
            share = amount / most[key] if amount is not None and most[key] > 0 else None
            text = _tokens(amount) if key == "tokens" or amount is None else show(amount, "tokens")
            cells.append(_cell(heading, text, share, row, base, key))
        rows.append(
            {
                "name": _text(row.get("name", "–")),
                "css": css_of(row, colours or {}),
                "run": None if _names_its_run(row) else _text(row.get("run")),
                "step": _count(row.get("step")),
                "cells": cells,
            }
        )
    return [*headings.values(), *amounts.values()], rows


def compared_with(summary: list[Row]) -> str:
    """The name of the row that changes are changes from; empty without one."""
    base = _base(summary)
    return "" if base is None else str(base.get("name"))


def headline(summary: list[Row]) -> list[Row]:
    """The result in sentences: ``name``, ``css`` and ``text`` of each.

    Empty if the summary has nothing to compare with.
    """
    base = _base(summary)
    said: list[Row] = []
    # what the others are compared with comes last
    for row in sorted(summary, key=lambda row: row is base):
        accuracy, tokens = number(row.get("accuracy")), number(row.get("tokens"))
        if base is None or accuracy is None or tokens is None or row.get("name") == "start":
            continue
        if len(summary) > _SAID and row.get("name") not in COLOUR:
            continue
        text = f"{100 * accuracy:.1f} % right with {_tokens(tokens)} tokens"
        points, share = _points(row, base, "accuracy"), _relative(row, base, "tokens")
        if row is not base and points is not None and share is not None:
            before = number(base.get("accuracy")) or 0.0
            if abs(points) < 0.05:
                text += f", as many as {base.get('name')},"
            else:
                text += (
                    f", {abs(points):.1f} points {'more' if points >= 0 else 'less'} than "
                    f"{base.get('name')} ({100 * before:.1f} % → {100 * accuracy:.1f} %)"
                )
                text += ", within the intervals," if _overlap(row, base, "accuracy") else ""
            text += f" and {abs(share):.0f} % {'fewer' if share <= 0 else 'more'} tokens"
        said.append(
            {
                "name": _text(row.get("name", "?")),
                "css": COLOUR.get(str(row.get("name")), "other"),
                "text": f"{text}.",
            }
        )
    return said


def css_of(row: Row, colours: Mapping[str, str]) -> str:
    """The colour class of a checkpoint: its own, else its run's.

    Args:
        row: of summary.json.
        colours: the runs' colour classes by name.
    """
    return COLOUR.get(str(row.get("name"))) or colours.get(str(row.get("run")), "other")


def _names_its_run(row: Row) -> bool:
    return str(row.get("name")).lower().startswith(f"{row.get('run')} ".lower())


def _text(value: object) -> object:
    """A name as text: a number in its place is no coordinate. None and text stay."""
    return value if value is None else str(value)


def accuracy_text(accuracy: object, bounds: object) -> str:
    """A share in per cent with half its interval: "64.1 % ± 3.0", without interval "64.1 %"."""
    value, limits = number(accuracy), interval(bounds)
    if value is None:
        return "-"
    half = "" if limits is None else f" ± {50 * (limits[1] - limits[0]):.1f}"
    return f"{100 * value:.1f} %{half}"


def _low_title(summary: list[Row]) -> str:
    """The heading of the accuracy at the low budget, with its tokens if all checkpoints agree."""
    budgets = {number(row.get("low_budget")) for row in summary}
    budget = budgets.pop() if len(budgets) == 1 else None
    return "at low budget" if budget is None else f"within {budget:,.0f} tokens"


def _base(summary: list[Row]) -> Row | None:
    """The row that the others are compared with: the control, else the start."""
    named = {str(row.get("name")): row for row in reversed(summary)}
    return named.get("constant-cap", named.get("start"))


def _known(summary: list[Row], key: str) -> bool:
    return bool(_numbers(summary, key))


def _numbers(summary: list[Row], key: str) -> list[float]:
    return [value for value in (number(row.get(key)) for row in summary) if value is not None]


def _points(row: Row, base: Row, key: str) -> float | None:
    """Change of a share in percentage points."""
    value, before = number(row.get(key)), number(base.get(key))
    return None if value is None or before is None else 100 * (value - before)


def _relative(row: Row, base: Row, key: str) -> float | None:
    """Change of an amount in per cent of what it is compared with."""
    value, before = number(row.get(key)), number(base.get(key))
    if value is None or before is None or before <= 0:
        return None
    return 100 * (value / before - 1)


def _change(row: Row, base: Row | None, key: str, unit: str) -> str:
    """``+3.1`` or ``−25.0`` with its unit; "-" where there is nothing to compare."""
    change = _signed(row, base, key)
    return "-" if change is None else f"{change:+.1f}{unit}".replace("-", "−", 1)


def _signed(row: Row, base: Row | None, key: str) -> float | None:
    if base is None or row is base or key in _SPENT:
        return None
    return (_points if key.startswith("accuracy") else _relative)(row, base, key)


def _overlap(row: Row, base: Row, key: str) -> bool:
    one, two = interval(row.get(f"{key}_interval")), interval(base.get(f"{key}_interval"))
    return one is not None and two is not None and one[0] <= two[1] and two[0] <= one[1]


def _cell(
    heading: str, text: str, share: float | None, row: Row, base: Row | None, key: str
) -> Row:
    """One number with its change from what it is compared with; an improvement is green."""
    change = _signed(row, base, key)
    shares = key.startswith("accuracy")
    return {
        "heading": heading,
        "text": text,
        "share": None if share is None else min(max(100 * share, 0.0), 100.0),
        "change": "" if change is None else _change(row, base, key, " points" * shares or " %"),
        "mood": "good" if change is not None and (change > 0 if shares else change < 0) else "bad",
        "overlap": change is not None and base is not None and _overlap(row, base, key),
    }


def _tokens(value: object) -> str:
    tokens = number(value)
    if tokens is None:
        return "-"
    return f"{tokens:,.0f}" if tokens >= 1000 else f"{tokens:.1f}"


def _count(value: object) -> str:
    count = number(value)
    return "-" if count is None else f"{count:,.0f}"
