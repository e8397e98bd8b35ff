"""Questions of the built-in tasks and their worked solutions, generated without a download."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from transformers import Qwen2Tokenizer

from siri_train.config.base import ConfigError
from siri_train.data.demo_task import arithmetic, search
from siri_train.data.questions import Question
from siri_train.data.supervised import SupervisedExample

ABOUT = """\
The task: from a digit, add and multiply in order, and keep the last digit of each result.
Every result written out is safe and long; several operations at once are short and often wrong."""
"""The task in two sentences."""

# One question in eight is held out, chosen by its text, so train and eval never share one.
_HELD_OUT = 8


class TaskQuestion(Protocol):
    """A question of any built-in task."""

    @property
    def prompt_words(self) -> list[str]:
        """The prompt, one token a word."""

    @property
    def answer(self) -> str:
        """The right answer, one digit."""


@dataclass(frozen=True)
class Task:
    """One built-in task.

    Attributes:
        config: the class of its parameters.
        make_question: draws a question from a random generator and a ``config``.
        make_chain: writes a supervised response to it.
    """

    config: type[Any]
    make_question: Callable[[random.Random, Any], TaskQuestion]
    make_chain: Callable[[random.Random, Any, Any], list[str]]


TASKS = {
    "arithmetic": Task(arithmetic.TaskConfig, arithmetic.make_question, arithmetic.make_chain),
    "search": Task(search.SearchConfig, search.make_question, search.make_chain),
}
"""The built-in tasks by name, the default first."""


def questions(
    size: int,
    seed: int = 0,
    held_out: bool = False,
    *,
    task: str = "arithmetic",
    progress: Callable[[int], None] | None = None,
    **params: Any,
) -> list[Question]:
    """Generate different questions with long worked solutions.

    Args:
        size: how many.
        seed: the same seed gives the same questions.
        held_out: draw from the held-out share instead of the training share.
        task: a name in ``TASKS``.
        progress: called every 256 attempts with the number of questions found.
        **params: fields of the task's configuration, such as
            :class:`siri_train.data.demo_task.arithmetic.TaskConfig`.

    Raises:
        ConfigError: an unknown task or parameter, or more questions than the task has.
    """
    if task not in TASKS:
        raise ConfigError(f"task: the embedded task is {' or '.join(TASKS)}, not {task!r}")
    chosen = TASKS[task]
    try:
        config = chosen.config(**params)
    except (TypeError, ValueError) as error:
        prefix = f"{chosen.config.__name__}.__init__() got an unexpected"
        reason = str(error).replace(prefix, "got an unexpected")
        names = ", ".join(field.name for field in fields(chosen.config))
        raise ConfigError(f"params of the embedded task: {reason}; takes {names}") from error
    rng = random.Random(f"{seed}/{held_out}")
    found: dict[str, Question] = {}
    last = 0  # attempt that found one
    for attempt in range(1000 + 50 * size):
        if attempt - last > 1000 + 50 * len(found):  # then there are no others
            break
        if progress is not None and attempt % 256 == 0:
            progress(len(found))
        question = chosen.make_question(rng, config)
        solution = " ".join(chosen.make_chain(rng, question, config))
        prompt = " ".join(question.prompt_words)
        if is_held_out(prompt) == held_out and prompt not in found:
            last = attempt
            found[prompt] = Question(
                f"embedded-{seed}-{attempt}", prompt, question.answer, solution
            )
        if len(found) == size:
            return list(found.values())
    raise ConfigError(
        f"size: the embedded task has fewer than {size} different questions of these params "
        f"({len(found)} found); lower it"
    )


def is_held_out(prompt: str) -> bool:
    """Whether a question belongs to the held-out share."""
    return zlib.crc32(prompt.encode()) % _HELD_OUT == 0


def supervised_examples(
    questions: Sequence[Question], tokenizer: Qwen2Tokenizer
) -> list[SupervisedExample]:
    """The worked solutions, wrong results included, as examples of the supervised stage."""
    examples = []
    for question in questions:
        words = (question.solution or "").split()
        # The blank before the first word is part of its token; without it the word would be lost.
        response = tokenizer.encode(
            "".join(f" {word}" for word in words).replace(" <eos>", "<eos>")
        )
        assert len(response) == len(words), question.solution
        examples.append(SupervisedExample(tokenizer.encode(question.prompt), response))
    return examples
