"""Hours from the measured rates of a run, which win over the time model."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from siri_train.config.run import RunConfig
from siri_train.plan.phases import evaluations

_MEASURED = ("tokens", "time_rollout", "time_train", "response_len_mean", "cap")


@dataclass(frozen=True)
class Rates:
    """Measured times of a run: medians over its steps.

    Args:
        rollout: seconds of sampling per response token.
        train: seconds of everything else in a step per response token.
        filled: mean response length as a share of the cap.
        steps: how many steps were measured.
        where: the run's folder.
    """

    rollout: float
    train: float
    filled: float
    steps: int
    where: Path


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e18


def measured_rates(run_dir: Path) -> Rates | None:
    """Medians over the last 50 steps in a run's ``metrics.jsonl``; None where there are none.

    Damaged records and steps without tokens are left out.

    Args:
        run_dir: the run's folder.
    """
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    rows = []
    for line in lines[-50:]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a run that is being written, or was killed
        if isinstance(row, dict) and all(_positive(row.get(key)) for key in _MEASURED):
            rows.append(row)
    if not rows:
        return None
    return Rates(
        rollout=statistics.median(row["time_rollout"] / row["tokens"] for row in rows),
        train=statistics.median(row["time_train"] / row["tokens"] for row in rows),
        filled=statistics.median(row["response_len_mean"] / row["cap"] for row in rows),
        steps=len(rows),
        where=run_dir,
    )


def expected_hours(
    config: RunConfig, rates: Rates, eval_questions: float
) -> tuple[float, float, float]:
    """Hours of the whole run, if responses fill the same share of the cap as measured.

    Args:
        config: the recipe.
        rates: seconds a token, and the measured share of the cap.
        eval_questions: held-out questions; one of a set with samples of its own counts as its share
            of ``eval.samples``.

    Returns:
        Hours of sampling, of training and of evaluation.
    """
    schedule = config.schedule.build()
    steps = config.train.steps
    responses = config.rollout.prompts * config.rollout.group_size
    tokens = rates.filled * responses * steps * schedule.mean(steps)
    graded = evaluations(config) * eval_questions * config.eval.samples
    length = rates.filled * config.budgets[-1]
    return (
        tokens * rates.rollout / 3600,
        tokens * rates.train / 3600,
        graded * length * rates.rollout / 3600,
    )
