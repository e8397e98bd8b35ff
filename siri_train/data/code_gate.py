"""Checks of problems whose answer is a program: each reference must pass its own tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from siri_train.data.questions import Question
from siri_train.data.refusals import refuse
from siri_train.monitor.progress import Notice
from siri_train.rewards import CodeVerifier, Verifier
from siri_train.rewards.code.extract import last_program

# Problems that share one reward.batch_timeout, as the responses of a step do.
_AT_A_TIME = 64


def check_programs(questions: Sequence[Question], key: str, verifier: Verifier) -> list[str]:
    """Check that problems and verifier belong together, and that every reference is right.

    Args:
        questions: of one list; those of the form ``"box"`` are only counted.
        key: ``data.train`` or ``data.eval``, for messages.
        verifier: the run's.

    Returns:
        A notice if problems have no reference, so that nothing is known about their tests.

    Raises:
        ConfigError: problems without a verifier for programs, a question without tests for one, or
            a reference that fails its tests.
    """
    programs = [question for question in questions if question.form == "code"]
    runs_programs = hasattr(verifier, "extract")
    if not runs_programs:
        reason = "its answer is a program; set reward.verifier=code"
        refuse(key, [(question, reason) for question in programs], len(questions))
    if isinstance(verifier, CodeVerifier):
        reason = (
            "its answer is no program, but reward.verifier is code; set format=code of the source, "
            "or another verifier"
        )
        boxed = [(question, reason) for question in questions if question.form == "box"]
        refuse(key, boxed, len(questions))
    refuse(key, _failing(programs, key, verifier), len(questions))
    bare = sum(question.solution is None for question in programs)
    if bare:
        return [f"{key}: {bare} of {len(programs)} problems have no reference to try their tests"]
    return []


def _failing(
    programs: Sequence[Question], key: str, verifier: Verifier
) -> Iterator[tuple[Question, str]]:
    known = [question for question in programs if question.solution is not None]
    progress = Notice(key, "references run", len(known))
    for first in range(0, len(known), _AT_A_TIME):
        progress(first)
        part = known[first : first + _AT_A_TIME]
        pairs = [
            (last_program(question.solution or "", think="none"), question.answer)
            for question in part
        ]
        whys = [""] * len(part)
        if isinstance(verifier, CodeVerifier):
            judged = verifier.judge(pairs)
            verdicts, whys = [each.right for each in judged], [each.why for each in judged]
        else:
            verdicts = verifier.verdicts(pairs)
        for question, verdict, why in zip(part, verdicts, whys, strict=True):
            if verdict is not True:
                how = "could not be judged" if verdict is None else "fails its own tests"
                yield question, f"the reference {how} ({why}); correct or drop the row"
