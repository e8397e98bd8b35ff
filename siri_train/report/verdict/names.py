"""How checkpoints are called: as in the page's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siri_train.report.checkpoint_names import measured
from siri_train.report.data import RunFolder, number

from .subject import Subject

_MEASURED = {
    "siri-low": "siri-low-scheduled",
    "siri-high": "siri-high-scheduled",
    "siri-low-measured": "siri-low",
    "siri-high-measured": "siri-high",
}
"""The manifest's names where the table calls the measured turns siri-low and siri-high."""


class Names:
    """The names of checkpoints in a folder.

    A run's manifest calls the ends of the schedule siri-low and siri-high. The table of a demo
    gives these names to the checkpoints where the measured length turned; then the verdict does so,
    too.

    Args:
        folder: as it was read.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._as_shown = _MEASURED if measured(folder) else {}
        self._rows = [] if folder.several else folder.summary

    def of(self, subject: Subject, step: int) -> list[str]:
        """All names of a run's checkpoint, the last end's alone where it is one; may be empty.

        Args:
            subject: the run.
            step: steps done.
        """
        table = [
            str(row["name"])
            for row in self._rows
            if row.get("name") and str(row.get("run")) == subject.run.name
            and number(row.get("step")) == step
        ]  # fmt: skip
        manifest = subject.run.manifest
        named = [self.shown(name) for name, entry in manifest.items() if _at(entry, step)]
        cycles = manifest.get("cycles")
        if not table and not named:
            named = [
                f"{self.shown(entry.get('which'))} of cycle {entry.get('cycle')}"
                for entry in (cycles if isinstance(cycles, list) else [])
                if _at(entry, step)
            ]
        return list(dict.fromkeys([*table, *named]))

    def shown(self, name: object) -> str:
        """A name of the manifest as the page's table has it.

        Args:
            name: as the manifest has it.
        """
        return self._as_shown.get(str(name), str(name))


def _at(entry: Any, step: int) -> bool:
    return isinstance(entry, Mapping) and number(entry.get("step")) == step
