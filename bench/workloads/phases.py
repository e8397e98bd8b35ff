"""Accuracy and length over each phase of a schedule, from the runs of an ablation.

The table of ``siri-train ablate`` compares checkpoints. The paper's claims about schedules are
about what happens between them: how much accuracy a compression costs, and how much an expansion
brings.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siri_train.ablate.compare import between_seeds, figure_interval, holm
from siri_train.config.recipe import load_config
from siri_train.monitor.question_records import QuestionRecord, read_question_records
from siri_train.statistics.intervals import Interval
from siri_train.statistics.paired import Paired, paired_test, verdict


@dataclass
class Phase:
    """One phase of one arm, over its seeds.

    Attributes:
        arm: its name.
        varied: values of the varied keys, by key.
        kind: ``"compression"`` or ``"expansion"``.
        number: 1 for the first phase of its kind.
        begin: steps done before it.
        end: steps done after it.
        before: ``[seeds][questions]``, shares of right answers at the largest budget.
        after: the same at its end.
        tokens: mean response tokens before it and after it.
        steepest: the largest fall of the mean accuracy between two evaluations in it, and the steps
            after which it was seen; 0 where accuracy never fell.
    """

    arm: str
    varied: dict[str, str]
    kind: str
    number: int
    begin: int
    end: int
    before: np.ndarray
    after: np.ndarray
    tokens: tuple[float, float]
    steepest: tuple[float, int]

    @property
    def changes(self) -> np.ndarray:
        """``[seeds][questions]``: what the phase adds to each question's share."""
        return self.after - self.before


@dataclass
class Contrast:
    """Two arms that differ in one varied key, compared in one figure.

    Attributes:
        figure: one of `FIGURES`.
        first: values of the first arm.
        second: values of the second arm.
        paired: first less second.
        adjusted: the p-value by Holm's correction over all contrasts of this figure.
    """

    figure: str
    first: dict[str, str]
    second: dict[str, str]
    paired: Paired
    adjusted: float = 1.0

    @property
    def verdict(self) -> str:
        """The first arm against the second."""
        return verdict(self.paired._replace(p_value=self.adjusted))


def _last(phases: Sequence[Phase], kind: str, least: int = 1) -> Phase | None:
    found = [phase for phase in phases if phase.kind == kind and phase.number >= least]
    return found[-1] if found else None


def _after(kind: str) -> Callable[[Sequence[Phase]], np.ndarray | None]:
    return lambda phases: None if (phase := _last(phases, kind)) is None else phase.after


def _changes(kind: str, least: int) -> Callable[[Sequence[Phase]], np.ndarray | None]:
    return lambda phases: None if (phase := _last(phases, kind, least)) is None else phase.changes


FIGURES: dict[str, Callable[[Sequence[Phase]], np.ndarray | None]] = {
    "accuracy at the last compressed end": _after("compression"),
    "accuracy at the last expanded end": _after("expansion"),
    # In the first compression the model also learns the task, which hides what the cap costs.
    "change in the last compression, from the second on": _changes("compression", 2),
    "gain in the last expansion": _changes("expansion", 1),
}
"""Figures that arms are compared in, ``[seeds][questions]``; None where an arm lacks the phase."""


def read_phases(folder: Path) -> list[Phase]:
    """The whole phases of every arm.

    Args:
        folder: of a finished ablation whose recipe evaluates at the ends of all phases.

    Raises:
        ValueError: an evaluation at the end of a phase is missing.
    """
    plan = json.loads((folder / "ablate.json").read_text(encoding="utf-8"))
    found: list[Phase] = []
    for arm in plan["arms"]:
        member = arm["members"][0]
        varied = dict(one.split("=", 1) for one in member["overrides"] if "=" in one)
        if arm["method"]:  # one value, however many keys it sets; a grid's are in the arm's name
            grid = (one.split("=", 1) for one in arm["name"].split("+") if "=" in one)
            varied = {"method": arm["method"], **dict(grid)}
        runs = [
            folder / run["folder"]
            for run in plan["runs"]
            if run["run"].startswith(f"{arm['name']} seed ")
        ]
        found += _of_arm(arm["name"], varied, runs, plan["set"])
    return found


def _of_arm(
    arm: str, varied: dict[str, str], runs: Sequence[Path], named: str | None
) -> list[Phase]:
    config = load_config(runs[0] / "config.yaml")
    records = [
        {one.step: one for one in read_question_records(run) if one.set == named} for run in runs
    ]
    schedule, done = config.schedule.build(), config.train.steps
    ends = {*schedule.compressed_ends(done, done), *schedule.expanded_ends(done, done)}
    counts = {"compression": 0, "expansion": 0}
    found = []
    for begin, end, kind in schedule.phases(done):
        if kind not in counts or end not in ends:  # a constant cap; a phase that the run's end cut
            continue
        counts[kind] += 1
        for step in (begin, end):
            if any(step not in one for one in records):
                raise ValueError(f"{arm}: has no evaluation after {step} steps; set eval.every")
        steps = sorted(s for s in records[0] if s is not None and begin <= s <= end)
        means = [np.mean([one[step].shares() for one in records]) for step in steps]
        falls = [(float(a - b), at) for a, b, at in zip(means, means[1:], steps[1:], strict=False)]
        found.append(
            Phase(
                arm, varied, kind, counts[kind], begin, end,
                _shares(records, begin), _shares(records, end),
                (_tokens(records, begin), _tokens(records, end)),
                max([*falls, (0.0, begin)]),
            )
        )  # fmt: skip
    return found


def _shares(records: Sequence[dict[int | None, QuestionRecord]], step: int) -> np.ndarray:
    return np.asarray([one[step].shares() for one in records], dtype=np.float64)


def _tokens(records: Sequence[dict[int | None, QuestionRecord]], step: int) -> float:
    return float(np.mean([one[step].tokens for one in records]))


def intervals(phases: Sequence[Phase]) -> list[Interval]:
    """The 95 % interval of each phase's change; the spread between seeds is pooled over phases.

    Args:
        phases: of all arms.
    """
    spread = between_seeds([phase.changes.tolist() for phase in phases], [p.arm for p in phases])
    return [figure_interval(phase.changes.tolist(), spread) for phase in phases]


def contrasts(phases: Sequence[Phase]) -> list[Contrast]:
    """Every pair of arms that differ in one varied key, in every figure that both have.

    Args:
        phases: of all arms.
    """
    arms: dict[str, list[Phase]] = {}
    for phase in phases:
        arms.setdefault(phase.arm, []).append(phase)
    found: list[Contrast] = []
    for figure, of in FIGURES.items():
        family = []
        for one, two in itertools.combinations(arms.values(), 2):
            first, second = one[0].varied, two[0].varied
            if sum(first.get(key) != second.get(key) for key in {**first, **second}) != 1:
                continue
            a, b = of(one), of(two)
            if a is not None and b is not None:
                family.append(Contrast(figure, first, second, paired_test(a, b)))
        for contrast, p in zip(family, holm([c.paired.p_value for c in family]), strict=True):
            contrast.adjusted = p
        found += family
    return found


def page(phases: Sequence[Phase], compared: Sequence[Contrast]) -> str:
    """Both tables in Markdown, in percent and points.

    Args:
        phases: of all arms.
        compared: pairs of arms.
    """
    lines = [
        "| arm | phase | steps | accuracy | change, points (95 %) | steepest fall between two "
        "evaluations | mean tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase, (low, high) in zip(phases, intervals(phases), strict=True):
        fall, at = phase.steepest
        fell = f"-{100 * fall:.1f} until {at}" if fall else "none"
        before, after = phase.before.mean(), phase.after.mean()
        lines.append(
            f"| {_values(phase.varied)} | {phase.kind} {phase.number} "
            f"| {phase.begin} - {phase.end} "
            f"| {100 * before:.1f} -> {100 * after:.1f} "
            f"| {100 * (after - before):+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) "
            f"| {fell} | {phase.tokens[0]:.1f} -> {phase.tokens[1]:.1f} |"
        )
    if compared:
        lines += ["", "| figure | arms | difference, points (95 %) | p (Holm) | verdict |"]
        lines += ["|---|---|---|---|---|"]
    for one in compared:
        told = one.paired
        lines.append(
            f"| {one.figure} | {_values(one.first)} less {_values(one.second)} "
            f"| {100 * told.difference:+.1f} ({100 * told.low:+.1f} to {100 * told.high:+.1f}) "
            f"| {one.adjusted:.2g} | {one.verdict} |"
        )
    return "\n".join(lines) + "\n"


def as_json(phases: Sequence[Phase], compared: Sequence[Contrast]) -> dict[str, Any]:
    """The figures of both tables.

    Args:
        phases: of all arms.
        compared: pairs of arms.
    """
    return {
        "phases": [
            {
                "arm": phase.arm,
                "phase": phase.kind,
                "number": phase.number,
                "steps": [phase.begin, phase.end],
                "accuracy": [float(phase.before.mean()), float(phase.after.mean())],
                "change": float(phase.changes.mean()),
                "change_interval": list(interval),
                "change_by_seed": phase.changes.mean(axis=1).tolist(),
                "steepest_fall": list(phase.steepest),
                "tokens": list(phase.tokens),
            }
            for phase, interval in zip(phases, intervals(phases), strict=True)
        ],
        "contrasts": [
            {
                "figure": one.figure,
                "first": one.first,
                "second": one.second,
                **one.paired._asdict(),
                "p_value_holm": one.adjusted,
                "verdict": one.verdict,
            }
            for one in compared
        ],
    }


def _values(varied: dict[str, str]) -> str:
    """The values with the shortest ends of their keys that tell them apart."""
    parts = {key: key.split(".") for key in varied}
    most = max((len(names) for names in parts.values()), default=1)
    size = next(
        (n for n in range(1, most) if len({tuple(p[-n:]) for p in parts.values()}) == len(varied)),
        most,
    )
    return ", ".join(f"{'.'.join(parts[key][-size:])} {value}" for key, value in varied.items())
