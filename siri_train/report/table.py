"""The headline numbers of summary.json: as Markdown, as rows for the page, and in a sentence."""

from __future__ import annotations

from typing import Any

from .data import interval, number

Row = dict[str, Any]

COLOUR = {"siri-low": "low", "siri-high": "high", "constant-cap": "control", "start": "start"}
"""Checkpoint name to the colour class it has everywhere on the page."""


def summary_table(summary: list[Row]) -> str:
    """The headline table as Markdown that is also aligned for a terminal.

    Args:
        summary: the rows of summary.json. The row named ``start`` is what the others are compared
            with. Missing, null and NaN values are shown as "-".

    Returns:
        One line a checkpoint: accuracy with half its interval, mean response tokens, and the
        relative change of both against the start. Accuracy at the low budget has a column if any
        row knows it. Ends without a newline.
    """
    low = any(number(row.get("accuracy_low_budget")) is not None for row in summary)
    head = ["checkpoint", "step", "accuracy", "tokens", "accuracy vs start", "tokens vs start"]
    if low:
        head.insert(3, _low_title(summary))
    base = _start(summary)
    body = []
    for row in summary:
        cells = [
            " ".join(str(row.get("name", "-")).split()).replace("|", "\\|"),
            _count(row.get("step")),
            accuracy_text(row.get("accuracy"), row.get("accuracy_interval")),
            _tokens(row.get("tokens")),
            _against(row, base, "accuracy"),
            _against(row, base, "tokens"),
        ]
        if low:
            cells.insert(
                3,
                accuracy_text(
                    row.get("accuracy_low_budget"), row.get("accuracy_low_budget_interval")
                ),
            )
        body.append(cells)
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, body)])


def table_rows(summary: list[Row]) -> tuple[list[str], list[Row]]:
    """The headline table for the page's template.

    Returns:
        The headings from the accuracy on, and a row each with its ``name``, ``css``, ``run``,
        ``step`` and ``cells``: a number's heading, text, share of its bar (None for no bar) and
        change against the start.
    """
    low = any(number(row.get("accuracy_low_budget")) is not None for row in summary)
    most = max([number(row.get("tokens")) or 0.0 for row in summary], default=0.0)
    base = _start(summary)
    headings = {"accuracy": "accuracy"}
    if low:
        headings["accuracy_low_budget"] = _low_title(summary)
    rows = []
    for row in summary:
        tokens = number(row.get("tokens"))
        cells = [
            _cell(heading, accuracy_text(row.get(key), row.get(f"{key}_interval")),
                  number(row.get(key)), row, base, key)
            for key, heading in headings.items()
        ]  # fmt: skip
        share = tokens / most if tokens is not None and most > 0 else None
        cells.append(_cell("mean tokens", _tokens(tokens), share, row, base, "tokens"))
        rows.append(
            {
                "name": _text(row.get("name", "–")),
                "css": COLOUR.get(str(row.get("name")), "other"),
                "run": _text(row.get("run")),
                "step": _count(row.get("step")),
                "cells": cells,
            }
        )
    return [*headings.values(), "mean tokens"], rows


def headline(summary: list[Row]) -> list[Row]:
    """The result in sentences: ``lead``, ``name``, ``css`` and ``text`` of each.

    Empty if the summary has no start to compare with.
    """
    base = _start(summary)
    said: list[Row] = []
    # the control comes last: the others are compared with it
    for row in sorted(summary, key=lambda row: row.get("name") == "constant-cap"):
        if base is None or row is base:
            continue
        accuracy, tokens = _relative(row, base, "accuracy"), _relative(row, base, "tokens")
        if accuracy is None or tokens is None:
            continue
        fewer = f"{abs(tokens):.0f} % {'fewer' if tokens <= 0 else 'more'} tokens"
        higher = f"{abs(accuracy):.0f} % {'higher' if accuracy >= 0 else 'lower'} accuracy"
        within = ", a difference within the intervals" if _overlap(row, base, "accuracy") else ""
        said.append(
            {
                "lead": "For comparison, " if row.get("name") == "constant-cap" and said else "",
                "name": _text(row.get("name", "?")),
                "css": COLOUR.get(str(row.get("name")), "other"),
                "text": f"{fewer} than the start at {higher}{within}.",
            }
        )
    return said


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


def _start(summary: list[Row]) -> Row | None:
    return next((row for row in summary if row.get("name") == "start"), None)


def _relative(row: Row, base: Row | None, key: str) -> float | None:
    """Change against the start in per cent of the start."""
    if base is None:
        return None
    value, start = number(row.get(key)), number(base.get(key))
    if value is None or start is None or start <= 0:
        return None
    return 100 * (value / start - 1)


def _against(row: Row, base: Row | None, key: str) -> str:
    change = _relative(row, base, key)
    return "-" if change is None or row is base else f"{change:+.1f} %".replace("-", "−", 1)


def _overlap(row: Row, base: Row, key: str) -> bool:
    one, two = interval(row.get(f"{key}_interval")), interval(base.get(f"{key}_interval"))
    return one is not None and two is not None and one[0] <= two[1] and two[0] <= one[1]


def _cell(
    heading: str, text: str, share: float | None, row: Row, base: Row | None, key: str
) -> Row:
    """One number with its change against the start; an improvement is green."""
    change = _relative(row, base, key)
    compared = change is not None and base is not None and row is not base
    wanted = change is not None and (change < 0 if key == "tokens" else change > 0)
    return {
        "heading": heading,
        "text": text,
        "share": None if share is None else min(max(100 * share, 0.0), 100.0),
        "change": _against(row, base, key) if compared else "",
        "mood": "good" if wanted else "bad",
        "overlap": compared and base is not None and _overlap(row, base, key),
    }


def _tokens(value: object) -> str:
    tokens = number(value)
    if tokens is None:
        return "-"
    return f"{tokens:,.0f}" if tokens >= 1000 else f"{tokens:.1f}"


def _count(value: object) -> str:
    count = number(value)
    return "-" if count is None else f"{count:,.0f}"
