"""What a terminal shows of the text it was sent; only the sequences that the display uses."""

from __future__ import annotations

import re

from rich.cells import cell_len

_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """A terminal without scrolling: it has as many rows as it needs.

    Args:
        columns: a longer line goes on in the next row, as in a terminal.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.cursor_shown = True

    def feed(self, text: str) -> Screen:
        """Take what a program writes; an unknown sequence is an error."""
        place = 0
        while place < len(text):
            if text[place] == "\x1b":
                found = _SEQUENCE.match(text, place)
                assert found, f"unknown sequence {text[place : place + 8]!r}"
                self._sequence(found[1], found[2])
                place = found.end()
            else:
                self._put(text[place])
                place += 1
        return self

    @property
    def lines(self) -> list[str]:
        """The rows as text."""
        return ["".join(row).rstrip() for row in self.rows]

    def _put(self, one: str) -> None:
        if one == "\r":
            self.column = 0
        elif one == "\n":
            self.row, self.column = self.row + 1, 0
        else:
            wide = cell_len(one)
            if self.column + wide > self.columns:
                self.row, self.column = self.row + 1, 0
            self._reach()
            row = self.rows[self.row]
            row += [" "] * (self.column + wide - len(row))
            row[self.column : self.column + wide] = [one, *[""] * (wide - 1)]
            self.column += wide
        self._reach()

    def _reach(self) -> None:
        while self.row >= len(self.rows):
            self.rows.append([])

    def _sequence(self, given: str, kind: str) -> None:
        if kind == "m":
            return
        if kind == "A":
            self.row = max(self.row - int(given or 1), 0)
        elif (given, kind) == ("2", "K"):
            self.rows[self.row] = []
        elif (given, kind) == ("2", "J"):
            self.rows = [[] for _ in self.rows]
        elif (given, kind) == ("", "H"):
            self.row = self.column = 0
        elif given == "?25":
            self.cursor_shown = kind == "h"
        else:
            raise AssertionError(f"unknown sequence {given}{kind}")
