"""The plot of an ablation: accuracy over mean tokens, and over budgets where there are several."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.ablate.compare import Row
from siri_train.report.markup import fill
from siri_train.report.svg import Chart, Line, render

_COLOURS = ("siri", "low", "high", "alt1", "alt3", "alt2", "control")
_WIDTH, _HEAD = 900, 40
_MOST_BARS = 6  # bars of more rows would hide one another: they stand at the same budgets


def plot(rows: Sequence[Row], title: str) -> str:
    """All rows as a self-contained SVG document.

    Args:
        rows: a point each with bars for both intervals; those of an arm have one colour, and
            siri-low is a ring.
        title: the accessible name.
    """
    arms = list(dict.fromkeys(row.arm for row in rows))
    colour = {arm: _COLOURS[place % len(_COLOURS)] for place, arm in enumerate(arms)}
    height = max(380, 15 * len(rows) + 70)  # a label has 14.5 pixels
    budgets = rows[0].budgets
    charts = [
        (f"Accuracy within {budgets[-1]:,} tokens, with 95 % intervals", _plane(rows, colour))
    ]
    if len(budgets) > 2 and all(row.budgets == budgets for row in rows):
        bars = len(rows) <= _MOST_BARS
        heading = "Accuracy within every budget" + (", with 95 % intervals" if bars else "")
        charts.append((heading, _curves(rows, colour, bars)))
    panels = [
        {
            "top": float(place * (height + _HEAD)),
            "height": height,
            "heading": heading,
            "inner": render(chart, _WIDTH, height, f"ablate{place}"),
        }
        for place, (heading, chart) in enumerate(charts)
    ]
    whole = (height + _HEAD) * len(panels)
    return fill("ablate.svg", title=title, panels=panels, width=_WIDTH, height=whole)


def _plane(rows: Sequence[Row], colour: dict[str, str]) -> Chart:
    lines = []
    for row in rows:
        low, high = row.intervals[-1]
        at, css = row.accuracy[-1], colour[row.arm]
        lines.append(
            Line(_label(row), [(row.tokens, at)], css, _look(row), bars=[(row.tokens, low, high)])
        )
        reach = [(bound, at) for bound in row.tokens_interval]
        lines.append(Line("", reach, css, beside="nowhere"))
    return Chart(
        "Accuracy over mean response tokens",
        lines,
        "percent",
        "mean response tokens",
        ceiling=1.0,
        from_floor=False,
    )


def _curves(rows: Sequence[Row], colour: dict[str, str], bars: bool) -> Chart:
    lines = []
    for row in rows:
        places = [float(budget) for budget in row.budgets]
        reach = [(x, *bounds) for x, bounds in zip(places, row.intervals, strict=True)]
        lines.append(
            Line(
                _label(row),
                list(zip(places, row.accuracy, strict=True)),
                colour[row.arm],
                _look(row),
                bars=reach if bars else (),
            )
        )
    return Chart(
        "Accuracy over the budget",
        lines,
        "percent",
        "budget in tokens",
        ceiling=1.0,
        from_floor=False,
        x_ticks=[float(budget) for budget in rows[0].budgets] if len(rows[0].budgets) < 9 else (),
    )


def _label(row: Row) -> str:
    member = f" ({row.member})" if row.member else ""
    return f"{row.arm}{member}, {row.checkpoint}"


def _look(row: Row) -> str:
    return "rings" if row.checkpoint.startswith("siri-low") else "dots"
