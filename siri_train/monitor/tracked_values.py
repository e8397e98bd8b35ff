"""The numbers of a run's records under the flat names that trackers take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_train.monitor.run_logs import is_number

PHASES = {"compression": -1.0, "constant": 0.0, "expansion": 1.0}
"""The number that a tracker gets for ``phase``."""

_ENDS = ("low", "high")


def numbers(group: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a record under a flat name.

    A list as long as ``row["budgets"]`` gives one value a budget: ``{"accuracy": [0.1, 0.2],
    "budgets": [8, 16]}`` becomes ``eval/accuracy@8: 0.1, ...``, and ``pass_at`` of k samples
    ``eval/pass_at_2@8``. Intervals are ``eval/tokens_interval/low`` and
    ``eval/accuracy_interval/high@8``; figures of named sets are ``eval/NAME/...``; other nested
    objects ``train/token_groups/GROUP/right``. ``phase`` is a number of `PHASES`. The step, which
    is the axis, and the budgets, which are in the names, are left out, as are None, text, and
    ``response_len_hist``, see `histogram`.

    Args:
        group: begins the names: ``train``, ``eval``, or ``alarms/NAME``.
        row: a record of ``metrics.jsonl``, ``eval.jsonl`` or ``alarms.jsonl``.
    """
    flat: dict[str, float] = {}
    budgets = row.get("budgets")
    budgets = budgets if isinstance(budgets, list) else []
    for key, value in row.items():
        name = f"{group}/{key}"
        if key in ("step", "budgets", "response_len_hist"):
            continue
        if key == "phase" and value in PHASES:
            flat[name] = PHASES[value]
        elif key == "pass_at" and isinstance(value, dict):
            by_k = {f"pass_at_{k}": values for k, values in value.items()}
            flat |= numbers(group, {"budgets": budgets, **by_k})
        elif key == "sets" and isinstance(value, dict):
            for of_set, figures in value.items():
                if isinstance(figures, dict):
                    flat |= numbers(f"{group}/{of_set}", {"budgets": budgets, **figures})
        else:
            flat |= _flat(name, value, budgets, key.endswith("_interval"))
    return flat


def of_phase(row: Mapping[str, Any]) -> dict[str, float]:
    """The token groups of a step once more, under the name of its phase.

    So a tracker has a curve for compression and one for expansion, as the page has:
    ``train/compression/token_groups/wait/right``.

    Args:
        row: of ``metrics.jsonl``; nothing is given where the cap does not move.
    """
    phase, groups = row.get("phase"), row.get("token_groups")
    if PHASES.get(str(phase), 0.0) == 0.0 or not isinstance(groups, dict):
        return {}
    return numbers(f"train/{phase}", {"token_groups": groups})


def _flat(name: str, value: Any, budgets: Sequence[Any], interval: bool) -> dict[str, float]:
    if isinstance(value, bool) or is_number(value):
        return {name: float(value)}
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        return numbers(name, {"budgets": budgets, **value})
    if isinstance(value, list):
        pair = len(value) == 2 and not any(isinstance(item, list) for item in value)
        if interval and pair:
            parts = [(f"{name}/{end}", item) for end, item in zip(_ENDS, value, strict=True)]
        elif interval and len(value) == len(budgets):
            parts = [
                (f"{name}/{end}@{budget}", item)
                for budget, ends in zip(budgets, value, strict=True)
                if isinstance(ends, list)
                for end, item in zip(_ENDS, ends, strict=False)
            ]
        elif value and len(value) == len(budgets):
            parts = [
                (f"{name}@{budget}", item) for budget, item in zip(budgets, value, strict=True)
            ]
        else:
            parts = [(f"{name}/{place}", item) for place, item in enumerate(value)]
    found: dict[str, float] = {}
    for part, item in parts:
        found |= _flat(part, item, (), False)
    return found


@dataclass(frozen=True)
class Histogram:
    """Counts of equal bins that begin at 0.

    Args:
        width: of a bin.
        counts: of each.
    """

    width: float
    counts: tuple[int, ...]

    @property
    def edges(self) -> list[float]:
        """One more than there are counts."""
        return [self.width * place for place in range(len(self.counts) + 1)]


def histogram(row: Mapping[str, Any]) -> Histogram | None:
    """The response lengths of a step; None where its record does not have them.

    Args:
        row: of ``metrics.jsonl``.
    """
    found = row.get("response_len_hist")
    if not isinstance(found, dict) or not is_number(found.get("width"), finite=True):
        return None
    counts = found.get("counts")
    if not isinstance(counts, list) or not all(is_number(n, finite=True) for n in counts):
        return None
    return Histogram(float(found["width"]), tuple(map(int, counts))) if any(counts) else None


class Totals:
    """Response tokens, seconds and money since the run began.

    Args:
        price: of an hour of one GPU; None: money is not counted.
    """

    def __init__(self, price: float | None = None) -> None:
        self.price = price
        self.tokens = self.seconds = self.paid = 0.0
        self.known = True

    @classmethod
    def of(cls, path: Path, steps: int, price: float | None = None) -> Totals:
        """Those of an interrupted run; unknown where its log has a gap.

        Args:
            path: of ``metrics.jsonl``.
            steps: done.
            price: see :class:`Totals`.
        """
        totals, there = cls(price), set()
        if steps and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    row = json.loads(line)
                    if isinstance(row, dict) and row.get("step") not in there:
                        there.add(row.get("step"))
                        totals.add(row)
        totals.known = totals.known and there >= set(range(steps))
        return totals

    def add(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Count a step, and give the sums under their names; nothing where they are not known.

        Args:
            row: of ``metrics.jsonl``.
        """
        keys = ("tokens", "time_rollout", "time_train", "tokens_discarded", "ranks")
        found = {key: row[key] for key in keys if is_number(row.get(key), finite=True)}
        if not found.keys() >= set(keys[:3]):
            self.known = False
            return {}
        self.tokens += found["tokens"] + found.get("tokens_discarded", 0)
        seconds = found["time_rollout"] + found["time_train"]
        self.seconds += seconds
        self.paid += (self.price or 0.0) * found.get("ranks", 1) * seconds / 3600
        return self.values("train")

    def values(self, group: str) -> dict[str, float]:
        """The sums under their names.

        Args:
            group: begins the names.
        """
        if not self.known:
            return {}
        found = {"total_tokens": self.tokens, "total_seconds": self.seconds}
        found |= {} if self.price is None else {"total_cost": self.paid}
        return {f"{group}/{key}": float(value) for key, value in found.items()}
