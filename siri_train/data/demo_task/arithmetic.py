r"""Mental arithmetic: the built-in task (``embedded``) of the SIRI demonstration.

A question is a start digit and a list of distinct operations, all taken modulo 10:

    <bos> 4 +3 *7 +5 +6 ? <think>

A chain of thought copies the operations and writes running results.  With fewer written results it
is shorter, and each result combines more operations:

    one by one    "+3 = 7 *7 = 9"    every result            3 tokens per operation
    two at once   "+3 *7 = 9"        every second result     2 tokens per operation
    three         "+3 *7 +5 = 4"     every third result      1.7 tokens per operation

A single operation is one of 170 facts, which a tiny model learns perfectly.  Two at once are 2720
facts, three are 40800, and the model gets more of them wrong: longer answers are more accurate.
The supervised chains are long and careless on purpose: a result is wrong now and then, and whole
passes are repeated behind the word 'wait', often after two passes already agree.

    4 +3 = 7 *7 = 9 +5 = 4 +6 = 0 wait 4 +3 = 7 *7 = 9 +5 = 4 +6 = 0 </think> \boxed{ 0 } <eos>
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

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


@dataclass(frozen=True)
class TaskConfig:
    """Sizes of the questions, and rates that shape the supervised chains of thought.

    Raises:
        ValueError: naming the parameter, what it got and what it takes.
    """

    min_operations: int = 3
    max_operations: int = 9
    merge_rates: tuple[float, ...] = (0.2, 0.5, 0.8, 1.0)  # share of merged steps; drawn per chain
    triple_rate: float = 0.3  # share of the merged steps that take three operations, not two
    equals_rates: tuple[float, ...] = (1.0,)  # share of results behind '='; drawn per chain
    slip_rate: float = 0.12  # a written result is replaced by a random digit this often
    single_pass_rate: float = 0.1  # share of chains that never re-check
    stop_rate: float = 0.3  # chance of stopping each time two passes in a row agree
    max_passes: int = 3

    def __post_init__(self) -> None:
        for name in ("min_operations", "max_operations"):
            require_count(name, getattr(self, name), len(OPERATIONS))
        require_count("max_passes", self.max_passes, 100)
        require_order("min_operations", self.min_operations, "max_operations", self.max_operations)
        for name in ("triple_rate", "slip_rate", "single_pass_rate", "stop_rate"):
            require_share(name, getattr(self, name))
        for name in ("merge_rates", "equals_rates"):
            require_shares(name, getattr(self, name))


@dataclass(frozen=True)
class Question:
    """A start digit and the operations applied to it."""

    start: int
    operations: tuple[str, ...]

    @property
    def prompt_words(self) -> list[str]:
        """The prompt, one token a word: start, operations, question mark, ``<think>``."""
        return [BOS, str(self.start), *self.operations, ASK, THINK]

    @property
    def answer(self) -> str:
        """The result of all operations, one digit."""
        value = self.start
        for operation in self.operations:
            value = apply_operation(value, operation)
        return str(value)


def apply_operation(value: int, operation: str) -> int:
    """Result of one operation word ('+3', '*7') modulo 10."""
    operand = int(operation[1:])
    if operation[0] == "+":
        return (value + operand) % 10
    return (value * operand) % 10


def make_question(rng: random.Random, config: TaskConfig = TaskConfig()) -> Question:
    """Draw a question; its size is uniform between the configured bounds."""
    size = rng.randint(config.min_operations, config.max_operations)
    return Question(rng.randrange(10), tuple(rng.sample(OPERATIONS, size)))


def _write_pass(
    rng: random.Random,
    question: Question,
    config: TaskConfig,
    merge_rate: float,
    equals_rate: float,
) -> tuple[list[str], int]:
    """One pass over the operations: its words, and the digit of its result."""
    value, position, size = question.start, 0, len(question.operations)
    words = [str(value)]
    while position < size:
        width = 1
        if rng.random() < merge_rate:
            width = 3 if rng.random() < config.triple_rate else 2
        step = question.operations[position : position + width]
        for operation in step:
            value = apply_operation(value, operation)
        position += len(step)
        if rng.random() < config.slip_rate:
            value = rng.randrange(10)
        words += step
        if rng.random() < equals_rate:
            words.append(EQUALS)
        words.append(str(value))
    return words, value


def make_chain(
    rng: random.Random, question: Question, config: TaskConfig = TaskConfig()
) -> list[str]:
    """A long supervised response: passes with wrong results, repetitions, the boxed last result.

    Args:
        rng: source of randomness.
        question: to solve.
        config: the rates.

    Returns:
        The words of the response, one token each, ``<eos>`` last.
    """
    merge_rate = rng.choice(config.merge_rates)
    equals_rate = rng.choice(config.equals_rates)
    words, value = _write_pass(rng, question, config, merge_rate, equals_rate)
    if rng.random() >= config.single_pass_rate:
        for _ in range(config.max_passes - 1):
            again, new_value = _write_pass(rng, question, config, merge_rate, equals_rate)
            words += [WAIT] + again
            agree, value = new_value == value, new_value
            if agree and rng.random() < config.stop_rate:
                break
    return words + [END_THINK, BOX_OPEN, str(value), BOX_CLOSE, EOS]


def make_drill(rng: random.Random, config: TaskConfig = TaskConfig(), steps: int = 12) -> list[str]:
    """A warm-up line '4 +3 7 *7 9 ...': single operations, each followed by its result.

    Args:
        rng: source of randomness.
        config: bounds the questions; its number of operations is not used.
        steps: number of operations.

    Returns:
        The words of the line, one token each.
    """
    sized = dataclasses.replace(config, min_operations=steps, max_operations=steps)
    question = make_question(rng, sized)
    value = question.start
    words = [BOS, str(value)]
    for operation in question.operations:
        value = apply_operation(value, operation)
        words += [operation, str(value)]
    return words
