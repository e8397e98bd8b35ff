"""Evaluations question by question, and the paired comparison of two of them."""

from __future__ import annotations

import math

import numpy as np

from siri_train.monitor.question_records import QuestionRecord, read_question_records

from .data import Run, RunFolder

Z = 1.96
"""Standard errors of a 95 % interval."""


Records = dict[int, QuestionRecord]
"""The records of one run's evaluations, by step."""


def all_records(folder: RunFolder) -> dict[str, Records]:
    """The records of all runs, by the run's name; see `by_evaluation`.

    Args:
        folder: as it was read.
    """
    return {run.name: by_evaluation(run) for run in folder.runs}


def by_evaluation(run: Run) -> Records:
    """The records of a run's evaluations by step, of the set that the page shows.

    Args:
        run: as it was read; a record whose set is not that of the evaluation is left out. The mean
            of several seeds has none: those of one seed are not its.
    """
    if run.seeds > 1:
        return {}
    try:
        found = read_question_records(run.folder)
    except OSError:
        return {}
    sets = {one.step: one.set for one in run.evals}
    return {
        one.step: one
        for one in found
        if one.step is not None and one.step in sets and one.set == sets[one.step]
    }


def apart(one: QuestionRecord, two: QuestionRecord, budget: int) -> bool | None:
    """Whether two evaluations differ at a budget by more than the noise of the questions.

    Paired: the mean difference over the same questions is more than 1.96 of its standard errors
    from 0.

    Args:
        one: an evaluation.
        two: another.
        budget: in tokens.

    Returns:
        None where they cannot be paired: other questions, or one lacks the budget.
    """
    if one.fingerprint != two.fingerprint or len(one.ids) != len(two.ids):
        return None
    if budget not in one.budgets or budget not in two.budgets:
        return None
    first, second = (
        np.asarray(record.shares(record.budgets.index(budget))) for record in (one, two)
    )
    differences = first - second
    mean = float(differences.mean())
    if len(differences) < 2:
        return False
    return abs(mean) > Z * float(differences.std(ddof=1)) / math.sqrt(len(differences))
