"""The checkpoints of a run that is one of several on a page, as rows of a headline table."""

from __future__ import annotations

from .readers import Row
from .records import Evaluation, Run


def latest_rows(run: Run) -> list[Row]:
    """Rows as in ``summary.json``: the latest checkpoint of each name, and the last evaluation.

    Args:
        run: whose label stands before the names, as several runs have checkpoints of a name.
    """
    latest: dict[str, Evaluation] = {one.name: one for one in run.evals if one.name}
    latest.pop("start", None)
    if run.evals and not any(one is run.evals[-1] for one in latest.values()):
        latest["last"] = run.evals[-1]
    return [
        {
            "name": f"{run.label} {name}",
            "run": run.name,
            "step": one.step,
            "accuracy": one.best,
            "accuracy_interval": one.best_interval,
            "tokens": one.tokens,
            "budgets": one.budgets,
            "accuracy_at": one.accuracy,
            "accuracy_at_interval": one.intervals,
        }
        for name, one in latest.items()
    ]
