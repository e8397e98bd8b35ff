"""The live display of a terminal: a bar with the time left, and each figure with its history."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from siri_train.monitor.run_logs import reported

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_HISTORY = 400


class Figure(NamedTuple):
    """One line of the display.

    Args:
        value: what the history is drawn from; None where it does not exist in this step.
        text: how the newest one is written.
    """

    value: float | None
    text: str


class LiveDisplay(Progress):
    """A bar, a line for each figure, a note; drawn below whatever else is printed.

    Call ``stop`` before the end: it leaves the last state on the screen.

    Args:
        label: what is running.
        total: number of steps.
        console: where to; default: standard output.
    """

    def __init__(self, label: str, total: int, console: Console | None = None) -> None:
        self.history: dict[str, list[float]] = {}
        self.figures: Mapping[str, Figure] = {}
        self.note = ""
        super().__init__(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[time_left]}", markup=False),
            console=console or Console(),
            auto_refresh=False,  # a thread that refreshes would draw into forked workers
        )
        self.bar = self.add_task(label, total=total, time_left="")
        self.start()

    def show(self, done: int, time_left: str, note: str, figures: Mapping[str, Figure]) -> None:
        """Draw the state after ``done`` steps.

        Args:
            done: steps finished.
            time_left: such as ``ETA 3 min 20 s``.
            note: one line of text under the figures.
            figures: by name, in the order they are shown; their values join the histories.
        """
        for name, figure in figures.items():
            if figure.value is not None:
                self.history.setdefault(name, []).append(figure.value)
                del self.history[name][:-_HISTORY]
        self.figures, self.note = figures, note
        self.update(self.bar, completed=done, time_left=time_left, refresh=True)

    def status(self, text: str) -> None:
        """Draw the last state again with ``text`` behind its note; histories stay as they are."""
        note, self.note = self.note, "  ".join(part for part in (self.note, text) if part)
        self.refresh()
        self.note = note

    def get_renderables(self) -> Iterable[RenderableType]:
        """The tables that rich draws."""
        yield self.make_tasks_table(self.tasks)
        if self.figures:
            yield self._figures_table()
        if self.note:
            yield Text(self.note, overflow="ellipsis", no_wrap=True)

    def _figures_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        room = max(8, self.console.width - 36)
        blocks = BLOCKS if self.console.encoding.lower().startswith("utf") else ASCII
        for name, figure in self.figures.items():
            line = sparkline(self.history.get(name, ()), room, blocks)
            table.add_row(Text(name, style="dim"), Text(figure.text), Text(line, style="cyan"))
        return table


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """The values as text at most ``width`` long.

    More values than that are averaged in equal parts, so that the whole history shows.

    Args:
        values: in order.
        width: characters.
        blocks: from the lowest to the highest.

    Raises:
        ValueError: a width below 1, or less than two blocks.
    """
    if width < 1 or len(blocks) < 2:
        raise ValueError(f"sparkline: width {width} and {len(blocks)} blocks; takes 1 and 2")
    count = min(width, len(values))
    bounds = [len(values) * i // count for i in range(count + 1)] if count else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    top = len(blocks) - 1
    return "".join(blocks[round((v - low) / span * top) if span else top // 2] for v in means)


_MOST_BUDGETS = 4


def evaluation_lines(row: dict[str, Any]) -> list[str]:
    """A record of ``eval.jsonl`` for the terminal: a line a set.

    A long list of budgets is shown in part: both ends and some between them.

    Args:
        row: the record.
    """
    sets = {f"{name}: ": figures for name, figures in row.get("sets", {}).items()} or {"": row}
    budgets = row["budgets"]
    count = min(len(budgets), _MOST_BUDGETS)
    chosen = {round(i * (len(budgets) - 1) / max(count - 1, 1)) for i in range(count)}
    return [
        name
        + ", ".join(f"{one['accuracy'][i]:.1%} within {budgets[i]} tokens" for i in sorted(chosen))
        + f", mean length {one['tokens']:.1f}"
        for name, one in sets.items()
    ]


def figures(row: Mapping[str, Any], evaluations: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """The figures of a training step for the display.

    Args:
        row: the step's record in ``metrics.jsonl``.
        evaluations: records of ``eval.jsonl``; the last one is shown until the next.
    """
    accuracy = row["accuracy"]
    shown = {
        "cap": Figure(row["cap"], str(row["cap"])),
        "length": Figure(row["response_len_mean"], f"{row['response_len_mean']:.0f}"),
        "accuracy": Figure(accuracy, "-" if accuracy is None else f"{accuracy:.0%}"),
        "truncated": Figure(row["truncated_frac"], f"{row['truncated_frac']:.0%}"),
    }
    if evaluations:
        held_out = reported(evaluations[-1])["accuracy"][-1]
        shown["held-out"] = Figure(held_out, f"{held_out:.0%}")
    return shown
