"""The live display of a terminal: a bar with the time left, and each figure with its history."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from siri_train.monitor.figures import Figure
from siri_train.monitor.sparkline import ASCII, BLOCKS, History, sparkline
from siri_train.terminal.lines import cut, shortened, words

_SHARE = 0.008
"""Drawing takes at most this share of the time; a state that would take more is not drawn."""
_BAR, _LEAST_LINE = 30, 6
_SHORT = 20
"""Columns below which there is a short form: what fits whole, the others are left out."""


class LiveDisplay:
    """A bar, a line for each figure, notes; drawn below whatever else is printed.

    Call ``stop`` before the end: it leaves the last state on the screen.

    Args:
        label: what is running.
        total: number of steps.
        console: where to; default: standard output.
        done: steps done when it starts.
        unit: written before the number of those that are done.
    """

    def __init__(
        self,
        label: str,
        total: int,
        console: Console | None = None,
        done: int = 0,
        unit: str = "",
    ) -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self.history: dict[str, History] = {}
        self.figures: Mapping[str, Figure] = {}
        self.notes: Sequence[str] = ()
        self.time_left = self.doing = ""
        self.console = console or Console()
        self.fancy = self.console.encoding.lower().startswith("utf")
        self._width = self.console.width
        self._started, self._spent = time.monotonic(), 0.0
        # auto_refresh would be a thread that draws into forked workers
        self.live = Live(self, console=self.console, auto_refresh=False)
        self.live.start()

    def show(
        self, done: int, time_left: str, notes: Sequence[str], figures: Mapping[str, Figure]
    ) -> None:
        """Take the state after ``done`` steps, and draw it if drawing has not taken too long.

        Args:
            done: steps finished.
            time_left: such as ``ETA 3 min 20 s``.
            notes: lines of text; the first stands under the bar, the others under the figures.
            figures: by name, in the order they are shown; their values join the histories.
        """
        self.remember(figures)
        self.done, self.time_left, self.notes, self.doing = done, time_left, notes, ""
        self.figures = figures
        self._draw(done >= self.total)

    def remember(self, figures: Mapping[str, Figure]) -> None:
        """Add the values to the histories without drawing."""
        for name, figure in figures.items():
            if figure.value is not None:
                self.history.setdefault(name, History()).add(figure.value)

    def status(self, text: str) -> None:
        """Draw the last state with ``text`` beside the time left; histories stay as they are."""
        self.doing = text
        self._draw(False)

    def stop(self) -> None:
        """Draw the last state and give the terminal back."""
        self.doing = ""
        self._after_resize()
        self.live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines that rich draws."""
        yield Text("\n", no_wrap=True, overflow="crop").join(self.lines(options.max_width))

    def lines(self, width: int) -> list[Text]:
        """The state as lines, none wider than ``width`` columns.

        Args:
            width: of the terminal.
        """
        mark = "…" if self.fancy else "..."
        if width < _SHORT:
            return self._short(width, mark)
        tail = self._tail(width)
        lines = [self._bar(tail, width, mark)]
        first, *rest = self.notes or [""]
        below = [self.time_left] if self.time_left not in tail else []
        lines += [Text(one, style="dim") for one in _rows([*below, first], width, mark)]
        lines += self._table(width, mark)
        return lines + [Text(one, style="red") for one in _rows(rest, width, mark)]

    def _short(self, width: int, mark: str) -> list[Text]:
        """How far it is, the first note and the figures that fit whole, and the alarms."""
        said = [_fitting([*self._counts(), ""], width)]
        said += [_fitting([note, ""], width) for note in self.notes[:1]]
        for name, figure in self.figures.items():
            said.append(_fitting([f"{name} {figure.text}", _numbered(name, figure), ""], width))
        lines = [Text(one) for one in said if one]
        return lines + [Text(one, style="red") for one in _rows(self.notes[1:], width, mark)]

    def _counts(self) -> list[str]:
        """How far it is, the longest form first."""
        share = 100 * min(self.done, self.total) // max(self.total, 1)
        whole = f"{self.unit} {self.done}/{self.total}".lstrip()
        return [whole, f"{self.done}/{self.total}", f"{share} %"]

    def _tail(self, width: int) -> str:
        tail = _fitting(self._counts(), width)
        for more in (self.time_left, self.doing):
            if more and cell_len(tail) + 2 + cell_len(more) <= width:
                tail += f"  {more}"
        return tail

    def _bar(self, tail: str, width: int, mark: str) -> Text:
        room = width - cell_len(tail) - 2
        label = shortened(self.label, max(room, 0), mark) if room >= 4 else ""
        room -= cell_len(label) + 2
        line = Text(label, style="bold")
        if room >= _LEAST_LINE:
            size = min(room, _BAR)
            full = size * min(self.done, self.total) // max(self.total, 1)
            one, none = ("━", "─") if self.fancy else ("#", "-")
            line.append("  ").append(one * full, "green").append(none * (size - full), "dim")
        return line.append("  " if label else "").append(tail, "not bold")

    def _table(self, width: int, mark: str) -> list[Text]:
        names = max(map(cell_len, self.figures), default=0)
        texts = max((cell_len(figure.text) for figure in self.figures.values()), default=0)
        ends = {
            name: (self.figures[name].scale(past.low), self.figures[name].scale(past.high))
            for name, past in self.history.items()
            if name in self.figures
        }
        scale = max((cell_len(end) for both in ends.values() for end in both), default=0)
        if names + 2 + texts > width:  # the columns are given up, and units where they must
            return [
                Text(
                    cut(_fitting([f"{name} {one.text}", _numbered(name, one)], width), width, mark)
                )
                for name, one in self.figures.items()
            ]
        room = width - names - texts - 4
        scaled = room - 2 * scale - 2 >= _LEAST_LINE
        lines = []
        for name, figure in self.figures.items():
            start = f"{name:<{names}}  {figure.text:>{texts}}"
            line = Text(start)
            line.stylize("dim", 0, min(len(name), len(line)))
            past = self.history.get(name)
            drawn = room - (2 * scale + 2 if scaled else 0)
            if past is not None and drawn >= _LEAST_LINE:
                blocks = BLOCKS if self.fancy else ASCII
                curve = sparkline(past.means, drawn, blocks, (past.low, past.high))
                low, high = ends[name]
                line.append("  ").append(f"{low:>{scale}} " if scaled else "", "dim")
                line.append(curve, "cyan").append(f" {high}" if scaled else "", "dim")
            lines.append(line)
        return lines

    def _draw(self, always: bool) -> None:
        started = time.monotonic()
        if not always and self._spent > _SHARE * (started - self._started) and self._spent:
            return
        self._after_resize()
        self.live.refresh()
        self._spent += time.monotonic() - started

    def _after_resize(self) -> None:
        """Clear a window that became narrower: it has broken the lines that were drawn in it."""
        width = self.console.width
        if width < self._width:
            self.console.clear()
        self._width = width


def _fitting(forms: Sequence[str], width: int) -> str:
    """The first that fits, else the last."""
    return next((form for form in forms if cell_len(form) <= width), forms[-1])


def _numbered(name: str, figure: Figure) -> str:
    """A figure without its unit, but for a per cent sign."""
    number, *unit = figure.text.split(" ")
    return f"{name} {number}{' %' if unit[:1] == ['%'] else ''}"


def _rows(notes: Sequence[str], width: int, mark: str) -> list[str]:
    """Notes as rows, broken between words."""
    rows = [row for note in notes if note for row in words("", note, width)]
    return [cut(row, width, mark) for row in rows]
