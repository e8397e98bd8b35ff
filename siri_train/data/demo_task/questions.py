"""Questions of the built-in task and their worked solutions, generated without a download."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from transformers import Qwen2Tokenizer

from siri_train.config.base import ConfigError
from siri_train.data.demo_task import arithmetic as task
from siri_train.data.questions import Question
from siri_train.data.supervised import SupervisedExample

ABOUT = """\
The task: from a digit, add and multiply in order, and keep the last digit of each result.
Every result written out is safe and long; several operations at once are short and often wrong."""
"""The task in two sentences."""

# One question in eight is held out, chosen by its text, so train and eval never share one.
_HELD_OUT = 8


def questions(
    size: int,
    seed: int = 0,
    held_out: bool = False,
    *,
    progress: Callable[[int], None] | None = None,
    **params: Any,
) -> list[Question]:
    """Generate different questions with long worked solutions.

    Args:
        size: how many.
        seed: the same seed gives the same questions.
        held_out: draw from the held-out share instead of the training share.
        progress: called every 256 attempts with the number of questions found.
        **params: fields of :class:`siri_train.data.demo_task.arithmetic.TaskConfig`.

    Raises:
        ConfigError: an unknown parameter, or more questions than the task has.
    """
    try:
        config = task.TaskConfig(**params)
    except (TypeError, ValueError) as error:
        reason = str(error).replace("TaskConfig.__init__() got an unexpected", "got an unexpected")
        names = ", ".join(field.name for field in fields(task.TaskConfig))
        raise ConfigError(f"params of the embedded task: {reason}; takes {names}") from error
    rng = random.Random(f"{seed}/{held_out}")
    found: dict[str, Question] = {}
    last = 0  # attempt that found one
    for attempt in range(1000 + 50 * size):
        if attempt - last > 1000 + 50 * len(found):  # then there are no others
            break
        if progress is not None and attempt % 256 == 0:
            progress(len(found))
        question = task.make_question(rng, config)
        solution = " ".join(task.make_chain(rng, question, config))
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
