"""The runs of an ablation on one page: an arm is one curve, the mean of its seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .alarm_episodes import name_of
from .readers import number
from .records import SEEDS, Evaluation, Run


def seeds_by_arm(folder: Path) -> dict[str, list[Path]]:
    """The folders ``ARM/seed-N`` and ``ARM/MEMBER/seed-N`` of an ablation, by arm.

    Args:
        folder: of the ablation.
    """
    found: dict[str, list[Path]] = {}
    for pattern in ("*/seed-*", "*/*/seed-*"):
        for path in sorted(folder.glob(pattern), key=_order):
            if path.is_dir() and re.fullmatch(r"seed-\d+", path.name):
                found.setdefault(str(path.parent.relative_to(folder)), []).append(path)
    return found


def averaged(name: str, runs: Sequence[Run]) -> Run:
    """One run that is the mean of several, step by step.

    Args:
        name: of the arm.
        runs: of its seeds, at least one.

    Returns:
        The means of all numbers that are finite, over the seeds that have the step: `Run.counts`
        says how many, and curves are broken where that changes, so that a seed's end is no jump of
        the mean. ``evals`` are those that all seeds have, ``partial`` the others; if none is of
        all, ``evals`` has each. An accuracy's interval is the range of the seeds. Alarms keep
        their seed's name: one that a seed clears may hold in another. Words, the configuration and
        responses are those of the first.
    """
    first = runs[0]
    if len(runs) == 1:
        return replace(first, name=name)
    rows: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        for row in run.metrics:
            rows.setdefault(row["step"], []).append(row)
    evals: dict[tuple[int, str | None], list[Evaluation]] = {}
    for run in runs:
        for one in run.evals:
            evals.setdefault((one.step, one.name), []).append(one)
    begun = sum(bool(run.evals) for run in runs)
    keys = sorted(evals, key=lambda key: (key[0], key[1] or ""))
    whole = [key for key in keys if len(evals[key]) == begun] or keys
    return replace(
        first,
        name=name,
        seeds=len(runs),
        metrics=[
            {**_mean(rows[step]), "step": step, SEEDS: len(rows[step])} for step in sorted(rows)
        ],
        evals=[_evaluation(evals[key]) for key in whole],
        partial=[_evaluation(evals[key]) for key in keys if key not in whole],
        alarms=[
            {**row, "alarm": f"{name_of(row)} ({run.name})"} for run in runs for row in run.alarms
        ],
    )


def uneven(run: Run) -> list[str]:
    """Where a mean is not over all of its seeds, in sentences.

    Args:
        run: see `averaged`.
    """
    counts, lines = run.counts, []
    if any(count != run.seeds for _, count in counts):
        ends = [*(step - 1 for step, _ in counts[1:]), run.metrics[-1]["step"]]
        parts = [
            f"{count} from step {start:,} to {end:,}"
            for (start, count), end in zip(counts, ends, strict=True)
        ]
        more = f", and {len(parts) - 6} stretches more" if len(parts) > 6 else ""
        lines.append(
            f"{run.name}: not all of its {run.seeds} seeds have the same steps. Curves are means "
            f"over {', '.join(parts[:6])}{more}; they are broken where the number changes."
        )
    if run.partial:
        steps = ", ".join(f"{step:,}" for step in sorted({one.step for one in run.partial})[:6])
        lines.append(
            f"{run.name}: evaluations that not all of its seeds have are points of their own and "
            f"in no figure: after {steps} steps."
        )
    return lines


def _order(path: Path) -> tuple[str, int]:
    digits = re.sub(r"\D", "", path.name)
    return str(path.parent), int(digits[:15] or 0)


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, of objects key by key and of lists place by place; else the first."""
    amounts = [amount for amount in map(number, values) if amount is not None]
    if amounts:
        mean = sum(amounts) / len(amounts)
        return int(mean) if mean == int(mean) else mean
    if all(isinstance(value, dict) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _mean([value[key] for value in values if key in value]) for key in keys}
    lists = [value for value in values if isinstance(value, list)]
    if len(lists) == len(values) and len({len(value) for value in lists}) == 1:
        return [_mean(part) for part in zip(*lists, strict=True)]
    return values[0]


def _evaluation(found: Sequence[Evaluation]) -> Evaluation:
    first = found[0]
    same = [one for one in found if one.budgets == first.budgets]
    if len(same) < 2:
        return first
    accuracy, intervals = [], []
    for place in range(len(first.budgets)):
        there = [value for one in same if (value := one.accuracy[place]) is not None]
        accuracy.append(sum(there) / len(there) if there else None)
        intervals.append((min(there), max(there)) if there else None)
    return replace(
        first,
        accuracy=tuple(accuracy),
        intervals=tuple(intervals),
        tokens=_known([one.tokens for one in same]),
        seconds=_known([one.seconds for one in same]),
        sampled=_known([one.sampled for one in same]),
        tokens_at=_places([one.tokens_at for one in same]),
        truncated=_places([one.truncated for one in same]),
        backtrack=_known([one.backtrack for one in same]),
        others=tuple(
            _evaluation([one for other in same for one in other.others if one.set == which.set])
            for which in first.others
        ),
    )


def _known(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _places(lists: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    return tuple(_known(part) for part in zip(*lists, strict=False))
