r"""Checks of the questions: data that would silently give wrong rewards are refused or reported.

The checks look at the questions as they were read, before any model is loaded. Data that can only
give wrong rewards end the run, with the file, the line, the reason and the number of such rows:
backslashes lost in JSON, gold answers that no response can match, one question with two answers,
held-out questions in the training data. Data that may be intended, as repeated questions, are
reported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from siri_train import distributed
from siri_train.config.base import ConfigError
from siri_train.config.method import RewardConfig
from siri_train.config.run import RunConfig
from siri_train.data.code_gate import check_programs
from siri_train.data.damage import control_character, eaten_backslash, prose
from siri_train.data.questions import Question
from siri_train.data.refusals import place, refuse
from siri_train.data.repeats import loose_key, strict_key
from siri_train.data.sources import EncodedQuestion
from siri_train.model.think_marks import think_problem
from siri_train.rewards import (
    CodeVerifier,
    SandboxError,
    Verifier,
    final_answer,
    last_boxed,
    make_verifier,
)

# Above this share of the held-out questions the evaluation is not held out.
_MOST_SHARED = 0.01


def check_data(
    train: Sequence[Question], evaluation: Sequence[Question], reward: RewardConfig
) -> None:
    """Check the training questions, the held-out questions, and that they do not overlap.

    Args:
        train: of ``data.train``; may be empty.
        evaluation: of ``data.eval``; may be empty.
        reward: its verifier checks the golds, with the processes that training will use.

    Raises:
        ConfigError: one line with the first row, the reason and the number of rows: see
            :func:`check_questions` and :func:`check_leak`; or the verifier's package or sandbox is
            missing.
    """
    try:
        verifier = make_verifier(
            reward.verifier,
            workers=reward.workers,
            timeout=reward.timeout,
            batch_timeout=reward.batch_timeout,
            sandbox=reward.sandbox,
        )
    except (ImportError, SandboxError) as error:
        raise ConfigError(f"reward.verifier: {error}") from error
    notices: list[str] = [verifier.about] if isinstance(verifier, CodeVerifier) else []
    with closing(verifier):
        for key, questions in (("data.train", train), ("data.eval", evaluation)):
            notices += check_questions(questions, key, verifier)
    for name in dict.fromkeys(question.set for question in evaluation):
        named = [question for question in evaluation if question.set == name]
        notices += check_leak(train, named, f"data.eval, set {name}" if name else "data.eval")
    if distributed.is_main():
        for notice in notices:
            print(notice, file=sys.stderr, flush=True)


def check_questions(questions: Sequence[Question], key: str, verifier: Verifier) -> list[str]:
    """Check the questions of one list.

    Args:
        questions: as read.
        key: ``data.train`` or ``data.eval``, for messages.
        verifier: the run's.

    Returns:
        Notices about data that may be intended: repeated questions, answers like sentences.

    Raises:
        ConfigError: a damaged text, a gold answer that no response can match, or one question with
            two answers; a problem of :func:`siri_train.data.code_gate.check_programs`.
    """
    notices = check_programs(questions, key, verifier)
    boxed = [question for question in questions if question.form == "box"]
    refuse(key, damaged(boxed), len(questions))
    refuse(key, unmeetable(boxed, verifier), len(questions))
    pairs = list(_repeated(questions))
    refuse(key, _contradictions(pairs, verifier), len(questions))
    if pairs:
        first, again = pairs[0]
        notices.append(
            f"{key}: {len(pairs)} of {len(questions)} questions repeat an earlier one but for "
            f"blanks, case or punctuation (the first: {place(again)} repeats {place(first)})"
        )
        differ = [pair for pair in pairs if not same_answer(*pair, verifier)]
        if differ:
            first, again = differ[0]
            notices.append(
                f"{key}: {len(differ)} of these have another answer (the first: {place(again)}: "
                f"{again.answer!r:.60}, {place(first)}: {first.answer!r:.60})"
            )
    wordy = [q for q in boxed if prose(q.answer) == "long"]
    if wordy:
        notices.append(
            f"{key}: {len(wordy)} of {len(questions)} answers are long for a box (the first: "
            f"{place(wordy[0])}: {wordy[0].answer!r:.60})"
        )
    return notices


def check_leak(
    train: Sequence[Question], evaluation: Sequence[Question], named: str = "data.eval"
) -> list[str]:
    """Check that held-out questions are not in the training data.

    Blanks, case and punctuation are ignored.

    Args:
        train: the training questions.
        evaluation: the held-out questions of one set.
        named: what they are called in messages.

    Returns:
        A notice if a few are in both, else nothing.

    Raises:
        ConfigError: more than 1 % of the held-out questions are in the training data.
    """
    trained: dict[str, Question] = {}
    for question in train:
        trained.setdefault(loose_key(question), question)
    shared = [q for q in evaluation if loose_key(q) in trained]
    if not shared:
        return []
    first, there = shared[0], trained[loose_key(shared[0])]
    text = (
        f"{named}: {len(shared)} of {len(evaluation)} questions are also in data.train, but for "
        f"blanks, case or punctuation (the first: {place(first)}, in train {place(there)})"
    )
    if len(shared) > _MOST_SHARED * len(evaluation):
        raise ConfigError(f"{text}; give eval another file, split, offset or seed")
    return [text]


def check_think(
    config: RunConfig, tokenizer: Any, questions: Sequence[EncodedQuestion], model_config: Any
) -> None:
    """Refuse a tokenizer or a template with which every reward would be 0.

    Args:
        config: the recipe; ``reward.think`` is used.
        tokenizer: the model's.
        questions: encoded; only the first is used.
        model_config: the model's transformers configuration.

    Raises:
        ConfigError: see :func:`siri_train.model.think_marks.think_problem`.
    """
    nested = hasattr(model_config, "get_text_config")
    text = model_config.get_text_config() if nested else model_config
    rows = getattr(text, "vocab_size", None)
    problem = think_problem(tokenizer, config.reward.think, questions[0].prompt_ids, rows)
    if problem is not None:
        raise ConfigError(problem)


def damaged(questions: Sequence[Question]) -> Iterator[tuple[Question, str]]:
    """Questions with a text that lost a backslash, or a control character in the answer.

    Args:
        questions: of the form ``"box"``.

    Yields:
        Each such question, and what is wrong with it.
    """
    for question in questions:
        texts = {"question": question.prompt, "solution": question.solution or ""}
        for name, text in {"answer": question.answer, **texts}.items():
            reason = eaten_backslash(text)
            if reason is None and name == "answer":
                reason = control_character(text)
            if reason is not None:
                yield question, f"the {name} {reason}"
                break


def unmeetable(questions: Sequence[Question], verifier: Verifier) -> Iterator[tuple[Question, str]]:
    """Questions for which even a response that boxes the gold answer would get reward 0.

    Args:
        questions: of the form ``"box"``.
        verifier: that grades the responses.

    Yields:
        Each such question, and why.
    """
    answers = [_boxed_by_a_response(question.answer) for question in questions]
    verdicts = verifier.verdicts(
        [(answer, question.answer) for answer, question in zip(answers, questions, strict=True)]
    )
    for question, verdict in zip(questions, verdicts, strict=True):
        gold = repr(question.answer)
        gold = gold if len(gold) <= 80 else f"{gold[:76]}...'"
        if "####" in question.answer:
            yield question, f"the answer {gold} holds '####'; set answer_after='####' of the source"
        elif prose(question.answer) == "prose":
            yield (
                question,
                f"the answer {gold} is prose, which no response will box word for word; name the "
                "field or the mark (answer_field, answer_after) of the final answer",
            )
        elif verdict is not True:
            why = "cannot be judged" if verdict is None else "is not equal to itself"
            yield (
                question,
                f"the answer {gold} {why} when a response boxes it, so no response can be paid; "
                "correct or drop the row",
            )


def _boxed_by_a_response(gold: str) -> str | None:
    inside = last_boxed(gold)
    return final_answer(f"</think> \\boxed{{{gold if inside is None else inside}}}")


def _repeated(questions: Sequence[Question]) -> Iterator[tuple[Question, Question]]:
    """(first, again) for every question that repeats an earlier one."""
    first: dict[str, Question] = {}
    for question in questions:
        earlier = first.setdefault(loose_key(question), question)
        if earlier is not question:
            yield earlier, question


def _contradictions(
    pairs: Sequence[tuple[Question, Question]], verifier: Verifier
) -> Iterator[tuple[Question, str]]:
    # Texts that differ in case or punctuation may have different answers: 5! and 5.
    same = [(a, b) for a, b in pairs if strict_key(a) == strict_key(b)]
    for first, again in same:
        if not same_answer(first, again, verifier):
            yield (
                again,
                f"the question of {place(first)} again, with another answer: "
                f"{again.answer!r:.60}, there {first.answer!r:.60}; drop one",
            )


def same_answer(one: Question, two: Question, verifier: Verifier) -> bool:
    """Whether the gold answers of two questions are equal.

    Args:
        one: a question.
        two: another.
        verifier: that grades the responses; not asked where the texts are the same.
    """
    if one.answer == two.answer or "code" in (one.form, two.form):
        return one.answer == two.answer
    pairs = [
        (_boxed_by_a_response(one.answer), two.answer),
        (_boxed_by_a_response(two.answer), one.answer),
    ]
    return any(verdict is True for verdict in verifier.verdicts(pairs))
