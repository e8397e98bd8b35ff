"""Reward functions of other papers that look at the length of one response at a time.

Right and wrong are the verifier's verdict. A response without one (`JudgedResponse.right` is None)
has no reward. Lengths are in tokens. docs/rewards.md has the formulas side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from siri_train.rewards.bounds import Options, at_most, choice, number, tokens
from siri_train.rewards.functions import REWARDS, JudgedResponse, Reward, RewardGroup, cap_of

_LONGEST = "the longest cap (schedule.max_len)"


def _each(group: RewardGroup, reward: Callable[[JudgedResponse, bool], float]) -> list[float]:
    """``reward(response, right)`` of every response that has a verdict, NaN for the others."""
    return [math.nan if r.right is None else reward(r, r.right) for r in group.responses]


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), which does not overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def truncation(group: RewardGroup) -> list[float]:
    """1 for a right answer of at most ``limit`` tokens, else 0, with responses up to the cap.

    DLER (arXiv 2510.15110); "The Art of Efficient Reasoning" (arXiv 2602.20945), where the limit is
    L_T and the cap is L_R.
    """
    limit = group.options["limit"]
    return _each(group, lambda r, right: float(right and r.tokens <= limit))


def _check_truncation(options: Options) -> None:
    tokens(options, "limit")


def length_penalty(group: RewardGroup) -> list[float]:
    """A right answer earns 1, and each token costs ``weight / per``.

    With ``on: right`` a wrong answer earns 0 whatever its length; with ``on: all`` it pays too.
    ``per`` null is the step's cap.
    """
    weight, per = group.options["weight"], group.options["per"]
    price = weight / (cap_of(group) if per is None else per)
    pays_wrong = group.options["on"] == "all"
    return _each(group, lambda r, right: right - price * r.tokens * (right or pays_wrong))


def _check_length_penalty(options: Options) -> None:
    number(options, "weight", 0, 1)
    choice(options, "on", ("right", "all"))
    if options["per"] is not None:
        tokens(options, "per")


def _fit_length_penalty(options: Options, shortest: int, longest: int) -> None:
    per, least = options["per"], math.ceil(options["weight"] * longest)
    if per is not None and per < least:
        raise ValueError(
            f"options.per: got {per}; takes at least {least} = options.weight x schedule.max_len: "
            "a long right answer would earn less than a wrong one"
        )


def l1_exact(group: RewardGroup) -> list[float]:
    """1 for a right answer, less ``weight`` for each token of distance to ``target``.

    L1-Exact (arXiv 2503.04697, eq. 1), with one target for all questions. A wrong answer pays too.
    """
    target, weight = group.options["target"], group.options["weight"]
    return _each(group, lambda r, right: right - weight * abs(r.tokens - target))


def _check_l1_exact(options: Options) -> None:
    tokens(options, "target")
    number(options, "weight", 0, 1)


def l1_max(group: RewardGroup) -> list[float]:
    """A right answer earns a score that falls with its length, ``offset`` at ``target`` tokens.

    L1-Max (arXiv 2503.04697, eq. 2): right * clip(weight (target - tokens) + offset, 0, 1). The
    switches of its code: ``curve: sigmoid`` is sigmoid(weight (target - tokens)), plus 0.1 up to
    ``target``, at most 1; ``combine: add`` adds the score to 1 or 0 instead of multiplying.
    """
    options = group.options
    target, weight = options["target"], options["weight"]

    def score(length: int) -> float:
        room = weight * (target - length)
        if options["curve"] == "sigmoid":
            return min(1.0, sigmoid(room) + 0.1 * (length <= target))
        return float(min(max(room + options["offset"], 0.0), 1.0))

    if options["combine"] == "add":
        return _each(group, lambda r, right: right + score(r.tokens))
    return _each(group, lambda r, right: right * score(r.tokens))


def _check_l1_max(options: Options) -> None:
    _check_l1_exact(options)
    number(options, "offset", 0, 1, above=False)
    choice(options, "combine", ("multiply", "add"))
    if choice(options, "curve", ("linear", "sigmoid")) == "sigmoid" and options["offset"] != 0.5:
        raise ValueError(
            f"options.offset: got {options['offset']!r}, which has no effect with curve: sigmoid; "
            "set options.curve to linear, or leave options.offset out"
        )


def laser(group: RewardGroup) -> list[float]:
    """A base reward, and ``bonus`` for a right answer of at most ``target`` tokens.

    LASER (arXiv 2505.15612): the base is ``right``, ``wrong``, or ``unanswered`` for a response
    without a box. ``explore`` also gives the bonus to wrong answers above ``target``, which is the
    reward of LASER-DE; its targets, which follow the difficulty of the question, are not here.
    """
    options = group.options

    def reward(r: JudgedResponse, right: bool) -> float:
        short = r.tokens <= options["target"]
        earns = short if right else options["explore"] and not short
        base = "right" if right else "unanswered" if r.answer is None else "wrong"
        return float(options[base] + options["bonus"] * earns)

    return _each(group, reward)


def _check_laser(options: Options) -> None:
    tokens(options, "target")
    bonus = number(options, "bonus", 0, 100)
    right = number(options, "right", -100, 100, above=False)
    extra = bonus if options["explore"] else 0.0
    for name in ("wrong", "unanswered"):
        if number(options, name, -100, 100, above=False) + extra >= right:
            most = "options.right - options.bonus" if extra else "options.right"
            raise ValueError(
                f"options.{name}: got {options[name]!r}; takes a number below {most} = "
                f"{right - extra:g}"
            )


def overlong_share(tokens: int, cap: int, buffer: int) -> float:
    """Where a length lies on DAPO's ramp: 0 up to cap - buffer tokens, then linear, 1 at the cap.

    Args:
        tokens: of the response.
        cap: the longest possible response, in tokens.
        buffer: tokens of the ramp.
    """
    return min(max((tokens - (cap - buffer)) / buffer, 0.0), 1.0)


def overlong(group: RewardGroup) -> list[float]:
    """1 for a right answer, ``wrong`` for another, less a ramp over the last ``buffer`` tokens.

    DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to cap - buffer tokens, then
    linear, -``penalty`` at the cap. No response is longer than the cap, so the paper's third case
    is the end of the ramp, as in verl.

    Raises:
        ValueError: the cap is not known, or shorter than ``buffer``.
    """
    cap, buffer = cap_of(group), group.options["buffer"]
    wrong, penalty = group.options["wrong"], group.options["penalty"]
    if buffer > cap:
        raise ValueError(f"options.buffer: got {buffer}; takes at most the step's cap, {cap}")

    def reward(r: JudgedResponse, right: bool) -> float:
        share = overlong_share(r.tokens, cap, buffer)
        return float((1.0 if right else wrong) - penalty * share)

    return _each(group, reward)


def _check_overlong(options: Options) -> None:
    tokens(options, "buffer")
    number(options, "penalty", 0, 100)
    if number(options, "wrong", -100, 1, above=False) == 1:
        raise ValueError("options.wrong: got 1; takes a number below 1, what a right answer earns")


def _fit_overlong(options: Options, shortest: int, longest: int) -> None:
    at_most(options, "buffer", shortest, "the shortest cap (schedule.min_len)")


def _below_longest(name: str) -> Callable[[Options, int, int], None]:
    return lambda options, shortest, longest: at_most(options, name, longest, _LONGEST)


_PER_TOKEN = 3e-4  # L1's alpha

REWARDS["truncation"] = Reward(
    truncation, {"limit": None}, _check_truncation, fits=_below_longest("limit")
)
REWARDS["length-penalty"] = Reward(
    length_penalty,
    {"weight": 0.5, "per": None, "on": "right"},
    _check_length_penalty,
    fits=_fit_length_penalty,
    reads_cap=lambda options: options["per"] is None,
)
REWARDS["l1-exact"] = Reward(
    l1_exact,
    {"target": None, "weight": _PER_TOKEN},
    _check_l1_exact,
    fits=_below_longest("target"),
)
REWARDS["l1-max"] = Reward(
    l1_max,
    {
        "target": None,
        "weight": _PER_TOKEN,
        "offset": 0.5,
        "curve": "linear",
        "combine": "multiply",
    },
    _check_l1_max,
    fits=_below_longest("target"),
)
REWARDS["laser"] = Reward(
    laser,
    {
        "target": None,
        "bonus": 0.5,
        "right": 1.0,
        "wrong": -0.5,
        "unanswered": -1.0,
        "explore": False,
    },
    _check_laser,
    fits=_below_longest("target"),
)
REWARDS["overlong"] = Reward(
    overlong,
    {"buffer": 4096, "penalty": 1.0, "wrong": -1.0},
    _check_overlong,
    fits=_fit_overlong,
    reads_cap=lambda options: True,
)
