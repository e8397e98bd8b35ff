"""The figures of one compiled variant of a kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

from siri_kernels.aot.machine_code import Counts
from siri_kernels.aot.parts import Part


class Report(NamedTuple):
    """The figures of one compiled variant.

    Attributes:
        kernel: its name.
        constants: its constants, by name.
        part: the GPU generation.
        aligned: arguments that are multiples of 16.
        registers: of a thread.
        stack: bytes a thread, spills included.
        shared: bytes a program.
        counts: of its machine code.
        per_element: instructions a thread and element on the common path.
        hazards: in words.
    """

    kernel: str
    constants: dict[str, Any]
    part: Part
    aligned: frozenset[str]
    registers: int
    stack: int
    shared: int
    counts: Counts
    per_element: float | None
    hazards: tuple[str, ...]

    def line(self) -> str:
        """One line of the table."""

        def bytes_of(widths: tuple[int, ...]) -> str:
            return f"{widths[0]:>2}..{widths[-1]:<2}" if widths else "  -   "

        each = "" if self.per_element is None else f"{self.per_element:.1f} an element"
        loops = ",".join(map(str, self.counts.loops)) or "-"
        shown = " ".join(f"{k}={v}" for k, v in self.constants.items())
        odd = "" if self.aligned else " (odd sizes)"
        return (
            f"{self.kernel:<18} {self.part.name:<6} registers {self.registers:>3}  "
            f"stack {self.stack:>3}  shared {self.shared:>6}  load {bytes_of(self.counts.loads)} "
            f"store {bytes_of(self.counts.stores)} path {self.counts.path:>5} {each:<16} "
            f"loops {loops}  {shown}{odd}"
        )
