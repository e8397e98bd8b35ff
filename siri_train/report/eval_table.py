"""An evaluation as a table for the terminal, and how such tables are aligned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .table import accuracy_text


def evaluation_table(row: dict[str, Any]) -> str:
    """The table that ``siri-train eval`` shows: a line for each set and budget.

    Args:
        row: as in ``eval.json``.
    """
    sets = row.get("sets")
    samples = row["samples"]
    head = [*(["set"] if sets else []), "budget", "accuracy"]
    head += [f"pass@{k}" for k in row["pass_at"] if k != "1"]
    head += ["mean tokens", "truncated", "questions"]
    body = []
    for name, one in (sets or {"": row}).items():
        for i, budget in enumerate(row["budgets"]):
            cells = [*([name] if sets else []), f"{budget:,}"]
            cells.append(accuracy_text(one["accuracy"][i], one["accuracy_interval"][i]))
            cells += [f"{100 * at[i]:.1f} %" for k, at in one["pass_at"].items() if k != "1"]
            cells += [f"{one['tokens_at'][i]:,.1f}", f"{100 * one['truncated_frac'][i]:.1f} %"]
            body.append([*cells, f"{one['questions']:,} x {samples}"])
    return aligned(head, body, left=(0,) if sets else ())


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A Markdown table that is also aligned for a terminal.

    Args:
        head: of the columns.
        body: the cells of each line.
        left: the columns of text; the others are numbers, flushed right.
    """
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [head, *body]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
