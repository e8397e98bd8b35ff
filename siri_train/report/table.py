"""The headline numbers of summary.json: as Markdown, as an HTML table, and in a sentence."""

from __future__ import annotations

from typing import Any

from .data import interval, number
from .svg import escape, tag

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


def html_table(summary: list[Row]) -> str:
    """The headline table for the page, with a bar behind every accuracy and token number."""
    low = any(number(row.get("accuracy_low_budget")) is not None for row in summary)
    most = max([number(row.get("tokens")) or 0.0 for row in summary], default=0.0)
    base = _start(summary)
    within = _low_title(summary)
    heads = ["checkpoint", "step", "accuracy", *([within] if low else []), "mean tokens"]
    head = "".join(
        tag("th", text, scope="col", class_=None if i == 0 else "n hide" if i == 1 else "n")
        for i, text in enumerate(heads)
    )
    lines = []
    for row in summary:
        css = COLOUR.get(str(row.get("name")), "other")
        name = tag("span", class_=f"swatch {css}") + escape(row.get("name", "–"))
        if row.get("run"):
            name += tag("span", "run " + escape(row["run"]), class_="under")
        cells = [
            tag("th", name, scope="row"),
            tag("td", escape(_count(row.get("step"))), class_="n hide"),
        ]
        for key in ("accuracy", "accuracy_low_budget") if low else ("accuracy",):
            text = accuracy_text(row.get(key), row.get(f"{key}_interval"))
            title = "accuracy" if key == "accuracy" else within
            cells.append(_cell(title, text, _change(row, base, key), number(row.get(key)), css))
        tokens = number(row.get("tokens"))
        share = tokens / most if tokens is not None and most > 0 else None
        change = _change(row, base, "tokens")
        cells.append(_cell("mean tokens", _tokens(tokens), change, share, css))
        lines.append(tag("tr", *cells))
    caption = tag(
        "caption",
        "Held-out questions. ± is half the interval of the accuracy; changes are relative to the "
        "start." + (f" “{within}”: the same answers, cut there." if low else ""),
    )
    table = tag("table", caption, tag("thead", tag("tr", head)), tag("tbody", *lines))
    return tag("div", table, class_="scroll headline")


def headline(summary: list[Row]) -> str:
    """What came out, in plain words (HTML); empty if the summary has no start to compare with."""
    base = _start(summary)
    said: list[str] = []
    # the control comes last: it is what the others are held against
    for row in sorted(summary, key=lambda row: row.get("name") == "constant-cap"):
        if base is None or row is base:
            continue
        accuracy, tokens = _relative(row, base, "accuracy"), _relative(row, base, "tokens")
        if accuracy is None or tokens is None:
            continue
        fewer = f"{abs(tokens):.0f} % {'fewer' if tokens <= 0 else 'more'} tokens"
        higher = f"{abs(accuracy):.0f} % {'higher' if accuracy >= 0 else 'lower'} accuracy"
        within = ", a difference within the intervals" if _overlap(row, base, "accuracy") else ""
        css = COLOUR.get(str(row.get("name")), "other")
        name = tag("strong", escape(row.get("name", "?")), class_=f"ink {css}")
        lead = "For comparison, " if row.get("name") == "constant-cap" and said else ""
        said.append(f"{lead}{name}: {fewer} than the start at {higher}{within}.")
    return " ".join(said)


def accuracy_text(accuracy: object, bounds: object) -> str:
    """ "64.1 % ± 3.0" from a share and its [low, high]; without the latter just "64.1 %"."""
    value, limits = number(accuracy), interval(bounds)
    if value is None:
        return "-"
    half = "" if limits is None else f" ± {50 * (limits[1] - limits[0]):.1f}"
    return f"{100 * value:.1f} %{half}"


def _low_title(summary: list[Row]) -> str:
    """The heading of the accuracy at the low budget: with its tokens if all rows agree on them."""
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


def _change(row: Row, base: Row | None, key: str) -> str:
    """The change as markup, green where it is what one wants; the start has none."""
    change = _relative(row, base, key)
    if change is None or row is base:
        return ""
    good = change < 0 if key == "tokens" else change > 0
    text = _against(row, base, key)
    if base is not None and _overlap(row, base, key):
        return tag("span", text, class_="under") + tag("span", "intervals overlap", class_="under")
    return tag("span", text, class_="under good" if good else "under bad")


def _overlap(row: Row, base: Row, key: str) -> bool:
    one, two = interval(row.get(f"{key}_interval")), interval(base.get(f"{key}_interval"))
    return one is not None and two is not None and one[0] <= two[1] and two[0] <= one[1]


def _cell(title: str, text: str, under: str, share: float | None, css: str) -> str:
    """A number, what belongs under it, a bar if ``share`` is known; phones show ``title``."""
    bar = ""
    if share is not None:
        width = f"width:{min(max(100 * share, 0.0), 100.0):.1f}%"
        bar = tag("span", tag("span", class_=css, style=width), class_="meter", aria_hidden="true")
    return tag("td", escape(text), under, bar, class_="n", data_title=title)


def _tokens(value: object) -> str:
    tokens = number(value)
    if tokens is None:
        return "-"
    return f"{tokens:,.0f}" if tokens >= 1000 else f"{tokens:.1f}"


def _count(value: object) -> str:
    count = number(value)
    return "-" if count is None else f"{count:,.0f}"
