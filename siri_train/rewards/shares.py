"""A budget of seconds shared among the items of one call, so that none takes another's time."""

from __future__ import annotations

from typing import Any

from siri_train.rewards.pool import WorkerPool


def ask_in_shares(
    pool: WorkerPool,
    items: list[dict[str, Any]],
    *,
    budget_s: float | None,
    timeout_s: float,
    workers: int,
    least_s: float,
    keep_late: bool = False,
) -> tuple[list[dict[str, Any] | None], set[int]]:
    """Ask a pool about items within a budget.

    Where the items together could use up the budget, each first gets its share of a half of it, so
    that none takes the time of another, whatever it looks like. Those that need more share the
    other half in the same way, until a share is the whole ``timeout_s``.

    Args:
        pool: its processes take ``limit_s`` of an item, seconds, and answer ``late: true`` where
            that was too little.
        items: JSON objects.
        budget_s: wall-clock seconds for all of them; None: no limit.
        timeout_s: seconds of one item at most.
        workers: processes of the pool.
        least_s: smallest share, in seconds.
        keep_late: an item that was late in its share and is not asked again before the budget ends
            keeps its late reply; else it has none.

    Returns:
        See ``pool.Answers``.
    """
    if budget_s is None:
        return pool.run(items)
    answers: list[dict[str, Any] | None] = [None] * len(items)
    own: set[int] = set()
    budget, share, left = budget_s, least_s / 2, list(range(len(items)))
    while left:
        # An item inside of one long C call is ended at twice its processor time.
        fair = budget * workers / (2 * len(left))
        last = fair >= timeout_s or 4 * share >= timeout_s
        share = timeout_s if last else max(2 * share, fair / 2)
        budget = budget if last else budget / 2
        replies, crashed = pool.run(
            [items[index] | {"limit_s": share} for index in left], budget_s=budget
        )
        for place, index in enumerate(left):
            earlier = answers[index] if keep_late else None
            answers[index] = earlier if replies[place] is None else replies[place]
        own |= {left[place] for place in crashed}
        left = [
            index
            for index in left
            if index not in own and (answers[index] or {"late": True}).get("late") and not last
        ]
        left.sort(key=lambda index: answers[index] is not None)  # what has had no share is first
    return answers, own
