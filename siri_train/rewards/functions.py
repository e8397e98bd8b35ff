"""Reward functions: they give a reward to each response of a group, knowing which are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from siri_train.registry import Registry, one_of, with_defaults

DEFAULT = "length-cap"
"""The reward function of a recipe that names none."""


@dataclass(frozen=True)
class JudgedResponse:
    """A response as a reward function sees it.

    Attributes:
        text: the response without the prompt.
        tokens: its length in tokens, an end token counted; at most the cap.
        truncated: ended by the cap and not by an end token.
        right: the verifier's verdict on the answer. None: it cannot be scored (the engine lost the
            response or the verifier could not judge it). With ``reward.truncated: zero`` a
            truncated response is not right.
        answer: content of the last box, None without one.
    """

    text: str
    tokens: int
    truncated: bool
    right: bool | None
    answer: str | None = None


@dataclass(frozen=True)
class RewardGroup:
    """The responses to one question in one step, which is what a reward function is given.

    Attributes:
        responses: of the group, in order. Where a trainer grades one response at a time this is
            that one alone, which a `Reward` that compares responses never sees.
        question: the question's text.
        gold: its right answer.
        cap: the longest response that was possible, in tokens.
        step: the 0-based step; None in an evaluation, and where a trainer does not say.
        options: ``reward.options`` of the recipe over the defaults of the function.
        phase: ``"compression"`` or ``"expansion"``; None where a trainer does not say.
        shortest: ``schedule.min_len``, in tokens; None where a trainer does not say.
        known: what `Reward.remember` gave for this question in an earlier step; None: nothing yet.
    """

    responses: Sequence[JudgedResponse]
    question: str
    gold: str
    cap: int | None
    step: int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    phase: str | None = None
    shortest: int | None = None
    known: Any = None


RewardFunction = Callable[[RewardGroup], Sequence[float]]


@dataclass(frozen=True)
class Reward:
    """An entry of `REWARDS`.

    Args:
        function: a group to one float a response, in order. NaN leaves a response out of its
            group: it has no advantage and does not count in the group's mean.
        options: the function's options and their defaults; ``reward.options`` of a recipe.
        check: raises ValueError, which begins with ``options.NAME``, for options that cannot be.
        compares: what a response earns depends on the others of its group. Trainers that grade one
            response at a time refuse such a function.
        fits: (options, shortest cap, longest cap), in tokens: raises ValueError, which begins with
            ``options.NAME``, for options that do not fit the caps of a run.
        reads_cap: whether the function, with these options, reads the step's cap (`cap_of`).
            Trainers that do not know it refuse such a function.
        shape: the schedule shape in whose phases the function acts; recipes name both or none.
        remember: a group to what is to be known of its question in later steps (``known`` of the
            group), as JSON holds it; None: nothing yet. The first other value stays for the run,
            also when it is resumed. In the step that gives it, ``known`` is still None.
    """

    function: RewardFunction
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] | None = None
    compares: bool = False
    fits: Callable[[Mapping[str, Any], int, int], None] | None = None
    reads_cap: Callable[[Mapping[str, Any]], bool] | None = None
    shape: str | None = None
    remember: Callable[[RewardGroup], Any] | None = None


def _length_cap(group: RewardGroup) -> list[float]:
    """1 for a right answer within the cap, else 0 (SIRI section 3.1).

    There is no length penalty, no format reward and no negative reward.
    """
    return [math.nan if r.right is None else float(r.right) for r in group.responses]


REWARDS: Registry[Reward] = Registry("reward")
"""Every reward function by name. A new one is one entry."""
REWARDS[DEFAULT] = Reward(_length_cap)


def cap_of(group: RewardGroup) -> int:
    """The step's cap in tokens, for a reward function that cannot do without it.

    Raises:
        ValueError: the trainer did not say.
    """
    if group.cap is None:
        raise ValueError("cap: missing; this reward function takes the longest possible response")
    return group.cap


def require_no_cap(name: str, options: Mapping[str, Any], key: str) -> None:
    """Refuse a reward function that reads the step's cap where the cap is not known.

    Args:
        name: a name in `REWARDS`.
        options: complete, as `reward_options` gives them.
        key: what would give the cap, for the message.

    Raises:
        ValueError: the function reads it.
    """
    reads = REWARDS[name].reads_cap
    if reads is not None and reads(options):
        raise ValueError(f"{key}: missing; the reward {name!r} takes the step's cap, which it says")


def require_fit(name: str, options: Mapping[str, Any], shortest: int, longest: int) -> None:
    """Refuse options that do not fit the caps of a run.

    Args:
        name: a name in `REWARDS`.
        options: complete, as `reward_options` gives them.
        shortest: cap of the run in tokens.
        longest: cap of the run in tokens.

    Raises:
        ValueError: the message begins with ``options.NAME``.
    """
    fits = REWARDS[name].fits
    if fits is not None:
        fits(options, shortest, longest)


def reward_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a reward function: what is given, and the defaults of the others.

    Args:
        name: a name in `REWARDS`.
        given: by name.

    Raises:
        ValueError: an unknown name or option, or a value that the option does not take.
    """
    if name not in REWARDS:
        raise ValueError(f"function: got {name!r}; {one_of(REWARDS, name)}")
    reward = REWARDS[name]
    options = with_defaults(f"the reward {name!r}", reward.options, given)
    if reward.check is not None:
        reward.check(options)
    return options


def rewards_of(name: str, group: RewardGroup) -> list[float]:
    """The rewards that a reward function gives the responses of a group.

    Args:
        name: a name in `REWARDS`.
        group: its ``options`` are complete, as `reward_options` gives them.

    Raises:
        ValueError: the function does not give one number a response, or an infinite one.
    """
    given = list(REWARDS[name].function(group))
    if len(given) != len(group.responses):
        raise ValueError(
            f"the reward {name!r} gives {len(given)} numbers for {len(group.responses)} responses; "
            "takes one a response"
        )
    rewards = [float(value) for value in given]
    if any(map(math.isinf, rewards)):
        raise ValueError(
            f"the reward {name!r} gives {rewards} for a group; takes finite numbers, and NaN for a "
            "response that has no reward"
        )
    return rewards
