"""Reward functions of other papers that compare the lengths of a group's responses.

Only responses with a verdict are compared; the others have no reward. Lengths are in tokens.
docs/rewards.md has the formulas side by side.
"""

from __future__ import annotations

import math
import statistics

from siri_train.rewards.bounds import Options, number
from siri_train.rewards.functions import REWARDS, JudgedResponse, Reward, RewardGroup
from siri_train.rewards.length import sigmoid

_MOST_STEPS = 10**9


def kimi(group: RewardGroup) -> list[float]:
    """1 for a right answer, plus ``weight`` times Kimi k1.5's length reward.

    Kimi k1.5 (arXiv 2501.12599, section 2.3.3): with the shortest and the longest response of the
    group, share = 0.5 - (tokens - shortest) / (longest - shortest). A right answer gets share, a
    wrong one min(0, share). All are 0 in a group of equal lengths. The first ``warm_up`` steps are
    without it, as in the paper.

    Raises:
        ValueError: ``warm_up`` is above 0 and the trainer does not say which step it is.
    """
    weight, warm_up = group.options["weight"], group.options["warm_up"]
    if warm_up:
        if group.step is None:
            raise ValueError(
                f"options.warm_up: got {warm_up}, but this trainer does not say which step it is; "
                "takes 0 here"
            )
        weight *= group.step >= warm_up
    lengths = [r.tokens for r in group.responses if r.right is not None]
    shortest, longest = min(lengths, default=0), max(lengths, default=0)

    def reward(r: JudgedResponse) -> float:
        if r.right is None:
            return math.nan
        if longest == shortest:
            return float(r.right)
        share = 0.5 - (r.tokens - shortest) / (longest - shortest)
        return float(r.right + weight * (share if r.right else min(0.0, share)))

    return [reward(r) for r in group.responses]


def _check_kimi(options: Options) -> None:
    number(options, "weight", 0, 2)
    if not 0 <= options["warm_up"] <= _MOST_STEPS:
        raise ValueError(
            f"options.warm_up: got {options['warm_up']}; takes a whole number of steps from 0 to "
            f"{_MOST_STEPS}"
        )


def arora(group: RewardGroup) -> list[float]:
    """A right answer earns 1 - ``weight`` * sigmoid(z), a wrong one 0.

    Arora and Zanette (arXiv 2502.04463; "TLMRE" in tables): z is the length less the mean length of
    the group's right answers, over their standard deviation (of the population). z is 0 where all
    of these are of one length.
    """
    lengths = [r.tokens for r in group.responses if r.right]
    mean = statistics.fmean(lengths) if lengths else 0.0
    deviation = statistics.pstdev(lengths) if lengths else 0.0

    def reward(r: JudgedResponse) -> float:
        if not r.right:
            return math.nan if r.right is None else 0.0
        z = (r.tokens - mean) / deviation if deviation else 0.0
        return float(1 - group.options["weight"] * sigmoid(z))

    return [reward(r) for r in group.responses]


def _check_arora(options: Options) -> None:
    number(options, "weight", 0, 1)


def gr3(group: RewardGroup) -> list[float]:
    """A right answer earns 1 / (1 + ``weight`` * tokens / mean length of the group), else 0.

    GR3 (arXiv 2603.10535).
    """
    lengths = [r.tokens for r in group.responses if r.right is not None]
    mean = statistics.fmean(lengths) if lengths else 0.0

    def reward(r: JudgedResponse) -> float:
        if r.right is None:
            return math.nan
        share = r.tokens / mean if mean else 0.0
        return float(r.right / (1 + group.options["weight"] * share))

    return [reward(r) for r in group.responses]


def _check_gr3(options: Options) -> None:
    number(options, "weight", 0, 100)


REWARDS["kimi"] = Reward(kimi, {"weight": 1.0, "warm_up": 0}, _check_kimi, compares=True)
REWARDS["arora"] = Reward(arora, {"weight": 0.1}, _check_arora, compares=True)
REWARDS["gr3"] = Reward(gr3, {"weight": 0.33}, _check_gr3, compares=True)
