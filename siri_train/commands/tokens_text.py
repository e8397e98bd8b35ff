"""Words that move with the cap, as tables for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from siri_train.commands.tokens import Table
from siri_train.report.token_pooling import (
    KEYS,
    LEAST_BLOCKS,
    Moved,
    Moves,
    Rate,
    block_length,
    moves,
    pool,
)
from siri_train.terminal.lines import LOG_WIDTH, shortened, words
from siri_train.terminal.table import aligned

_LONGEST = 16  # characters of a group's name, so that a line has at most 80
_ASKED = {
    "cap": "correlation with the cap",
    "falling": "- in compression",
    "rising": "- in expansion",
    "phase": "expansion - compression",
    "right": "right - wrong",
}
_UNITS = "Correlations are from -1 to 1; differences are per 1000 response tokens."


def tokens_text(tables: Sequence[Table], width: int) -> str:
    """The tables of all runs, without a newline at the end.

    Args:
        tables: of the runs.
        width: columns of the terminal, see :func:`siri_train.terminal.table.aligned`.
    """
    return "\n\n".join(_of_run(table, width) for table in tables)


def as_json(tables: Sequence[Table]) -> dict[str, Any]:
    """The same with all counts."""
    return {"runs": [_json_of_run(table) for table in tables]}


def _of_run(table: Table, width: int) -> str:
    phases = _phases(table)
    body = []
    pooled = {phase: pool(table.rows, None if phase == "all steps" else phase) for phase in phases}
    never = [name for name, rates in pooled[phases[-1]].items() if not rates["all"].count]
    for name in [name for name in pooled[phases[0]] if name not in never]:
        for phase in phases:
            rates = pooled[phase][name]
            body.append([_short(name), phase, *(_rate(rates[key]) for key in KEYS)])
    found = moves(table.rows)
    blocks = [f"{table.run}\n{_wrapped(_source(table), width)}"]
    if body:
        blocks.append(aligned(["group", "phase", *KEYS], body, (0, 1), width, keys=2))
    if never:
        blocks.append(_wrapped(f"Not found at all: {', '.join(map(_short, never))}.", width))
    lines = [
        [_short(name), said, *_moved(getattr(moved, key), 3 if key in ("phase", "right") else 2)]
        for name, moved in found.items()
        for key, said in _ASKED.items()
        if name not in never and getattr(moved, key).value is not None
    ]
    if lines:
        blocks.append(aligned(["group", "moves", "by", "95 % interval"], lines, (0, 1), width, 2))
        blocks[-1] += f"\n\n{_wrapped(_UNITS, width)}"
    return "\n\n".join([*blocks, _wrapped(_said(table, found), width)])


def _phases(table: Table) -> list[str]:
    """The phases that the table has, and all steps together."""
    there = {str(row.get("phase")) for row in table.rows}
    return [phase for phase in ("compression", "expansion") if phase in there] + ["all steps"]


def _source(table: Table) -> str:
    if table.source == "metrics.jsonl":
        steps = f"{len(table.rows)} of {table.steps} steps"
        return f"Per 1000 response tokens, in all responses of {steps}."
    return (
        f"Per 1000 response tokens, counted now in the {table.responses} responses of "
        f"{len(table.rows)} steps that rollouts/ keeps; metrics.jsonl has no counts of them."
    )


def _said(table: Table, found: dict[str, Moves]) -> str:
    """Sentences: the groups that move with the cap, and what the intervals are of."""
    block = block_length(table.rows)
    needed = LEAST_BLOCKS * block
    few = (
        f" Too few steps for intervals: {len(table.rows)}, it takes {needed} ({LEAST_BLOCKS} "
        f"blocks of {block}). The figures may be chance."
        if len(table.rows) < needed
        else ""
    )
    if all(moved.cap.value is None for moved in found.values()):
        caps = {row.get("cap") for row in table.rows}
        why = "the cap does not move" if len(caps) == 1 else "no group occurs often enough"
        return f"No correlation with the cap: {why}.{few}"
    if few:
        return few.strip()
    with_cap = [_short(name) for name, moved in found.items() if moved.follows > 0]
    against = [_short(name) for name, moved in found.items() if moved.follows < 0]
    trend = [_short(name) for name, moved in found.items() if moved.cap.sure and not moved.follows]
    said = [f"Falls in compression and returns in expansion: {', '.join(with_cap) or 'none'}."]
    if against:
        said.append(f"The other way round: {', '.join(against)}.")
    if trend:
        said.append(
            f"Correlated with the cap, but not in both phases, as a trend of the whole run would "
            f"be: {', '.join(trend)}."
        )
    return (
        f"{' '.join(said)} Intervals are over blocks of {block} steps of this run; another seed "
        "may differ."
    )


def _wrapped(text: str, width: int) -> str:
    return "\n".join(words("", text, min(width, LOG_WIDTH)))


def _rate(rate: Rate) -> str:
    return "-" if rate.per_1k is None else f"{rate.per_1k:,.3f}"


def _moved(moved: Moved, digits: int) -> list[str]:
    if moved.interval is None:
        return [f"{moved.value:+,.{digits}f}", "-"]
    low, high = moved.interval
    return [f"{moved.value:+,.{digits}f}", f"{low:+,.{digits}f} to {high:+,.{digits}f}"]


def _short(name: str) -> str:
    return shortened(name, _LONGEST, "...")


def _json_of_run(table: Table) -> dict[str, Any]:
    pooled = {
        phase: pool(table.rows, None if phase == "all steps" else phase) for phase in _phases(table)
    }
    found = moves(table.rows)
    groups = {
        name: {
            "phases": {
                phase.replace(" steps", ""): {
                    key: {"per_1k": rate.per_1k, "count": rate.count, "tokens": rate.tokens}
                    for key, rate in rates[name].items()
                }
                for phase, rates in pooled.items()
            },
            "moves": {
                key: {"value": one.value, "interval": one.interval and list(one.interval)}
                for key, one in ((key, getattr(moved, key)) for key in _ASKED)
            },
        }
        for name, moved in found.items()
    }
    return {
        "run": table.run,
        "source": table.source,
        "steps": len(table.rows),
        "responses": table.responses or None,
        "groups": groups,
    }
