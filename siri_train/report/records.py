"""A run as the report knows it: its records, as they were read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .readers import Row, number

SEEDS = " seeds"
"""Key of a mean's rows: of how many seeds it is. No metric has a name with a blank."""
CONTROL_NAMES = ("constant", "constant-cap", "control", "baseline")


@dataclass(frozen=True)
class Evaluation:
    """One record of eval.jsonl, budgets in ascending order; None where a number is missing."""

    step: int
    name: str | None
    budgets: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    intervals: tuple[tuple[float, float] | None, ...]
    tokens: float | None
    tokens_at: tuple[float | None, ...] = ()
    truncated: tuple[float | None, ...] = ()
    backtrack: float | None = None
    questions: int | None = None
    samples: int | None = None
    set: str | None = None
    seconds: float | None = None
    """Time of sampling and grading; None in records of older versions."""
    sampled: float | None = None
    """Response tokens sampled."""
    others: tuple[Evaluation, ...] = ()
    """The same evaluation on the other sets, where sets have names."""

    @property
    def best(self) -> float | None:
        """Accuracy at the largest budget."""
        return self.accuracy[-1] if self.accuracy else None

    @property
    def best_interval(self) -> tuple[float, float] | None:
        """Interval of the accuracy at the largest budget."""
        return self.intervals[-1] if self.intervals else None


@dataclass
class Run:
    """One training run: its metrics, evaluations and samples."""

    name: str
    folder: Path
    metrics: list[Row] = field(default_factory=list)
    evals: list[Evaluation] = field(default_factory=list)
    alarms: list[Row] = field(default_factory=list)
    manifest: Row = field(default_factory=dict)
    config: str | None = None
    samples: list[tuple[int, list[Row]]] = field(default_factory=list)
    """Responses of the steps that the page shows."""
    recorded: int = 0
    """Steps whose responses the run has kept."""
    parts: int = 0
    """The steps in `samples` with a part of their responses alone."""
    seeds: int = 1
    """Runs whose mean this is."""
    partial: list[Evaluation] = field(default_factory=list)
    """For a mean: evaluations that not all of its seeds have, where others have all."""

    @property
    def counts(self) -> list[tuple[int, int]]:
        """(first step, seeds) of each stretch of steps that the same number of seeds has."""
        found: list[tuple[int, int]] = []
        for row in self.metrics:
            count = int(row.get(SEEDS, self.seeds))
            if not found or found[-1][1] != count:
                found.append((row["step"], count))
        return found

    @property
    def caps(self) -> dict[int, float]:
        """The cap of each step that has one."""
        found = {row["step"]: number(row.get("cap")) for row in self.metrics}
        return {step: cap for step, cap in found.items() if cap is not None}

    @property
    def control(self) -> bool:
        """Whether this is the constant-cap run that SIRI is compared with."""
        constant = all(row.get("phase") == "constant" for row in self.metrics)
        return self.name.lower() in CONTROL_NAMES or (constant and bool(self.metrics))

    @property
    def label(self) -> str:
        """The name shown beside this run's curves."""
        return "SIRI" if self.name.lower() == "siri" else self.name


@dataclass
class RunFolder:
    """Everything the report shows, and notes on everything it cannot show."""

    folder: Path
    runs: list[Run]
    summary: list[Row]
    notes: list[str]
    about: str = ""
    several: bool = False
    """Whether these are runs from several places, which belong to no common summary."""
