"""Reads a recipe's sources, encodes the prompts, and chooses the questions of each step."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.config.data import DataConfig, SourceConfig
from siri_train.config.run import RunConfig
from siri_train.data.demo_task import questions as embedded
from siri_train.data.fields import Messages
from siri_train.data.problems import OURS, load_problems
from siri_train.data.questions import (
    Question,
    find_first,
    load_questions,
    reasoning_gym_questions,
)
from siri_train.data.rows import DataError, MissingDataError
from siri_train.data.supervised import instruction_for
from siri_train.files import explained
from siri_train.model.chat_template import encode_prompt
from siri_train.monitor.progress import Notice

# Columns of problems whose answer is a program, in a message that lists a row's columns.
_PROBLEM = re.compile(r"\b(?:entry_point|test_list)\b")


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as token ids.

    Args:
        id: unique within its source.
        prompt_ids: token ids of the prompt, template included.
        answer: the right answer, as text.
        prompt: the question's text.
        messages: as in :class:`siri_train.data.questions.Question`.
        where: as in :class:`siri_train.data.questions.Question`.
        set: as in :class:`siri_train.data.questions.Question`.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer: str
    prompt: str
    messages: Messages = ()
    where: str = ""
    set: str = ""


def read_sources(sources: Sequence[SourceConfig], default_split: str, key: str) -> list[Question]:
    """All questions of a list of sources, in order.

    Args:
        sources: the recipe's ``data.train`` or ``data.eval``.
        default_split: for folders and hub sets whose source names no split.
        key: of the list in the recipe, for messages.

    Raises:
        ConfigError: naming the source (``data.train.0``): a missing file or package, a malformed
            row (file, line and reason), params that it does not take, or no question at all.
    """
    questions: list[Question] = []
    for number, source in enumerate(sources):
        questions += read_source(source, default_split, f"{key}.{number}")
    if not questions:
        raise ConfigError(f"{key}: the sources hold no question; add one that does")
    return questions


def read_source(source: SourceConfig, default_split: str, named: str) -> list[Question]:
    """The questions of one source.

    Args:
        source: an entry of the recipe's ``data.train`` or ``data.eval``.
        default_split: for folders and hub sets where it names no split.
        named: the source in the recipe, as ``data.train.0``, for messages.

    Returns:
        Its questions; none, with a notice, where it is not required and a package is missing.

    Raises:
        ConfigError: see :func:`read_sources`.
    """
    try:
        read = _read(source, default_split, named)
    except MissingDataError as error:
        raise ConfigError(f"{named}.path: {' '.join(str(error).splitlines())}") from error
    except (DataError, ConfigError) as error:
        text = " ".join(str(error).splitlines())
        if source.format == "answers" and _PROBLEM.search(text):
            text += "; problems of HumanEval or MBPP need format=code"
        raise ConfigError(f"{named}: {text}") from error
    except OSError as error:
        raise ConfigError(f"{named}.path: {explained(error)}") from error
    except ImportError as error:
        if source.required:
            raise ConfigError(f"{named}: {source.kind}: {error}") from error
        print(f"data: {source.kind} {source.task} left out: {error}", flush=True)
        return []
    return [replace(q, set=source.name) for q in read] if source.name else read


def read_evaluation(config: RunConfig) -> list[Question]:
    """The held-out questions of a recipe.

    Args:
        config: the recipe; ``data.eval`` and ``eval.select`` are used.

    Raises:
        ConfigError: see :func:`read_sources`; or the set that ``eval.select`` names has no question
            because its sources were left out.
    """
    questions = read_sources(config.data.eval, "test", "data.eval")
    select = config.eval.select
    if select is not None and all(question.set != select for question in questions):
        raise ConfigError(
            f"eval.select: the set {select} has no question, because its sources were left out; "
            "install what they need, or name another set"
        )
    return questions


def responses_in_all(config: RunConfig, questions: Sequence[EncodedQuestion]) -> int:
    """The responses that one evaluation samples.

    Args:
        config: the recipe; ``data.eval`` and ``eval.samples`` are used.
        questions: its held-out questions.
    """
    return sum(config.samples_of(question.set) for question in questions)


def _read(source: SourceConfig, default_split: str, named: str) -> list[Question]:
    progress = Notice(f"{named}.size", "questions made", source.size)
    if source.kind == "embedded":
        return embedded.questions(
            source.size,
            seed=source.seed,
            held_out=default_split == "test",
            progress=progress,
            task=source.task or "arithmetic",
            **source.params,
        )
    if source.kind == "reasoning_gym":
        return reasoning_gym_questions(
            source.task, source.size, source.seed, progress=progress, **source.params
        )
    split = source.split or default_split
    if source.kind == "embedded_code":
        return load_problems(OURS, split=split, limit=source.limit, offset=source.offset)
    paths = [source.path] if isinstance(source.path, str) else source.path
    if source.format == "code":
        return load_problems(
            find_first(paths), split=split, limit=source.limit, offset=source.offset
        )
    return load_questions(
        find_first(paths),
        split=split,
        question_field=source.question_field,
        answer_field=source.answer_field,
        answer_after=source.answer_after,
        solution_field=source.solution_field,
        limit=source.limit,
        offset=source.offset,
    )


def encode_questions(
    questions: Sequence[Question], tokenizer: Any, config: DataConfig
) -> list[EncodedQuestion]:
    """Encode every prompt with the recipe's template.

    ``require_chat`` must have checked before that the template can write questions at all.

    Args:
        questions: as read, at least one.
        tokenizer: the model's.
        config: the recipe's ``data`` section.

    Returns:
        One for each question, in order.

    Raises:
        ConfigError: a prompt that the tokenizer or its template refuses or that has no tokens (file
            and line); or prompts over ``data.max_prompt_len`` (how many, the longest one).
    """
    progress = Notice("data", "prompts encoded", len(questions))
    encoded: list[EncodedQuestion] = []
    for question in questions:
        progress(len(encoded))
        encoded.append(_encoded(question, tokenizer, config))
    longest = max(encoded, key=lambda q: len(q.prompt_ids))
    if len(longest.prompt_ids) > config.max_prompt_len:
        over = sum(len(q.prompt_ids) > config.max_prompt_len for q in encoded)
        raise ConfigError(
            f"data.max_prompt_len: {over} of {len(encoded)} prompts are longer than "
            f"{config.max_prompt_len} tokens; the longest, {longest.where or longest.id}, has "
            f"{len(longest.prompt_ids)}; raise it, or leave those out"
        )
    return encoded


def _encoded(question: Question, tokenizer: Any, config: DataConfig) -> EncodedQuestion:
    try:
        ids = encode_prompt(
            tokenizer,
            question.prompt,
            template=config.template,
            system=config.system,
            instruction=instruction_for(question, config.instruction),
            messages=question.messages,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"data: {question.where or question.id}: {error}") from error
    return EncodedQuestion(
        id=question.id,
        prompt_ids=tuple(ids),
        answer=question.answer,
        prompt=question.prompt,
        messages=question.messages,
        where=question.where,
        set=question.set,
    )


class QuestionSampler:
    """Chooses the questions of each step: a new permutation every epoch, by the step alone.

    So a resumed run gets the same questions as an uninterrupted one.

    Args:
        questions: all training questions.
        per_step: questions a step.
        seed: of the permutations.

    Raises:
        ConfigError: fewer questions than one step takes.
    """

    def __init__(self, questions: Sequence[EncodedQuestion], per_step: int, seed: int) -> None:
        if len(questions) < per_step:
            raise ConfigError(
                f"rollout.prompts (x rollout.oversample x rollout.max_rounds): {per_step} "
                f"questions a step, but the training data holds only {len(questions)}; lower "
                "rollout.prompts, or add questions"
            )
        self.questions = questions
        self.per_step = per_step
        self.seed = seed
        self._orders: dict[int, list[int]] = {}

    def __call__(self, step: int) -> list[EncodedQuestion]:
        """The questions of 0-based ``step``."""
        first = step * self.per_step
        return [
            self.questions[
                self._order(position // len(self.questions))[position % len(self.questions)]
            ]
            for position in range(first, first + self.per_step)
        ]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self.questions)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]
