"""An evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from siri_train.terminal.table import aligned

from .table import accuracy_text


def evaluation_table(row: dict[str, Any], width: int | None = None) -> str:
    """The table that ``siri-train eval`` shows: a line for each set and budget.

    pass@k has a column for each k that ``pass_at`` names; it is "-" for a set that has no such k.

    Args:
        row: as in ``eval.json``.
        width: columns of the terminal, see :func:`siri_train.terminal.table.aligned`.
    """
    sets = row.get("sets")
    found = list((sets or {"": row}).items())
    ks = sorted({int(k) for _, one in found for k in one["pass_at"]} - {1})
    head = [*(["set"] if sets else []), "budget", "accuracy"]
    head += [f"pass@{k}" for k in ks]
    head += ["mean tokens", "truncated", "questions"]
    body = []
    for name, one in found:
        for i, budget in enumerate(row["budgets"]):
            cells = [*([name] if sets else []), f"{budget:,}"]
            cells.append(accuracy_text(one["accuracy"][i], one["accuracy_interval"][i]))
            passed = [one["pass_at"].get(str(k)) for k in ks]
            cells += ["-" if at is None else f"{100 * at[i]:.1f} %" for at in passed]
            cells += [f"{one['tokens_at'][i]:,.1f}", f"{100 * one['truncated_frac'][i]:.1f} %"]
            body.append([*cells, f"{one['questions']:,} x {one.get('samples', row['samples'])}"])
    named = bool(sets)
    places = (1 + named, head.index("mean tokens"))
    return aligned(head, body, (0,) if named else (), width, keys=1 + named, breaks=places)
