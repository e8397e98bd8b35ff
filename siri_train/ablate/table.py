"""The table of an ablation, as Markdown that is also aligned for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.ablate.compare import Row
from siri_train.ablate.plan import Plan
from siri_train.ablate.presets import METHODS
from siri_train.monitor.progress import duration
from siri_train.statistics.intervals import Interval
from siri_train.terminal.table import aligned


def table(rows: Sequence[Row], reference: Row, width: int | None = None) -> str:
    """One line a row, without a newline at the end.

    Args:
        rows: compared.
        reference: the one that the differences are from.
        width: columns of the terminal, see :func:`siri_train.terminal.table.aligned`.
    """
    low, high = reference.budgets[0], reference.budgets[-1]
    head = ["arm", "checkpoint", "seeds", f"accuracy within {high:,}"]
    head += [f"within {low:,}"] if low != high else []
    head += ["mean tokens", "training tokens", "time", "difference, points", "p (Holm)", "verdict"]
    body = []
    for row in rows:
        cells = [_arm(row), row.checkpoint, str(len(row.scores))]
        cells.append(_share(row.accuracy[-1], row.intervals[-1]))
        cells += [_share(row.accuracy[0], row.intervals[0])] if low != high else []
        cells += [
            f"{_tokens(row.tokens)} ({_tokens(row.tokens_interval.low)} to "
            f"{_tokens(row.tokens_interval.high)})",
            _count(row.mean("trained_tokens")),
            duration(row.mean("seconds")),
            _difference(row),
            "" if row.adjusted is None else _p_value(row.adjusted),
            row.verdict,
        ]
        body.append(cells)
    breaks = [head.index(name) for name in ("mean tokens", "training tokens", "difference, points")]
    return aligned(head, body, (0, 1, len(head) - 1), width, keys=2, breaks=breaks)


def sweep_table(rows: Sequence[Row]) -> str:
    """Every cap of the arms that sweep, one line each, without a newline at the end.

    Args:
        rows: with figures, at least one.
    """
    low, high = rows[0].budgets[0], rows[0].budgets[-1]
    lines = [
        f"| cap | seeds | accuracy within {high:,} | within {low:,} | mean tokens "
        "| training tokens |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        tokens = row.tokens_interval
        lines.append(
            f"| {_arm(row)} | {len(row.scores)} | {_share(row.accuracy[-1], row.intervals[-1])} "
            f"| {_share(row.accuracy[0], row.intervals[0])} | {_tokens(row.tokens)} "
            f"({_tokens(tokens.low)} to {_tokens(tokens.high)}) "
            f"| {_count(row.mean('trained_tokens'))} |"
        )
    return "\n".join(lines)


def page(
    plan: Plan,
    rows: Sequence[Row],
    reference: Row,
    notes: Sequence[str],
    swept: Sequence[Row] = (),
) -> str:
    """The page of an ablation: the table, how to read it, and what each arm is.

    Args:
        plan: all arms.
        rows: compared.
        reference: the row that the differences are from.
        notes: sentences that a reader must know.
        swept: every cap of the arms that sweep, see :func:`sweep_table`.
    """
    lines = [f"# Ablation of {plan.recipe}", ""]
    if plan.overrides:
        lines += [f"All arms: `{' '.join(plan.overrides)}`", ""]
    lines += [matched(plan), "", table(rows, reference), "", *explained(rows, reference), ""]
    if notes:
        lines += [*[f"- {note}" for note in notes], ""]
    if swept:
        lines += ["## Every cap that was tried", "", sweep_table(swept), ""]
    lines += ["## Arms", ""]
    for arm in plan.arms:
        method = METHODS[arm.method] if arm.method else None
        about = f"{method.text}. Source: {method.source}." if method else "the recipe."
        same = f" Equal to {arm.same_as}, and trained once." if arm.same_as else ""
        lines += [f"- **{arm.name}**: {about}{same}"]
        for member in arm.members:
            told = " ".join(member.overrides) or "as the recipe has it"
            lines += [f"  - {member.name + ': ' if member.name else ''}`{told}`"]
    return "\n".join(lines) + "\n"


def explained(rows: Sequence[Row], reference: Row) -> list[str]:
    """How to read the table, in a few lines."""
    tests = sum(row.against is not None for row in rows)
    lines = [
        "Accuracy, tokens: mean over seeds and questions with a 95 % interval. Training tokens and "
        "time: of a run until the checkpoint, without evaluations.",
    ]
    if tests:
        lines.append(
            f"Difference: accuracy within {reference.budgets[-1]:,} tokens less that of "
            f"{reference.name}, on the same questions. p: sign flips over questions, corrected "
            f"for {tests} test{'s' if tests > 1 else ''} (Holm). A verdict needs p below 0.05 and "
            "an interval without 0."
        )
    if all(len(row.scores) == 1 for row in rows):
        lines.append(
            "With one seed an interval is about that run; what another seed would give is not in "
            "it."
        )
    return lines


def matched(plan: Plan) -> str:
    """The sentence about what all runs have in common."""
    seeds = ", ".join(map(str, plan.seeds))
    if plan.match == "steps":
        return f"Equal steps, seeds {seeds}."
    budget = (
        f"{plan.tokens:,} response tokens a run"
        if plan.tokens is not None
        else f"as many response tokens as {plan.arms[0].name} samples with the same seed"
    )
    return f"Equal tokens ({budget}), seeds {seeds}."


def _arm(row: Row) -> str:
    return f"{row.arm} ({row.member})" if row.member else row.arm


def _share(value: float, bounds: Interval) -> str:
    return f"{100 * value:.1f} % ({100 * bounds.low:.1f} to {100 * bounds.high:.1f})"


def _tokens(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _count(value: float) -> str:
    return f"{value / 1e6:,.2f} M" if value >= 1e6 else f"{value:,.0f}"


def _difference(row: Row) -> str:
    if row.against is None:
        return ""
    points = [
        f"{100 * min(max(value, -1.0), 1.0):+.1f}".replace("-", "−")
        .replace("+0.0", "0.0")
        .replace("−0.0", "0.0")
        for value in (row.against.difference, row.against.low, row.against.high)
    ]
    return f"{points[0]} ({points[1]} to {points[2]})"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
