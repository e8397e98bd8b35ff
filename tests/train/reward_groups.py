"""Groups of responses for the tests of reward functions, drawn or made by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siri_train.rewards import REWARDS, JudgedResponse, RewardGroup, reward_options
from siri_train.rewards.functions import rewards_of

CAP = 60


def group(
    rights: Sequence[bool | None],
    lengths: Sequence[int],
    name: str,
    options: Mapping[str, Any],
    *,
    cap: int | None = CAP,
    step: int | None = 0,
    answers: Sequence[str | None] | None = None,
) -> RewardGroup:
    """A group with complete options; a response at the cap is truncated."""
    boxes = ["x"] * len(rights) if answers is None else answers
    return RewardGroup(
        [
            JudgedResponse("text", n, n == cap, right, box)
            for right, n, box in zip(rights, lengths, boxes, strict=True)
        ],
        "question", "gold", cap, step, reward_options(name, options),
    )  # fmt: skip


def paid(name: str, rights: Sequence[bool | None], lengths: Sequence[int], **more: Any) -> Any:
    """The rewards of a group made by hand, [G] float64; ``more`` has options and the rest."""
    rest = {key: more.pop(key) for key in ("cap", "step", "answers") if key in more}
    return np.array(rewards_of(name, group(rights, lengths, name, more, **rest)))


def drawn(rng: random.Random) -> tuple[list[bool | None], list[int], list[str | None]]:
    """Verdicts, lengths and boxes of one group: of 1 to 12 responses, some without a verdict."""
    size = rng.choice([1, 2, 4, 8, 12])
    kinds: list[Any] = rng.choice([[True, False], [True, False, None], [True], [False], [None]])
    rights = [rng.choice(kinds) for _ in range(size)]
    longest = rng.choice([CAP, 8, 1])
    lengths = [rng.choice([0, CAP, rng.randint(0, longest)]) for _ in range(size)]
    if rng.random() < 0.2:
        lengths = [lengths[0]] * size
    boxes = [None if right is False and rng.random() < 0.5 else "x" for right in rights]
    return rights, lengths, boxes


def names() -> list[str]:
    """Every reward function but the default."""
    return [name for name in REWARDS if name != "length-cap"]
