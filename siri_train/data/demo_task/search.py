r"""Search by trial: the second built-in task, in which going back and trying again pays.

A question lists candidates, then operations modulo 10 and the result that they must lead to:

    <bos> 4 7 2 9 ? +3 *7 = 5 <think>

Exactly one candidate leads there.  It may stand at any place, so nothing but computing tells it
from the others.  A chain of thought tries the candidates in their order.  It computes the
operations from a candidate, compares the result with the wanted one, and goes on behind the word
'wait' if they differ:

    4 +3 7 *7 9 = 5 wait 7 +3 0 *7 0 = 5 wait 2 +3 5 *7 5 = 5 </think> \boxed{ 2 } <eos>

Trials cost tokens and buy accuracy: of k candidates, t failed trials and then an untried answer are
right with a chance of (t + 1) / k.  A chain that must be short gives up early and answers a
candidate that it has not tried.  As in :mod:`siri_train.data.demo_task.arithmetic`, two or three
operations at once make a trial shorter and less reliable.  The supervised chains are wasteful on
purpose: they slip, and they compute a right candidate once more.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from siri_train.data.demo_task.arithmetic import apply_operation
from siri_train.data.demo_task.bounds import (
    require_count,
    require_order,
    require_share,
    require_shares,
)
from siri_train.model.demo_model import (
    ASK,
    BOS,
    BOX_CLOSE,
    BOX_OPEN,
    END_THINK,
    EOS,
    EQUALS,
    OPERATIONS,
    THINK,
    WAIT,
)

MOST_CANDIDATES, MOST_OPERATIONS = 6, 8
"""With more there are hardly any questions: long operations lead from every digit to the same."""


@dataclass(frozen=True)
class SearchConfig:
    """Sizes of the questions, and rates that shape the supervised chains of thought.

    Raises:
        ValueError: naming the parameter, what it got and what it takes.
    """

    min_candidates: int = 3
    max_candidates: int = 6
    min_operations: int = 1
    max_operations: int = 3
    merge_rates: tuple[float, ...] = (0.0, 0.0, 0.5)  # share of merged steps; drawn per chain
    triple_rate: float = 0.1  # share of the merged steps that take three operations, not two
    slip_rate: float = 0.02  # a written result is replaced by a random digit this often
    blind_rate: float = 0.1  # share of chains that answer the first candidate untried
    give_up_rate: float = 0.25  # chance, after a failed trial, of naming the next one untried
    again_rate: float = 0.25  # chance, after a right trial, of computing it once more
    max_trials: int = 8

    def __post_init__(self) -> None:
        for name in ("min_candidates", "max_candidates"):
            require_count(name, getattr(self, name), MOST_CANDIDATES)
        for name in ("min_operations", "max_operations"):
            require_count(name, getattr(self, name), MOST_OPERATIONS)
        require_count("max_trials", self.max_trials, 100)
        require_order("min_candidates", self.min_candidates, "max_candidates", self.max_candidates)
        require_order("min_operations", self.min_operations, "max_operations", self.max_operations)
        require_shares("merge_rates", self.merge_rates)
        for name in ("triple_rate", "slip_rate", "blind_rate", "give_up_rate", "again_rate"):
            require_share(name, getattr(self, name))


@dataclass(frozen=True)
class SearchQuestion:
    """Candidates, one of which the operations lead to the target."""

    candidates: tuple[int, ...]
    operations: tuple[str, ...]
    target: int

    @property
    def prompt_words(self) -> list[str]:
        """The prompt, one token a word."""
        return [
            BOS, *map(str, self.candidates), ASK, *self.operations, EQUALS, str(self.target), THINK
        ]  # fmt: skip

    @property
    def answer(self) -> str:
        """The candidate that leads to the target, one digit."""
        (right,) = [c for c in self.candidates if result(c, self.operations) == self.target]
        return str(right)


def result(value: int, operations: tuple[str, ...]) -> int:
    """The digit that the operations lead to from ``value``."""
    for operation in operations:
        value = apply_operation(value, operation)
    return value


def make_question(rng: random.Random, config: SearchConfig = SearchConfig()) -> SearchQuestion:
    """Draw a question; both sizes and the place of the answer are uniform."""
    operations_count = rng.randint(config.min_operations, config.max_operations)
    count = rng.randint(config.min_candidates, config.max_candidates)
    while True:
        operations = tuple(rng.sample(OPERATIONS, operations_count))
        results = [result(value, operations) for value in range(10)]
        right = rng.randrange(10)
        others = [value for value in range(10) if results[value] != results[right]]
        if len(others) >= count - 1:
            candidates = rng.sample(others, count - 1)
            candidates.insert(rng.randrange(count), right)
            return SearchQuestion(tuple(candidates), operations, results[right])


def make_chain(
    rng: random.Random, question: SearchQuestion, config: SearchConfig = SearchConfig()
) -> list[str]:
    """A supervised response: trials with slips and repetitions, then the boxed candidate.

    The answer is always the candidate named last. A chain that gives up names the next one and does
    not compute it.

    Args:
        rng: source of randomness.
        question: to solve.
        config: the rates.

    Returns:
        The words of the response, one token each, ``<eos>`` last.
    """
    merge_rate = rng.choice(config.merge_rates)
    target = [EQUALS, str(question.target)]
    count = len(question.candidates)
    words: list[str] = []
    place = written = 0  # in the candidates; trials written
    gives_up = rng.random() < config.blind_rate
    while True:
        guess = question.candidates[place % count]
        if gives_up or written >= config.max_trials:
            words.append(str(guess))
            break
        trial, value = _write_trial(rng, question.operations, guess, config, merge_rate)
        words += trial + target
        written += 1
        if value != question.target:
            place += 1
            gives_up = rng.random() < config.give_up_rate
        elif rng.random() >= config.again_rate:
            break
        words.append(WAIT)
    return words + [END_THINK, BOX_OPEN, str(guess), BOX_CLOSE, EOS]


def _write_trial(
    rng: random.Random,
    operations: tuple[str, ...],
    guess: int,
    config: SearchConfig,
    merge_rate: float,
) -> tuple[list[str], int]:
    """One candidate's computation: its words, and the digit of its result."""
    value, position = guess, 0
    words = [str(value)]
    while position < len(operations):
        width = 1
        if rng.random() < merge_rate:
            width = 3 if rng.random() < config.triple_rate else 2
        step = operations[position : position + width]
        value = result(value, step)
        position += len(step)
        if rng.random() < config.slip_rate:
            value = rng.randrange(10)
        words += [*step, str(value)]
    return words, value
