"""The live display of a terminal: a bar with the time left, and each figure with its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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


class LiveDisplay:
    """Rewritten in place below what is printed meanwhile. Call :meth:`stop` before the end.

    Args:
        label: what is running.
        total: number of steps.
        console: where to; default: standard output.
    """

    def __init__(self, label: str, total: int, console: Console | None = None) -> None:
        self.label, self.total = label, total
        self.console = console or Console()
        self.history: dict[str, list[float]] = {}
        self.last: tuple[int, str, str, Mapping[str, Figure]] | None = None
        # Refreshed by update alone: a thread of its own would draw into forked workers.
        self.live = Live(console=self.console, auto_refresh=False, transient=False)
        self.live.start()

    def update(self, done: int, time_left: str, note: str, figures: Mapping[str, Figure]) -> None:
        """Draw the state after ``done`` steps.

        Args:
            done: steps finished.
            time_left: such as ``ETA 3 min 20 s``.
            note: one line of text under the bar.
            figures: by name, in the order they are shown; their values join the histories.
        """
        for name, figure in figures.items():
            if figure.value is not None:
                self.history.setdefault(name, []).append(figure.value)
                del self.history[name][:-_HISTORY]
        self.last = (done, time_left, note, figures)
        self.live.update(self._render(done, time_left, note, figures), refresh=True)

    def status(self, text: str) -> None:
        """Draw the last state again with ``text`` behind its note; histories stay as they are."""
        if self.last is not None:
            done, time_left, note, figures = self.last
            shown = "  ".join(part for part in (note, text) if part)
            self.live.update(self._render(done, time_left, shown, figures), refresh=True)

    def stop(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        self.live.stop()

    def _render(self, done: int, time_left: str, note: str, figures: Mapping[str, Figure]) -> Group:
        head = Table.grid(padding=(0, 2))
        bar: Any = ProgressBar(total=self.total, completed=done, width=30)
        head.add_row(Text(self.label, style="bold"), bar, f"{done}/{self.total}", Text(time_left))
        body = Table.grid(padding=(0, 2))
        body.add_column()
        body.add_column(justify="right", no_wrap=True)
        body.add_column(no_wrap=True)
        room = max(8, self.console.width - 36)
        blocks = BLOCKS if self.console.encoding.lower().startswith("utf") else ASCII
        for name, figure in figures.items():
            line = sparkline(self.history.get(name, ()), room, blocks)
            body.add_row(Text(name, style="dim"), Text(figure.text), Text(line, style="cyan"))
        return Group(head, body, Text(note, overflow="ellipsis", no_wrap=True))


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """The last values as text at most ``width`` long, from the lowest block to the highest.

    More values than that are averaged in equal parts, so that the whole history shows.

    Raises:
        ValueError: a width below 1, or less than two blocks.
    """
    if width < 1 or len(blocks) < 2:
        raise ValueError(f"sparkline: width {width} and {len(blocks)} blocks; takes 1 and 2")
    count = min(width, len(values))
    cuts = [len(values) * i // count for i in range(count + 1)] if count else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    top = len(blocks) - 1
    return "".join(blocks[round((v - low) / span * top) if span else top // 2] for v in means)


def figures(row: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """What the display shows of a training step.

    Args:
        row: the step's row of ``metrics.jsonl``.
        evaluations: rows of ``eval.jsonl``; the last one is shown until the next.
    """
    accuracy = row["accuracy"]
    shown = {
        "cap": Figure(row["cap"], str(row["cap"])),
        "length": Figure(row["response_len_mean"], f"{row['response_len_mean']:.0f}"),
        "accuracy": Figure(accuracy, "-" if accuracy is None else f"{accuracy:.0%}"),
        "cut": Figure(row["truncated_frac"], f"{row['truncated_frac']:.0%}"),
    }
    if evaluations:
        held_out = evaluations[-1]["accuracy"][-1]
        shown["held-out"] = Figure(held_out, f"{held_out:.0%}")
    return shown
