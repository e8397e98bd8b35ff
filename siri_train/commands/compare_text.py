"""A comparison of runs for the terminal, as Markdown tables that are aligned."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.commands.compare import Comparison, covered, intervals
from siri_train.commands.compare_points import Point, chosen, described, gain_per_length
from siri_train.commands.compare_sets import Cell, Figure, SetRow, SetTable, set_table
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

    table = set_table(found.runs, found.starts)
    several = len(table.names) > 1
    blocks = []
    if several:
        blocks = [said(_about_sets(found)), sets_table(table, width), *map(said, _below(table))]
        others = [*(name for name in table.names if name != record.set), *table.other_questions]
        more = ", ".join([*others, *table.unreported])
        blocks.append(
            said(
                f"What follows is of the set {record.set} alone; --set NAME shows another: {more}."
            )
        )
    counts = {point.record.samples for point in found.points}
    each = f", {_samples(counts.pop())} each" if len(counts) == 1 else ""
    blocks += [
        said(
            f"{len(record.ids):,} questions{of_set}{each}, within {record.budgets[-1]:,} tokens; "
            "95 % intervals over questions"
        ),
        checkpoints_table(found, width, ratio=not several),
    ]
    left = len(found.points) - len(_shown(found))
    if left:
        one = left == 1
        more = said(
            f"{left} more evaluated checkpoint{' is' if one else 's are'} dominated; --json lists "
            f"{'it' if one else 'them'}."
        )
        blocks[-1] += f"\n{more}"
    ratio = (
        "dAcc/CR: relative gain of accuracy over the start, over the length relative to the "
        "start's. "
    )
    blocks.append(
        said(
            f"{'' if several else ratio}Front: no other checkpoint is as accurate and shorter, or "
            "as short and more accurate. Hypervolume: the mean, over all lengths up to the budget, "
            "of a run's best accuracy with at most that length."
        )
    )
    blocks.append(_hypervolumes(found, width))
    if found.tests:
        blocks += [_tests(found, width), *map(said, _notes(found))]
    return "\n\n".join(blocks)


def sets_table(table: SetTable, width: int | None = None) -> str:
    """A line a checkpoint and a column a set: accuracy / mean tokens, and the mean of the sets.

    Args:
        table: see :func:`siri_train.commands.compare_sets.set_table`.
        width: columns of the terminal, see :func:`siri_train.terminal.table.aligned`.
    """
    head = ["run", "checkpoint", "step", "samples", *table.names, "mean of sets", "dAcc/CR"]
    body = []
    for row in table.rows:
        step, ratio = row.point.step, row.gain_per_length
        body.append(
            [
                row.point.run,
                row.point.name or ("last" if row.last else ""),
                "-" if step is None else f"{step:,}",
                _samples_of(row, table.names),
                *(_cell(row.cells.get(name)) for name in table.names),
                _cell(row.mean),
                "-" if ratio is None else f"{ratio:.3f}",
            ]
        )
    return aligned(head, body, (0, 1), width, keys=2, breaks=(4, 4 + len(table.names)))


def _samples_of(row: SetRow, names: Sequence[str]) -> str:
    counts = [str(row.samples(name)) if name in row.cells else "-" for name in names]
    return counts[0] if len(set(counts)) == 1 else ", ".join(counts)


def _cell(cell: Cell | None) -> str:
    return "-" if cell is None else f"{_half(cell.accuracy, 100, 1)} / {_half(cell.tokens, 1, 0)}"


def _half(figure: Figure, scale: float, digits: int) -> str:
    half = scale * (figure.bounds.high - figure.bounds.low) / 2
    return f"{scale * figure.value:,.{digits}f} ± {half:,.{digits}f}"


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count:,} samples"


def _about_sets(found: Comparison) -> str:
    return (
        f"Accuracy in per cent / mean tokens on each set, within {found.record.budgets[-1]:,} "
        "tokens; ± half the 95 % interval over the questions of the set"
    )


def _below(table: SetTable) -> list[str]:
    asked = ", ".join(f"{name} {table.questions[name]:,}" for name in table.names)
    over = ", ".join(table.common)
    lines = [
        "Accuracy is avg@n: the mean over questions of the share of right answers among their n "
        f"samples (column samples). Questions: {asked}."
    ]
    if len({row.samples(name) for row in table.rows for name in row.cells}) > 1:
        lines[0] += (
            " The numbers of samples differ. Accuracies compare all the same, as none is biased by "
            "n; fewer samples make a wider interval."
        )
    if table.common:
        lines.append(
            f"Mean of sets: over {over}, each counting once, however many questions it has. "
            "dAcc/CR, over the same sets: the mean relative gain of accuracy over the start, over "
            "the mean share of the start's length that is left."
        )
    else:
        lines.append("No set is there in every row, so there is no mean of sets and no dAcc/CR.")
    left = [name for name in table.names if name not in table.common] if table.common else []
    if left:
        lines.append(f"Not in the mean, as a row lacks it: {', '.join(left)}.")
    if table.unreported:
        lines.append(
            f"Left out: {', '.join(table.unreported)}, by which eval.select chooses. A checkpoint "
            "that was chosen on a set looks better there than it is."
        )
    if table.other_questions:
        lines.append(
            f"Left out: {', '.join(table.other_questions)}, where two rows answered other "
            "questions, or within another largest budget."
        )
    return lines


def checkpoints_table(found: Comparison, width: int | None = None, ratio: bool = True) -> str:
    """The named checkpoints, the last one of each run, and all that no other beats.

    Args:
        found: see :func:`siri_train.commands.compare.compare`.
        width: columns of the terminal, see :func:`siri_train.terminal.table.aligned`.
        ratio: whether there is a column for dAcc/CR, which is over all reported sets.
    """
    counts = {point.record.samples for point, _ in _shown(found)}
    several = len(counts) > 1
    head = ["run", "checkpoint", "step", *["samples"] * several, "accuracy", "mean tokens"]
    head += [*["dAcc/CR"] * ratio, "front"]
    body = []
    for point, dominated in _shown(found):
        of_accuracy, of_tokens = intervals(point)
        gain = gain_per_length(point, found.starts[point.run])
        body.append(
            [
                point.run,
                point.name or ("last" if point is found.runs[point.run][-1] else ""),
                "-" if point.step is None else f"{point.step:,}",
                *[f"{point.record.samples:,}"] * several,
                f"{100 * point.accuracy:.1f} % ({100 * of_accuracy.low:.1f} to "
                f"{100 * of_accuracy.high:.1f})",
                f"{point.tokens:,.1f} ({of_tokens.low:,.1f} to {of_tokens.high:,.1f})",
                *["-" if gain is None else f"{gain:.3f}"] * ratio,
                "dominated" if dominated else "on it",
            ]
        )
    last = len(head) - 1
    return aligned(head, body, (0, 1, last), width, keys=3, breaks=(4 + several, 5 + several))


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
