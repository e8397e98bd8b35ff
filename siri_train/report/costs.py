"""The costs of runs: tokens, seconds and money, by phase, and for a point of accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.config.yaml_core import read_yaml

from .data import Evaluation, Row, Run, RunFolder, number
from .held_out import best_control

Values = dict[str, Any]

PHASES = ("compression", "expansion", "constant")
TIMES = ("time_rollout", "time_train")
FIGURES = ("tokens", *TIMES)


@dataclass
class Cost:
    """A sum over steps.

    Attributes:
        steps: that were summed.
        tokens: response tokens sampled, those thrown away too.
        rollout: seconds of sampling.
        train: seconds of updates.
        hours: of all GPUs, or processes, together.
        money: ``hours`` times the price; None without a price.
        gaps: steps whose record lacks tokens or seconds, which are counted as 0.
        known: steps that have ``tokens``, ``time_rollout`` and ``time_train``.
    """

    steps: int = 0
    tokens: float = 0.0
    rollout: float = 0.0
    train: float = 0.0
    hours: float = 0.0
    money: float | None = None
    gaps: int = 0
    known: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of sampling and updates."""
        return self.rollout + self.train

    def unknown(self, *keys: str) -> bool:
        """Whether no step has any of these figures: then their sum is not 0 but not known.

        Args:
            keys: of ``metrics.jsonl``.
        """
        return self.steps > 0 and not any(self.known.get(key) for key in keys)

    def add(self, row: Row, price: float | None) -> None:
        """Count one step.

        Args:
            row: of ``metrics.jsonl``.
            price: of an hour.
        """
        found = [number(row.get(key)) for key in FIGURES]
        for key, value in zip(FIGURES, found, strict=True):
            self.known[key] = self.known.get(key, 0) + (value is not None)
        tokens, rollout, train = (max(value or 0.0, 0.0) for value in found)
        discarded = number(row.get("tokens_discarded")) or 0.0
        ranks = number(row.get("ranks"))
        self.steps += 1
        self.gaps += None in found
        self.tokens += tokens + max(discarded, 0.0)
        self.rollout += rollout
        self.train += train
        self.hours += (rollout + train) * (ranks if ranks is not None and ranks >= 1 else 1) / 3600
        self.money = None if price is None else self.hours * price


@dataclass
class EvalCost:
    """The cost of a run's evaluations.

    Attributes:
        count: of them.
        tokens: response tokens that they sampled; None if an evaluation did not record its own.
        seconds: that they took; None as above.
        hours: of all GPUs, or processes, together.
        money: ``hours`` times the price; None without a price or seconds.
    """

    count: int = 0
    tokens: float | None = None
    seconds: float | None = None
    hours: float | None = None
    money: float | None = None


@dataclass
class RunCost:
    """The cost of a run.

    Attributes:
        run: as it was read.
        price: of an hour of a GPU or process; None if the recipe names none.
        whole: over all steps.
        evals: of its evaluations, which are not in ``whole``.
        phases: by phase of the schedule; steps without one are in ``whole`` alone.
        gained: accuracy of the last evaluation less that of the start, at the largest budget.
        changes: by phase, the sum of the changes of accuracy over its stretches of steps; a
            stretch without an evaluation at both its ends is left out.
        reached: the cost until the first evaluation that was at least as accurate as the control
            in the end, and that evaluation; None if there was none.
        ranks: whether all steps say how many processes there were.
    """

    run: Run
    price: float | None
    whole: Cost = field(default_factory=Cost)
    evals: EvalCost = field(default_factory=EvalCost)
    phases: dict[str, Cost] = field(default_factory=dict)
    gained: float | None = None
    changes: dict[str, float] = field(default_factory=dict)
    reached: tuple[Cost, Evaluation] | None = None
    ranks: bool = True


def price(run: Run) -> float | None:
    """``monitor.price_per_gpu_hour`` of the run's ``config.yaml``.

    Args:
        run: as it was read; a damaged file names no price.
    """
    monitor = _config(run).get("monitor")
    value = number(monitor.get("price_per_gpu_hour")) if isinstance(monitor, dict) else None
    return value if value is not None and value >= 0 else None


def costs(folder: RunFolder) -> list[RunCost]:
    """The costs of every run that has records of its steps.

    Args:
        folder: as it was read.
    """
    control = best_control(folder)
    wanted = control[1].evals[-1].best if control is not None else None
    # a control without an evaluation before training began with the weights of the others; runs
    # from several places may have begun anywhere
    first = (one for run in folder.runs for one in run.evals if one.step == 0)
    start = None if folder.several else next(first, None)
    return [_cost(run, wanted, start) for run in folder.runs if run.metrics]


def until(run: Run, step: int, of_price: float | None) -> Cost:
    """The cost of the steps before one.

    Args:
        run: as it was read.
        step: the number of steps done.
        of_price: of an hour.
    """
    cost = Cost(money=None if of_price is None else 0.0)
    for row in run.metrics:
        if row["step"] < step:
            cost.add(row, of_price)
    return cost


def device(run: Run) -> str:
    """``gpu`` or ``cpu`` if the run's recipe says so; empty for ``device: auto``.

    Args:
        run: as it was read.
    """
    name = _config(run).get("device")
    if not isinstance(name, str) or name == "auto":
        return ""
    return "cpu" if name == "cpu" else "gpu"


def _cost(run: Run, wanted: float | None, start: Evaluation | None) -> RunCost:
    cost = RunCost(run, price(run))
    cost.whole = until(run, run.metrics[-1]["step"] + 1, cost.price)
    cost.evals = _of_evaluations(run, cost.price)
    cost.ranks = all(number(row.get("ranks")) is not None for row in run.metrics)
    for row in run.metrics:
        phase = row.get("phase")
        if phase in PHASES:
            cost.phases.setdefault(phase, Cost()).add(row, cost.price)
    first = next((one for one in run.evals if one.step == 0), start)
    last = run.evals[-1] if run.evals else None
    if first is not None and last is not None and None not in (first.best, last.best):
        cost.gained = (last.best or 0.0) - (first.best or 0.0)
    at = {one.step: one.best for one in run.evals if one.best is not None}
    if first is not None and first.best is not None:
        at.setdefault(0, first.best)
    for phase, begin, end in _stretches(run.metrics):
        if begin in at and end in at:
            cost.changes[phase] = cost.changes.get(phase, 0.0) + at[end] - at[begin]
    if wanted is not None:
        reached = next((o for o in run.evals if o.best is not None and o.best >= wanted), None)
        if reached is not None:
            cost.reached = (until(run, reached.step, cost.price), reached)
    return cost


def _of_evaluations(run: Run, of_price: float | None) -> EvalCost:
    ranks = max((number(row.get("ranks")) or 1 for row in run.metrics), default=1)
    cost = EvalCost(count=len(run.evals))
    tokens = [one.sampled for one in run.evals]
    seconds = [one.seconds for one in run.evals]
    known = [value for value in tokens if value is not None]
    if len(known) == len(tokens):
        cost.tokens = sum(known)
    known = [value for value in seconds if value is not None]
    if len(known) == len(seconds):
        cost.seconds = sum(known)
        cost.hours = cost.seconds * max(ranks, 1) / 3600
        cost.money = None if of_price is None else cost.hours * of_price
    return cost


def _stretches(rows: list[Row]) -> list[tuple[str, int, int]]:
    """(phase, first step, step behind it) of neighbouring steps of one phase."""
    found: list[tuple[str, int, int]] = []
    for row in rows:
        phase, step = row.get("phase"), row["step"]
        if phase not in PHASES:
            continue
        if found and found[-1][0] == phase and found[-1][2] == step:
            found[-1] = (phase, found[-1][1], step + 1)
        else:
            found.append((phase, step, step + 1))
    return found


def _config(run: Run) -> Values:
    try:
        found = read_yaml(run.config or "")
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}
