"""The report page: the values that templates/page.html is filled with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from markupsafe import Markup

from siri_train.config.masked import masked_settings
from siri_train.files import replace_text

from .alarm_lanes import alarm_list
from .budgets import (
    MOST_DRAWN,
    budget_chart,
    budget_pictures,
    budget_table,
    every_budget,
    methods,
)
from .charts import Figure, colours, figures, quiet, spots
from .checkpoint_names import measured
from .cost_tables import cost_tables
from .data import Run, RunFolder, number, read_run_folder
from .embedded import embedded, kept_values
from .eval_sets import EvalSet, eval_sets
from .evaluations import evaluations
from .front import front_table, placed
from .group_dots import group_pictures
from .many import MOST_SHOWN, waiting
from .many import said as said_of_many
from .markup import data_block, fill, fingerprint
from .pareto import Spot, close_up, plane
from .questions import Records, all_records
from .responses import browsed, cards, left_out
from .script import script as joined_script
from .script import style as joined_style
from .svg import MOST_ENDS, render
from .table import compared_with, headline, table_rows
from .verdict import judge
from .word_rates import groups_left_out, unsaid_groups

Values = dict[str, Any]


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder: one file that needs no network.

    The charts are in it as pictures, so it can be read where scripts do not run. The script in it
    adds values under the pointer, zoom, curves switched on and off, and smoothing.

    Args:
        run_dir: a run's folder, or a folder with one sub-folder a run (``siri/``, ``constant/``)
            and ``summary.json`` at the top. The page names each file that is missing or unreadable.

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


def build_page(folder: RunFolder, state: str = "", every: float = 0.0, comparison: str = "") -> str:
    """The whole page as text; the same for the same files of a run.

    Args:
        folder: as it was read.
        state: of a page that a server shows while the run goes on, see `siri_train.report.serve`;
            empty: the page is a file and asks for nothing.
        every: seconds between two questions for the state.
        comparison: tables as text, of runs that were compared question by question.
    """
    charts, missing = figures(folder)
    notes = list(folder.notes)
    kept, hidden = kept_values(charts), waiting(folder)
    if missing:
        notes.append("No values, so no chart: " + ", ".join(missing) + ".")
    judged = judge(folder)
    if folder.summary and judged.state == "unfinished" and judged.steps is not None:
        notes.append(
            "summary.json is of an earlier end of the run, which has gone on: the table of "
            "checkpoints is not of its newest steps."
        )
    if more := groups_left_out(folder):
        notes.append(f"{len(more)} more groups of words are not drawn: siri-train tokens has all.")
    style, script = joined_style(), joined_script()
    # If an escape were missing, this policy would still refuse every script, style and address
    # except these two. Nothing in the page needs eval, an event handler or a style attribute.
    asks = "connect-src 'self'; " if state else ""
    policy = (
        f"default-src 'none'; style-src {fingerprint(style)}; script-src {fingerprint(script)}; "
        f"{asks}base-uri 'none'; form-action 'none'"
    )
    records = all_records(folder)
    compared_methods = methods(folder, records)
    budgets = budget_chart(folder, compared_methods)
    chosen, found, drawn = colours(folder), browsed(folder), embedded(folder, charts)
    headings, rows = table_rows(folder.summary, chosen if folder.several else None)
    asked = eval_sets(folder, records)
    return fill(
        "page.html",
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        comparison=comparison,
        state=state,
        every=f"{every:.1f}",
        name=folder.folder.resolve().name,
        verdict=judged,
        facts=_facts(folder),
        about=[line for line in folder.about.splitlines() if line.strip()],
        said=headline(folder.summary),
        compared=compared_with(folder.summary),
        headings=headings,
        rows=rows,
        alarms=alarm_list(folder),
        notes=list(dict.fromkeys(notes)),
        measured=measured(folder),
        seeds=any(run.seeds > 1 for run in folder.runs),
        fronts=_fronts(folder, chosen, records, asked),
        sets=asked if len(asked) > 1 else [],
        spots_more=_spots_left(folder),
        budgets=budget_pictures(budgets) if budgets is not None else [],
        budget_lines=budgets.lines if budgets is not None else [],
        budget_more=max(len(compared_methods) - MOST_DRAWN, 0),
        budget_every=every_budget(compared_methods),
        budget_best=budget_table(compared_methods)
        if budgets is not None and len(asked) < 2
        else [],
        groups=group_pictures(folder),
        quiet=[*quiet(folder), *_unsaid(folder)],
        most_ends=MOST_ENDS,
        costs=cost_tables(folder, chosen),
        runs=[
            {
                "index": index,
                "label": run.label,
                "css": chosen[run.name],
                "evals": bool(run.evals),
                "waiting": index in hidden,
            }
            for index, run in enumerate(folder.runs)
        ],
        figures=[_figure(one, f"chart-{index}") for index, one in enumerate(charts)],
        smooth=0 if kept else max((n.window for c in charts for n in c.chart.lines), default=0),
        many=said_of_many(folder, kept),
        most_shown=MOST_SHOWN,
        data=data_block(drawn),
        axes=drawn["axes"]["kinds"],
        samples=cards(folder),
        responses=None if found is None else data_block(found),
        left_out=left_out(folder),
        evaluations=evaluations(folder, asked),
        configs=_configs(folder.runs),
        when=_when(folder),
    )


def _unsaid(folder: RunFolder) -> list[str]:
    groups = unsaid_groups(folder)
    return [f"Words: no response holds one of {', '.join(groups)}"] if groups else []


def _facts(folder: RunFolder) -> str:
    """One line on what was run."""
    said = []
    main = folder.runs[0]
    shown = [run for run in (folder.runs if folder.several else [main]) if run.metrics]
    if shown:
        ends = [run.metrics[-1]["step"] + 1 for run in shown]
        most, least = max(ends), min(ends)
        said.append(f"{most:,} steps" if most == least else f"{least:,} to {most:,} steps")
        caps = [cap for run in shown for cap in run.caps.values()]
        if caps:
            same = min(caps) == max(caps)
            said.append(
                f"cap {max(caps):,.0f} tokens" if same
                else f"cap between {max(caps):,.0f} and {min(caps):,.0f} tokens"
            )  # fmt: skip
        cycles = number(main.metrics[-1].get("cycle")) if main.metrics else None
        if cycles and not main.control and not folder.several:
            said.append(f"{cycles:.0f} cycle{'s' if cycles > 1 else ''}")
    asked = {(one.questions, one.samples) for run in folder.runs for one in run.evals}
    first = next((one for run in folder.runs for one in run.evals), None)
    same = len(asked) == 1 or not folder.several
    questions, samples = (first.questions, first.samples) if first and same else (None, None)
    if questions:
        each = f", {samples} samples each" if samples and samples > 1 else ""
        said.append(f"{questions:,} held-out questions{each}")
    if len(folder.runs) > 1:
        said.append("runs: " + ", ".join(run.label for run in folder.runs))
    return " · ".join(said) or "Nothing recorded yet."


def _fronts(
    folder: RunFolder, chosen: dict[str, str], records: dict[str, Records], asked: Sequence[EvalSet]
) -> list[Values]:
    """A plane and its tables for each set of runs that compare; empty without evaluations.

    ``planes`` are for wide and for narrow screens; ``nameless``: whether they leave names out.
    """
    paths, named = spots(folder)
    hidden, found = waiting(folder), []
    for place_of, one in enumerate(asked if len(asked) > 1 else [None]):
        runs = range(len(folder.runs)) if one is None else one.runs
        own = [paths[place] for place in runs]
        labels = [spot for spot in named if one is None or spot.run in runs]
        if not labels and not any(path for _, path in own):
            continue
        drawn = [
            plane(
                own, labels, width, high, f"plane-{kind}{place_of or ''}", runs=runs, hidden=hidden
            )
            for width, high, kind in ((720, 440, "a"), (360, 360, "b"))
        ]
        wanted = len(close_up(labels) or labels)
        found.append(
            {
                "title": "" if one is None else one.text,
                "names": ", ".join(folder.runs[place].label for place in runs),
                "planes": drawn,
                "nameless": any(str(each).count('class="label big') < wanted for each in drawn),
                "outside": _outside(labels),
                "front": front_table(folder, chosen, records, None if one is None else runs),
            }
        )
    return found


def _spots_left(folder: RunFolder) -> int:
    """The evaluations that have no point of their own in the plane."""
    drawn = sum(len(path) for _, path in spots(folder)[0])
    return max(len(placed(folder)) - drawn, 0)


def _outside(named: Sequence[Spot]) -> str:
    """The checkpoints that the plane leaves out, in words."""
    shown = close_up(named)
    left = [spot.tip for spot in named if shown and spot not in shown]
    more = f"; and {len(left) - 4:,} more" if len(left) > 4 else ""
    return "; ".join(left[:4]) + more


def _figure(figure: Figure, ident: str) -> Values:
    return {
        "title": figure.chart.title,
        "text": figure.text,
        "lines": figure.chart.lines,
        "wide": render(figure.chart, 520, 290, f"{ident}-a"),
        "narrow": render(figure.chart, 350, 240, f"{ident}-b", end_labels=False),
    }


def _configs(runs: list[Run]) -> list[Values]:
    return [
        {
            "title": f"Configuration of {run.label}" if len(runs) > 1 else "Configuration",
            "text": masked_settings(run.config),
        }
        for run in runs
        if run.config is not None
    ]


def _when(folder: RunFolder) -> str:
    """The time of the newest data file; empty without data."""
    times = [
        path.stat().st_mtime
        for run in folder.runs
        for path in (run.folder / "metrics.jsonl", run.folder / "eval.jsonl")
        if path.is_file()
    ]
    if not times:
        return ""
    return f"{datetime.fromtimestamp(max(times), tz=timezone.utc):%Y-%m-%d %H:%M} UTC"
