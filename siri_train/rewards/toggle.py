"""The reward ``toggle``: long right answers pay only where the question is hard, or in expansion.

Kimi K2.5 (arXiv 2602.02276), there called Toggle. Its reward of a response y to the question x is

    compression:  r(x, y) * 1[accuracy of the group < lambda  or  |y| <= budget(x)]
    expansion:    r(x, y)

with r = 1 for a right answer, else 0. The report gives neither lambda nor the quantile of the
budget; both are options here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from siri_train.rewards.functions import Reward, RewardGroup


def quantile_of_right(group: RewardGroup) -> int | None:
    """The budget of a question: a quantile of the lengths of its right responses, in tokens.

    The smallest such length that at least the share ``options["quantile"]`` of them does not
    exceed. Kimi K2.5 estimates it once, when a question is first sampled; here that is the first
    step in which a response is right.

    Args:
        group: the responses to the question.

    Returns:
        None if no response is right, or if the option is null: the budget is ``min_len`` then.
    """
    share = group.options["quantile"]
    lengths = sorted(r.tokens for r in group.responses if r.right)
    if share is None or not lengths:
        return None
    # exact: 0.1 * 30 is more than 3 in float64
    return lengths[math.ceil(Fraction(repr(share)) * len(lengths)) - 1]


def _toggle(group: RewardGroup) -> list[float]:
    scored = [r.right for r in group.responses if r.right is not None]
    every = group.phase == "expansion" or (
        sum(scored) < group.options["accuracy"] * len(scored) if scored else True
    )
    budget = group.shortest
    if group.options["quantile"] is not None:
        budget = quantile_of_right(group) if group.known is None else group.known

    def pays(right: bool, tokens: int) -> float:
        return float(right and (every or budget is None or tokens <= budget))

    return [math.nan if r.right is None else pays(r.right, r.tokens) for r in group.responses]


def _check(options: Mapping[str, Any]) -> None:
    accuracy, share = options["accuracy"], options["quantile"]
    if not 0 <= accuracy <= 1:
        raise ValueError(f"options.accuracy: got {accuracy!r}; takes a number from 0 to 1")
    if share is not None and (type(share) not in (int, float) or not 0 < share <= 1):
        raise ValueError(
            f"options.quantile: got {share!r}; takes null (the budget is schedule.min_len) or a "
            "number above 0 and up to 1"
        )


TOGGLE = Reward(
    _toggle,
    options={"accuracy": 0.5, "quantile": None},
    check=_check,
    compares=True,
    shape="toggle",
    remember=quantile_of_right,
)
