"""The figures of an evaluation set, from its graded responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_train.monitor.token_groups import Counts, TokenGroups
from siri_train.statistics.intervals import bootstrap, share_intervals
from siri_train.statistics.pass_at_k import doubled, mean_pass_at

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Graded:
    """Graded responses to questions.

    Args:
        budgets: in tokens, ascending.
        right: ``[budgets, questions, samples]``: what accuracies count.
        correct: the same: the answer in the response equals the gold, finished or not.
        truncated: the same: truncated at the budget.
        unjudged: ``[questions, samples]``: could not be judged, at the largest budget.
        lengths: ``[questions, samples]``: response tokens at the largest budget.
        words: ``[questions * samples, groups + 1]``: see ``TokenGroups.counts``, at the largest
            budget, question by question.
    """

    budgets: Sequence[int]
    right: Bools
    correct: Bools
    truncated: Bools
    unjudged: Bools
    lengths: NDArray[np.int64]
    words: Counts


def figures(graded: Graded, groups: TokenGroups) -> dict[str, Any]:
    """The figures of a set as in ``eval.jsonl``, without its budgets.

    Args:
        graded: the responses to the set's questions.
        groups: whose words were counted.

    Returns:
        Lists with a value for each budget: accuracy (avg@n) with its interval over questions,
        pass@k for k = samples and, by k, for 1, 2, 4, ... samples, mean tokens, truncated share,
        share of the truncated whose answer was right before the cap (None without any). At the
        largest budget: mean tokens with their interval over questions, backtracking words and
        groups of words per 1000 tokens, the number of answers that could not be judged. And the
        numbers of questions and samples.
    """
    questions, samples = graded.lengths.shape
    shares = graded.right.mean(axis=2)
    ks = list(doubled(samples))
    passed = [mean_pass_at(samples, counts.tolist(), ks) for counts in graded.right.sum(axis=2)]
    cut = [np.minimum(graded.lengths, budget) for budget in graded.budgets]
    held = graded.correct & graded.truncated
    rights: list[bool | None] = graded.right[-1].ravel().tolist()
    for place in np.flatnonzero(graded.unjudged):
        rights[place] = None
    token_groups, backtrack = groups.rates(graded.words, graded.lengths.ravel().tolist(), rights)
    return {
        "accuracy": shares.mean(axis=1).tolist(),
        "accuracy_interval": [list(bounds) for bounds in share_intervals(shares.T)],
        "pass_at_k": graded.right.any(axis=2).mean(axis=1).tolist(),
        "pass_at": {str(k): [at[i] for at in passed] for i, k in enumerate(ks)},
        "tokens_at": [float(at.mean()) for at in cut],
        "truncated_frac": graded.truncated.mean(axis=(1, 2)).tolist(),
        "truncated_correct_frac": [
            float(right.sum() / all_.sum()) if all_.any() else None
            for right, all_ in zip(held, graded.truncated, strict=True)
        ],
        "tokens": float(graded.lengths.mean()),
        "tokens_interval": list(bootstrap(graded.lengths.mean(axis=1))),
        "backtrack_per_1k": backtrack,
        "token_groups": token_groups,
        "questions": questions,
        "samples": samples,
        "unjudged": int(graded.unjudged.sum()),
    }
