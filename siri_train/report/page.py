"""Assembling the report page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import datetime, timezone
from pathlib import Path

from siri_train.config.masked import masked_settings
from siri_train.files import replace_text

from .charts import Figure, colours, figures, spots
from .data import Run, RunFolder, number, read_run_folder
from .pareto import plane
from .scale import thin
from .style import SCRIPT, STYLE
from .svg import escape, render, tag
from .table import accuracy_text, headline, html_table

LONGEST_SAMPLE = 4000
"""Characters of a response shown: enough to judge it, and the page stays light."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder: one file that needs no network and no script.

    Args:
        run_dir: a run's folder, or a folder with one sub-folder a run (``siri/``, ``constant/``)
            and ``summary.json`` at the top. What is missing or unreadable is named on the page.

    Returns:
        The path of the page, replaced in one go so that no reader sees half of it.

    Raises:
        FileNotFoundError: if ``run_dir`` does not exist.
    """
    run_dir = Path(run_dir)
    page = build_page(read_run_folder(run_dir))
    path = run_dir / "report.html"
    replace_text(path, page)
    return path


def build_page(folder: RunFolder) -> str:
    """The whole page as text."""
    charts, missing = figures(folder)
    notes = list(folder.notes)
    if missing:
        notes.append("No values, so no chart: " + ", ".join(missing) + ".")
    name = folder.folder.resolve().name
    body = [
        tag("header", tag("p", "SIRI training report", class_="over"), tag("h1", escape(name)),
            tag("p", escape(_facts(folder)), class_="facts")),
        tag("main", *_results(folder), *_alarms(folder), *_notes(notes), *_plane(folder),
            *_charts(charts), *_samples(folder), *_details(folder)),
        tag("footer", tag("p", _footer(folder))),
    ]  # fmt: skip
    # should an escape ever be forgotten, the policy still refuses every script but this one
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        tag("title", f"{escape(name)} – SIRI report"),
        f"<style>{STYLE}</style>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n' + "\n".join(head) + "\n</head>\n<body>\n"
        + "\n".join(body) + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )  # fmt: skip


def _facts(folder: RunFolder) -> str:
    """One line on what was run."""
    said = []
    main = folder.runs[0]
    if main.metrics:
        said.append(f"{main.metrics[-1]['step'] + 1:,} steps")
        caps = [cap for cap in (number(row.get("cap")) for row in main.metrics) if cap is not None]
        if caps:
            same = min(caps) == max(caps)
            said.append(
                f"cap {max(caps):,.0f} tokens" if same
                else f"cap between {max(caps):,.0f} and {min(caps):,.0f} tokens"
            )  # fmt: skip
        cycles = number(main.metrics[-1].get("cycle"))
        if cycles and not main.control:
            said.append(f"{cycles:.0f} cycle{'s' if cycles > 1 else ''}")
    questions = next((one.questions for run in folder.runs for one in run.evals), None)
    samples = next((one.samples for run in folder.runs for one in run.evals), None)
    if questions:
        each = f", {samples} samples each" if samples and samples > 1 else ""
        said.append(f"{questions:,} held-out questions{each}")
    if len(folder.runs) > 1:
        said.append("runs: " + ", ".join(run.label for run in folder.runs))
    return " · ".join(said) or "Nothing recorded yet."


def _results(folder: RunFolder) -> list[str]:
    if not folder.summary:
        return []
    said = headline(folder.summary)
    return [
        tag("p", said, class_="lead") if said else "",
        html_table(folder.summary),
    ]


def _plane(folder: RunFolder) -> list[str]:
    paths, named = spots(folder)
    if not named and not any(path for _, path in paths):
        return []
    images = [
        plane(paths, named, 720, 440, "plane-a").replace('"plot"', '"plot large"', 1),
        plane(paths, named, 360, 360, "plane-b").replace('"plot"', '"plot small"', 1),
    ]
    chosen = colours(folder)
    key = "".join(
        tag("li", tag("span", class_=f"swatch {chosen[run.name]}") + escape(run.label))
        for run in folder.runs
        if run.evals
    )
    words = [
        tag("h3", "How to read it"),
        tag("p", "Each point is one evaluation on held-out questions; the arrows follow training. "
            "Up is more often right, left is shorter. A method is better than another where its "
            "points lie above and to the left.", class_="soft"),
        tag("p", "SIRI tightens the cap and the path goes left (siri-low is taken at the end of "
            "a compression); it opens the cap and the path should go up (siri-high, at the end of "
            "an expansion). Bars are the intervals of the accuracy.", class_="soft"),
        tag("ul", key, class_="soft runs") if key else "",
    ]  # fmt: skip
    return [
        tag("h2", "Accuracy against length"),
        tag("div", tag("figure", *images, class_="card"), tag("div", *words), class_="split"),
    ]


def _charts(charts: list[Figure]) -> list[str]:
    if not charts:
        return []
    blocks = [_figure(one, f"chart-{index}") for index, one in enumerate(charts)]
    return [tag("h2", "Over the steps of training"), tag("div", *blocks, class_="grid")]


def _figure(figure: Figure, ident: str) -> str:
    chart = figure.chart
    lines = [
        {
            "label": line.label,
            "points": [
                [x, float(f"{y:.6g}")]
                for x, y in thin(line.raw or line.points, 600)
                if y is not None
            ],
        }
        for line in chart.lines
    ]
    hover = {"x": chart.x_label, "unit": chart.unit, "lines": lines}
    keys = []
    for line in chart.lines:
        look = {"dots": "dot", "rings": "ring"}.get(line.look)
        spot = tag("circle", class_=f"{look} {line.css}", cx=11, cy=5, r=3.6) if look else ""
        stroke = tag(
            "svg",
            tag("line", class_=f"curve {line.look} {line.css}", x1=1, x2=21, y1=5, y2=5),
            spot,
            viewBox="0 0 22 10",
            aria_hidden="true",
        )
        keys.append(tag("span", stroke, escape(line.label)))
    return tag(
        "figure",
        tag("h3", escape(chart.title)),
        tag("div", *keys, class_="legend") if len(keys) > 1 else "",
        render(chart, 520, 290, f"{ident}-a").replace('"plot"', '"plot large"', 1),
        render(chart, 350, 240, f"{ident}-b", end_labels=False).replace(
            '"plot"', '"plot small"', 1
        ),
        tag("figcaption", escape(figure.text)),
        class_="card",
        data_hover=json.dumps(hover, separators=(",", ":")),
    )


def _alarms(folder: RunFolder) -> list[str]:
    """Alarms, those of a kind together: a run in trouble raises the same one at every step."""
    kinds: dict[tuple[str, str], list[tuple[float | None, str]]] = {}
    for run in folder.runs:
        for row in run.alarms:
            rest = dict(row)
            step = number(rest.pop("step", None))
            name = rest.pop("alarm", None) or rest.pop("name", None) or "alarm"
            told = [rest.pop(key, None) for key in ("message", "cause", "action")]
            text = "; ".join(str(part) for part in told if part) or json.dumps(rest, default=str)
            kinds.setdefault((run.label, str(name)), []).append((step, text))
    lines = []
    for (label, name), found in list(kinds.items())[:20]:
        where = label
        steps = [step for step, _ in found if step is not None]
        if steps:
            first, last = f"{min(steps):,.0f}", f"{max(steps):,.0f}"
            where += f", step {first}" if first == last else f", steps {first} to {last}"
        if len(found) > 1:
            where += f", {len(found):,} times"
        lines.append(tag("li", tag("b", escape(name)), escape(f" ({where}): {found[-1][1]}")))
    if not lines:
        return []
    return [tag("div", tag("h3", "Alarms"), tag("ul", *lines), class_="card warn")]


def _samples(folder: RunFolder) -> list[str]:
    blocks: list[str] = []
    for run in folder.runs:
        for step, rows in run.samples:
            cards = [_sample(row) for row in _contrast(rows)]
            if cards:
                several = f"{run.label}, " if len(folder.runs) > 1 else ""
                inside = tag("div", *cards, class_="grid")
                title = tag("summary", escape(f"{several}step {step:,}"))
                attributes = {"open": "open"} if not blocks else {}
                blocks.append(tag("details", title, inside, class_="card", **attributes))
    if not blocks:
        return []
    words = (
        "From the first and the last recorded step, chosen for contrast: right, wrong and cut "
        "where there are such. Backtracking words are marked."
    )
    return [tag("h2", "Responses"), tag("p", words, class_="soft"), *blocks]


def _contrast(rows: list[dict]) -> list[dict]:
    """At most four rows: one right, one wrong, one cut, then whatever comes first."""
    wanted = [
        next((row for row in rows if (number(row.get("reward")) or 0) > 0), None),
        next((r for r in rows if not number(r.get("reward")) and not r.get("truncated")), None),
        next((row for row in rows if row.get("truncated")), None),
        *rows[:4],
    ]
    chosen: list[dict] = []
    for row in wanted:
        if row is not None and not any(row is other for other in chosen):
            chosen.append(row)
    return chosen[:4]


def _sample(row: dict) -> str:
    reward, tokens = number(row.get("reward")), number(row.get("tokens"))
    verdict, css = ("right", "high") if reward and reward > 0 else ("wrong", "low")
    if "reward" in row and row["reward"] is None:
        verdict = "not judged"
    if row.get("truncated"):
        verdict, css = f"{verdict}, cut by the cap", "low"
    facts = []
    if tokens is not None:
        facts.append(f"{tokens:,.0f} tokens")
    facts.append(f"answer {row.get('answer')}" if row.get("answer") is not None else "no answer")
    facts.append(f"expected {row.get('gold', '–')}")
    response = str(row.get("response", ""))
    cut = len(response) - LONGEST_SAMPLE
    shown = re.sub(
        r"\b(wait|hold on)\b|[\s\S]",
        lambda m: tag("mark", escape(m[0])) if m[1] else escape(m[0]),
        response[:LONGEST_SAMPLE],
        flags=re.IGNORECASE,
    )
    return tag(
        "div",
        tag("p", tag("b", verdict, class_=f"ink {css}"), escape(" · ".join(facts)), class_="tags"),
        tag("h4", "Question"),
        tag("pre", escape(str(row.get("prompt", ""))[-LONGEST_SAMPLE:])),
        tag("h4", "Response"),
        tag("pre", shown),
        tag("p", f"… and {cut:,} more characters", class_="soft") if cut > 0 else "",
        class_="sample",
    )


def _details(folder: RunFolder) -> list[str]:
    blocks = []
    if any(run.evals for run in folder.runs):
        blocks.append(_evaluations(folder.runs))
    for run in folder.runs:
        if run.config is not None:
            title = f"Configuration of {run.label}" if len(folder.runs) > 1 else "Configuration"
            text = tag("pre", escape(masked_settings(run.config)))
            blocks.append(tag("details", tag("summary", escape(title)), text, class_="card"))
    return [tag("h2", "Details"), *blocks] if blocks else []


def _evaluations(runs: list[Run]) -> str:
    heads = ["run", "name", "steps", "budget", "accuracy", "mean tokens", "cut", "backtracks / 1k"]
    lines = []
    for run in runs:
        for one in run.evals:
            for i, budget in enumerate(one.budgets):
                tokens = one.tokens if i == len(one.budgets) - 1 else None
                if i < len(one.tokens_at) and one.tokens_at[i] is not None:
                    tokens = one.tokens_at[i]
                cut = one.truncated[i] if i < len(one.truncated) else None
                lines.append(
                    _cells("td", [
                        run.label, one.name or "", f"{one.step:,}", f"{budget:,}",
                        accuracy_text(one.accuracy[i], one.intervals[i]),
                        "-" if tokens is None else f"{tokens:,.1f}",
                        "-" if cut is None else f"{100 * cut:.1f} %",
                        "-" if one.backtrack is None else f"{one.backtrack:.2f}",
                    ])
                )  # fmt: skip
    table = tag("table", tag("thead", _cells("th", heads)), tag("tbody", *lines))
    scroll = tag("div", table, class_="scroll")
    return tag("details", tag("summary", "All evaluations"), scroll, class_="card")


def _cells(kind: str, texts: list[str]) -> str:
    """A table row whose first two cells are words and the others numbers."""
    return tag(
        "tr",
        *(tag(kind, escape(t), class_=None if i < 2 else "n") for i, t in enumerate(texts)),
    )


def _notes(notes: list[str]) -> list[str]:
    if not notes:
        return []
    items = "".join(tag("li", escape(note)) for note in dict.fromkeys(notes))
    return [tag("div", tag("h3", "What is missing"), tag("ul", items), class_="card warn quiet")]


def _footer(folder: RunFolder) -> str:
    paper = tag("a", "arXiv 2509.25176", href="https://arxiv.org/abs/2509.25176")
    times = [
        path.stat().st_mtime
        for run in folder.runs
        for path in (run.folder / "metrics.jsonl", run.folder / "eval.jsonl")
        if path.is_file()
    ]
    when = ""
    if times:
        stamp = datetime.fromtimestamp(max(times), tz=timezone.utc)
        when = f"Data of {stamp:%Y-%m-%d %H:%M} UTC. "
    return f"{when}Method: SIRI, {paper}. Written by siri-train report."
