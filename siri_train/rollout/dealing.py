"""How a step's responses are dealt to parts and rows: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Deal = Literal["questions", "responses"]


@dataclass(frozen=True)
class Part:
    """The questions and responses of one call of an engine.

    Args:
        first: the first of its questions.
        last: one beyond the last of them.
        responses: to each of its questions.
    """

    first: int
    last: int
    responses: int


def deal(questions: int, group_size: int, shards: int, by: Deal = "questions") -> list[Part]:
    """Divide a step's responses into parts of nearly equal numbers.

    ``questions`` gives each part whole groups: contiguous questions with all their responses.
    ``responses`` divides groups: the questions are split as little as possible, and each part
    samples some of the responses to all questions of its block. A long question is then long for
    many ranks. Groups are divided into the greatest common divisor of both numbers.

    Args:
        questions: of the step.
        group_size: responses to each question.
        shards: parts.
        by: ``rollout.deal``.

    Returns:
        ``shards`` parts; the parts of a block of questions stand together. Parts without a
        question have ``first == last``.
    """
    pieces = math.gcd(group_size, shards) if by == "responses" else 1
    blocks = shards // pieces
    bounds = [questions * block // blocks for block in range(blocks + 1)]
    return [
        Part(bounds[block], bounds[block + 1], group_size // pieces)
        for block in range(blocks)
        for _ in range(pieces)
    ]


def response_order(prompt_lengths: Sequence[int], group_size: int) -> list[int]:
    """The order in which the transformers engine takes waiting responses.

    Prompts of similar length together: less left padding. Longest first: their answers tend to be
    long too, and should not be the last to start. Ties keep the order of the questions.

    Args:
        prompt_lengths: in tokens.
        group_size: responses to each prompt.

    Returns:
        The prompt of each response; equal ones stand together.
    """
    owners = [index for index in range(len(prompt_lengths)) for _ in range(group_size)]
    owners.sort(key=lambda index: -prompt_lengths[index])
    return owners


def to_admit(unfinished: int, waiting: int, rows: int) -> int:
    """How many waiting responses the transformers engine starts before its next decoding step.

    Args:
        unfinished: responses being decoded.
        waiting: responses that have not started.
        rows: ``rollout.batch_rows``.
    """
    return max(0, min(rows - unfinished, waiting))
