"""The verdict on a run as data: findings in words with figures, and checkpoints to ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .words import per_cent, tokens

Status = Literal["good", "bad", "unclear", "missing"]
State = Literal["finished", "unfinished"]

SCHEMA = 2
"""Version of the JSON; a key may be added without another number. Since 2 a difference may be "the
same", and the figures of "turns" have "kept"."""


@dataclass(frozen=True)
class Finding:
    """One thing that a run's files say.

    Args:
        key: which; stable, for programs.
        status: "good", "bad", "unclear" (mixed, or not decided by the figures) or "missing" (no
            figures, or it does not apply to this run).
        title: the result in a few words.
        text: the result in sentences, with its figures.
        figures: the numbers in the text, by name; every value is one that JSON holds.
        details: further sentences, one each.
        table: the details as a table, its head first, for the page; else empty.
    """

    key: str
    status: Status
    title: str
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    details: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "key": self.key,
            "status": self.status,
            "title": self.title,
            "text": self.text,
            "figures": dict(self.figures),
            "details": list(self.details),
        }


@dataclass(frozen=True)
class Ship:
    """A checkpoint to use.

    Args:
        purpose: "strong" (the budget is large) or "cheap" (only short answers are affordable).
        checkpoint: its names in the run, or "step N".
        step: steps done.
        path: of its folder; None where it is not on disk any more.
        command: exports it; empty where that is impossible.
        accuracy: share of right answers on the reported set at ``budget``.
        accuracy_interval: of that, (low, high).
        budget: tokens: the largest one for "strong", the smallest for "cheap".
        tokens: mean response tokens at the largest budget.
        why: the reason, with figures.
        budgets: accuracy by budget, as text keys that JSON has.
    """

    purpose: Literal["strong", "cheap"]
    checkpoint: str
    step: int
    path: str | None
    command: str
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    budget: int | None
    tokens: float | None
    why: str
    budgets: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """Its names with its step."""
        step = f"step {self.step:,}"
        return self.checkpoint if self.checkpoint.endswith(step) else f"{self.checkpoint} ({step})"

    @property
    def facts(self) -> str:
        """Accuracy with its interval, budget and length in words."""
        told = f"{per_cent(self.accuracy)} right" if self.accuracy is not None else "unknown"
        if self.accuracy_interval is not None:
            low, high = self.accuracy_interval
            told += f" ({100 * low:.1f} to {100 * high:.1f})"
        within = f" within {self.budget:,} tokens" if self.budget is not None else ""
        return f"{told}{within}, {tokens(self.tokens)} tokens a response"

    def to_json(self) -> dict[str, Any]:
        """The checkpoint as a JSON object."""
        return {
            "for": self.purpose,
            "checkpoint": self.checkpoint,
            "step": self.step,
            "path": self.path,
            "command": self.command,
            "accuracy": self.accuracy,
            "accuracy_interval": self.accuracy_interval and list(self.accuracy_interval),
            "budget": self.budget,
            "tokens": self.tokens,
            "why": self.why,
            "budgets": dict(self.budgets),
        }


@dataclass(frozen=True)
class Verdict:
    """The findings on a run and the checkpoints to ship.

    Args:
        run: label of the run that is judged.
        state: whether it has done all its steps.
        step: steps done.
        steps: steps of the whole run; None where no file says.
        findings: in the order in which they are shown.
        ship: checkpoints to use, at most one a purpose; empty without any that was evaluated.
        advice: why ``ship`` is empty; else empty.
        others: the other runs of the folder, with which it is compared.
    """

    run: str
    state: State
    step: int
    steps: int | None
    findings: tuple[Finding, ...]
    ship: tuple[Ship, ...] = ()
    advice: str = ""
    others: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether one checkpoint serves both purposes."""
        return len(self.ship) > len({one.step for one in self.ship})

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object; no value in it is NaN or infinite."""
        return {
            "schema": SCHEMA,
            "run": self.run,
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "findings": [one.to_json() for one in self.findings],
            "ship": [one.to_json() for one in self.ship],
            "advice": self.advice,
            "others": list(self.others),
        }
