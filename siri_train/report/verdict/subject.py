"""A run, or several seeds of one method, as the verdict looks at it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from siri_train.monitor.question_records import QuestionRecord
from siri_train.report.data import Evaluation, Run, number

Records = Mapping[tuple[int | None, "str | None"], QuestionRecord]


@dataclass(frozen=True)
class Subject:
    """A run with what its files say beyond `Run`.

    Args:
        run: as the report reads it.
        label: different from those of all others in the folder.
        settings: its config.yaml; empty where it is missing or damaged.
        records: its evaluations question by question, by step and set.
        notes: on damaged files.
        seeds: where several runs of one method with different seeds are judged as one, each of
            them; ``run`` then has the first one's metrics and the means of all evaluations.
    """

    run: Run
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: Records = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seeds: tuple[Subject, ...] = ()

    @property
    def members(self) -> tuple[Subject, ...]:
        """The runs that it stands for: its seeds, else itself."""
        return self.seeds or (self,)

    @property
    def done(self) -> int:
        """Steps that the logs know to be done; of several seeds the fewest."""
        if self.seeds:
            return min(one.done for one in self.seeds)
        steps = [row["step"] + 1 for row in self.run.metrics[-1:]]
        return max([*steps, *(one.step for one in self.run.evals[-1:]), 0])

    @property
    def described(self) -> str:
        """The label, with the cap where it never moves, and the number of seeds."""
        caps = {number(row.get("cap")) for row in self.run.metrics} - {None}
        more = []
        if self.run.control and len(caps) == 1:
            cap = f"{caps.pop():.0f}"
            if not re.search(rf"(?<!\d){cap}(?!\d)", self.label):
                more.append(f"constant cap {cap}")
        if self.seeds:
            more.append(f"{len(self.seeds)} seeds")
        return f"{self.label} ({', '.join(more)})" if more else self.label

    @property
    def select(self) -> str | None:
        """Name of the set by which checkpoints are chosen, if the recipe gives one."""
        name = self.setting("eval", "select")
        return name if isinstance(name, str) else None

    def setting(self, section: str, key: str) -> Any:
        """A value of config.yaml; None where it is missing.

        Args:
            section: of the recipe.
            key: in it.
        """
        found = self.settings.get(section)
        return found.get(key) if isinstance(found, dict) else None

    def count(self, section: str, key: str) -> int | None:
        """A positive whole number of config.yaml; None for anything else.

        Args:
            section: of the recipe.
            key: in it.
        """
        value = self.setting(section, key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and 0 < value < 10**15 else None

    def ends(self, name: str) -> list[int]:
        """The steps done at compressed or expanded ends that lie behind the run.

        They are where the phase changes in metrics.jsonl, and the evaluations of that name.

        Args:
            name: "siri-low" or "siri-high".
        """
        phase = {"siri-low": "compression", "siri-high": "expansion"}[name]
        rows = self.run.metrics
        found = {one.step for one in self.run.evals if one.name == name}
        for before, after in zip(rows, rows[1:], strict=False):
            whole = after["step"] == before["step"] + 1
            if whole and before.get("phase") == phase and after.get("phase") not in (phase, None):
                found.add(after["step"])
        return sorted(found)


def at_step(run: Run, step: int) -> Evaluation | None:
    """The evaluation after ``step`` steps; of several the last.

    Args:
        run: whose evaluations.
        step: steps done.
    """
    return next((one for one in reversed(run.evals) if one.step == step), None)


def of_set(one: Evaluation, name: str | None) -> Evaluation:
    """The figures of an evaluation on a named set; on the first where there is no such set.

    Args:
        one: an evaluation.
        name: of the set; None: the first.
    """
    return next((other for other in (one, *one.others) if other.set == name), one)
