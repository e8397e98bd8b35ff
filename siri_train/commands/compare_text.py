"""A comparison of runs for the terminal, as Markdown tables that are aligned."""

from __future__ import annotations

from siri_train.commands.compare import (
    Comparison,
    Point,
    chosen,
    covered,
    described,
    gain_per_length,
    intervals,
    start_of,
)
from siri_train.statistics.paired import Paired
from siri_train.terminal.lines import words
from siri_train.terminal.table import aligned


def comparison_text(found: Comparison, width: int | None = None) -> str:
    """The whole comparison, without a newline at the end.

    Args:
        found: see :func:`siri_train.commands.compare.compare`.
        width: columns of the terminal, see :func:`siri_train.terminal.table.aligned`.
    """
    record = found.record
    of_set = f" of the set {record.set}" if record.set else ""

    def said(text: str) -> str:
        return text if width is None else "\n".join(words("", text, width))

    blocks = [
        said(
            f"{len(record.ids):,} questions{of_set}, within {record.budgets[-1]:,} tokens; 95 % "
            "intervals over questions"
        ),
        checkpoints_table(found, width),
    ]
    left = len(found.points) - len(_shown(found))
    if left:
        one = left == 1
        more = said(
            f"{left} more evaluated checkpoint{' is' if one else 's are'} dominated; --json lists "
            f"{'it' if one else 'them'}."
        )
        blocks[-1] += f"\n{more}"
    blocks.append(
        said(
            "dAcc/CR: relative gain of accuracy over the start, over the length relative to the "
            "start's. Front: no other checkpoint is as accurate and shorter, or as short and more "
            "accurate. Hypervolume: the mean, over all lengths up to the budget, of a run's best "
            "accuracy with at most that length."
        )
    )
    blocks.append(_hypervolumes(found, width))
    if found.tests:
        blocks += [_tests(found, width), *map(said, _notes(found))]
    return "\n\n".join(blocks)


def checkpoints_table(found: Comparison, width: int | None = None) -> str:
    """The named checkpoints, the last one of each run, and all that no other beats.

    Args:
        found: see :func:`siri_train.commands.compare.compare`.
        width: columns of the terminal, see :func:`siri_train.terminal.table.aligned`.
    """
    head = ["run", "checkpoint", "step", "accuracy", "mean tokens", "dAcc/CR", "front"]
    body = []
    for point, dominated in _shown(found):
        of_accuracy, of_tokens = intervals(point)
        ratio = gain_per_length(point, start_of(found.runs[point.run]))
        body.append(
            [
                point.run,
                point.name or ("last" if point is found.runs[point.run][-1] else ""),
                "-" if point.step is None else f"{point.step:,}",
                f"{100 * point.accuracy:.1f} % ({100 * of_accuracy.low:.1f} to "
                f"{100 * of_accuracy.high:.1f})",
                f"{point.tokens:,.1f} ({of_tokens.low:,.1f} to {of_tokens.high:,.1f})",
                "-" if ratio is None else f"{ratio:.3f}",
                "dominated" if dominated else "on it",
            ]
        )
    return aligned(head, body, (0, 1, 6), width, keys=3, breaks=(4, 5))


def _shown(found: Comparison) -> list[tuple[Point, bool]]:
    named = {id(point) for points in found.runs.values() for point in chosen(points).values()}
    return [
        (point, dominated)
        for point, dominated in zip(found.points, found.dominated, strict=True)
        if id(point) in named or not dominated
    ]


def _hypervolumes(found: Comparison, width: int | None) -> str:
    body = []
    for label, points in found.runs.items():
        area, bounds = covered(points)
        body.append(
            [
                label,
                f"{len(points)}",
                f"{100 * area:.1f} % ({100 * bounds.low:.1f} to {100 * bounds.high:.1f})",
            ]
        )
    return aligned(["run", "checkpoints", "hypervolume"], body, (0,), width)


def _tests(found: Comparison, width: int | None) -> str:
    head = ["first", "second", "accuracy, points", "p", "verdict"]
    head += ["tokens", "p", "verdict"]
    body = []
    for test, p_values, said in zip(found.tests, found.corrected, found.verdicts, strict=True):
        body.append(
            [
                described(test.first),
                described(test.second),
                _difference(test.accuracy, 100),
                _p_value(p_values[0]),
                said[0],
                _difference(test.tokens, 1),
                _p_value(p_values[1]),
                said[1],
            ]
        )
    return aligned(head, body, (0, 1, 4, 7), width, keys=2, breaks=(5,))


def _notes(found: Comparison) -> list[str]:
    count = len(found.tests)
    corrected = f", corrected for {count} tests (Holm)" if count > 1 else ""
    notes = [
        "Differences are first less second, on the same questions. p: sign flips over "
        f"questions{corrected}. A verdict needs p below 0.05 and an interval without 0."
    ]
    if len(found.runs) > 1:
        notes.append(
            "Every row compares one run with one run: another training seed may change it. "
            "siri-train ablate trains several seeds and counts them."
        )
    return notes


def _difference(paired: Paired, scale: float) -> str:
    low, high = scale * paired.low, scale * paired.high
    return f"{scale * paired.difference:+.1f} ({low:+.1f} to {high:+.1f})"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
