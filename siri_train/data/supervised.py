r"""Worked solutions as supervised examples that end in ``\boxed{}`` or in a program.

A model that never boxes its answers earns no reward, and groups without a reward give no gradient.
A short supervised stage teaches it the form that the reward reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from siri_train.data.questions import Question
from siri_train.data.rows import DataError
from siri_train.model.chat_template import Template, answer_end_id, encode_prompt
from siri_train.model.think_marks import opens_think, think_problem
from siri_train.rewards.exact import exact_match
from siri_train.rewards.extract import THINK_CLOSE, THINK_OPEN, last_boxed, last_boxed_span

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_TAIL = re.compile(r"\s*####\s*(?P<answer>[^\n]*?)\s*\Z")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


@dataclass(frozen=True)
class SupervisedExample:
    """A prompt and the response to learn.

    Attributes:
        prompt_ids: token ids of the prompt, template included; no loss on them.
        response_ids: token ids of the response, the end-of-sequence token last.
        weights: loss weight of each response token, or None for all 1.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    weights: list[float] | None = None


class SupervisedExamples(NamedTuple):
    """Examples, and the number of questions that were too long."""

    examples: list[SupervisedExample]
    skipped: int


def supervised_text(question: Question, *, think: bool = False) -> str:
    r"""A question's worked solution as the response to learn.

    GSM8K's calculator annotations (``<<48/2=24>>``) are dropped and its tail (``#### 72``) becomes
    a last sentence that ends in ``\boxed{72}``, without thousands commas. A solution that already
    ends in the right box stays as it is; any other gets the sentence appended. That of a problem
    whose answer is a program is the response as it is, with empty thoughts for ``think``.

    Args:
        question: with a solution.
        think: put the reasoning between ``<think>`` and ``</think>`` and only the last sentence
            behind it, for rewards that require the mark.

    Returns:
        The text, whose last box, or program, is right by the reward's own check.

    Raises:
        DataError: no solution, or one whose ``####`` answer is not the question's.
    """
    if question.solution is None:
        raise DataError(f"{_name(question)} has no solution to learn from")
    if question.form == "code":
        return f"{THINK_OPEN}\n\n{THINK_CLOSE}\n" * think + question.solution
    text = _ANNOTATION.sub("", question.solution).strip()
    answer = question.answer
    tail = _TAIL.search(text)
    if tail is not None:
        if not exact_match(tail["answer"], answer):
            raise DataError(
                f"{_name(question)}: the solution ends in {tail['answer']!r}, "
                f"the answer is {answer!r}"
            )
        text = text[: tail.start()]
    boxed = last_boxed(text)
    if boxed is not None and exact_match(boxed, answer) and not think:
        return text
    reasoning = "\n".join(line.rstrip() for line in text.splitlines())
    final = f"The final answer is \\boxed{{{_THOUSANDS.sub('', last_boxed(answer) or answer)}}}"
    if think:
        return f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n{final}"
    return f"{reasoning}\n{final}" if reasoning else final


def instruction_for(question: Question, instruction: str | None) -> str | None:
    """The instruction behind a question: a problem says itself how its program is to be written.

    Args:
        question: any.
        instruction: the recipe's ``data.instruction``; None: the template's default.
    """
    return "" if instruction is None and question.form == "code" else instruction


def _name(question: Question) -> str:
    return question.where or f"question {question.id}"


def supervised_examples(
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    template: Template = "chat",
    system: str | None = None,
    instruction: str | None = None,
    max_len: int | None = None,
    answer_weight: float = 1.0,
    think: bool = False,
) -> SupervisedExamples:
    """Encode questions and their solutions for the supervised stage.

    Args:
        questions: each with a solution.
        tokenizer: a transformers tokenizer.
        template: as in ``encode_prompt``, like the two following; use what the rollouts use.
        system: see ``encode_prompt``.
        instruction: see ``encode_prompt``.
        max_len: examples of more tokens, prompt and response together, are left out and counted.
        answer_weight: loss weight of the few tokens inside the final box; every other token, the
            end of sequence included, weighs 1.
        think: see ``supervised_text``; the opening mark is left out where the prompt's template
            ends with one.

    Returns:
        ``SupervisedExamples``: examples in the order of the questions, and the count left out.

    Raises:
        DataError: a question without a usable solution or whose prompt cannot be encoded (file and
            line), a tokenizer or template that cannot write the marks of ``think``, no question at
            all, or all left out.
    """
    end = answer_end_id(tokenizer, template)
    examples = []
    skipped = 0
    for question in questions:
        try:
            prompt = encode_prompt(
                tokenizer,
                question.prompt,
                template=template,
                system=system,
                instruction=instruction_for(question, instruction),
                messages=question.messages,
            )
        except ValueError as error:
            raise DataError(f"{question.where or question.id}: {error}") from error
        if think and question is questions[0]:
            problem = think_problem(tokenizer, "required", prompt, None)
            if problem is not None:
                raise DataError(problem)
        text = supervised_text(question, think=think)
        if think and opens_think(tokenizer, prompt):
            text = text.removeprefix(f"{THINK_OPEN}\n")
        response, weights = _encode_response(tokenizer, text, end, answer_weight)
        if max_len is not None and len(prompt) + len(response) > max_len:
            skipped += 1
        else:
            examples.append(SupervisedExample(prompt, response, weights))
    if not examples:
        raise DataError(
            f"no supervised example: {len(questions)} questions, {skipped} of them longer than "
            f"{max_len} tokens"
        )
    return SupervisedExamples(examples, skipped)


def _encode_response(
    tokenizer: Any, text: str, end: int, answer_weight: float
) -> tuple[list[int], list[float] | None]:
    if answer_weight == 1.0:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], end], None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    first, last = last_boxed_span(text) or (0, 0)
    weights = [
        answer_weight if start < last and stop > first else 1.0
        for start, stop in encoded["offset_mapping"]
    ]
    return [*encoded["input_ids"], end], [*weights, 1.0]
