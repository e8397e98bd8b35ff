r"""Answer checking: is what stands in the box equal to the gold answer?

Verifiers with one interface. ``ExactVerifier`` compares numbers and texts and evaluates nothing
(enough for AIME, GSM8K and every generator with integer answers). ``MathVerifier`` asks the same
first and math-verify about the rest, in processes that cannot take the training loop down.
``CodeVerifier`` (``code/verifier.py``) runs programs.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from siri_train.registry import Registry, one_of
from siri_train.rewards.code.sandbox import SandboxMode
from siri_train.rewards.code.verifier import CodeVerifier
from siri_train.rewards.cost import rough_cost
from siri_train.rewards.exact import exact_match
from siri_train.rewards.extract import last_boxed
from siri_train.rewards.pool import WorkerPool, WorkerStartError
from siri_train.rewards.rules import decide
from siri_train.rewards.shares import ask_in_shares

logger = logging.getLogger(__name__)

Pair = tuple["str | None", str]
Question = tuple[tuple[str, ...], tuple[str, ...]]
"""Parts of an answer and of its gold; each part must equal its partner."""

_WORKER = str(Path(__file__).with_name("math_worker.py"))
_WORKER_MEMORY = 4 << 30
_LONGEST_GOLD = 2000
# Processor seconds; most honest items need a few milliseconds, and the system counts in ten.
_LEAST_SHARE = 0.02
_DEEPEST = 16


class Verifier(Protocol):
    """The methods that grading needs from a verifier.

    One whose answers stand in no box also has ``extract(text, *, think)``, which finds the answer
    in a response as ``final_answer`` does.
    """

    def verdicts(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """For each (answer or None, gold), in order, whether the answer is right.

        None where the answer cannot be scored for a reason that the model cannot bring about.
        """

    def close(self) -> None:
        """Let go of processes, if there are any."""


_Self = TypeVar("_Self", bound="_Managed")


class _Managed:
    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of processes, if there are any."""

    def grade_many(self: Verifier, pairs: Sequence[Pair]) -> list[bool]:
        """As :meth:`Verifier.verdicts`, with False for what cannot be scored. Scripts call it."""
        return [verdict is True for verdict in self.verdicts(pairs)]


class ExactVerifier(_Managed):
    """Equal by rule, see ``exact_match``; needs nothing installed, never fails."""

    def verdicts(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """One bool for each (answer or None, gold), in order; None is never right."""
        return [answer is not None and exact_match(answer, gold) for answer, gold in pairs]


class MathVerifier(_Managed):
    r"""Mathematical equality: by rule first, by math-verify 0.9 where a value must be computed.

    Decided here, before anything is evaluated:

    * whatever ``rules.decide`` can decide: numbers, units, words, choices, lists, sets, tuples,
      intervals and matrices part by part, named values (``x = 42`` is 42; ``41 = 42`` is wrong);
    * if the gold answer is an integer, a box that leaves something to compute (``40+2``, ``9!``) is
      wrong. DeepScaleR's grader does the same;
    * a box of more than ``max_chars`` characters, with unbalanced braces or nested deeper than
      16 is wrong.

    The rest goes to math-verify, each expression as the content of one box and never as raw text,
    in processes of its own that are limited in time (processor time inside, wall time outside) and
    memory. An item that uses up its processor time or memory is wrong and the batch goes on. The
    caller's process
    keeps its alarms and signal handlers, any thread may call, and calls from several threads wait
    for each other.

    Args:
        workers: processes; they start at the first item that needs one (about 2 s each).
        timeout: seconds of processor time for one item. Its process is killed from outside after
            ``3 * timeout + 2`` seconds of wall time.
        max_chars: longest box that is looked at.
        batch_timeout: seconds of wall time for the items of one call together; what is left then
            could not be judged. What looks slow is asked last, and where the budget could be used
            up each item first gets an equal share of it, then those that need more get the rest.
            None: no limit.

    Raises:
        ImportError: math-verify is not installed.
        ValueError: workers < 1, timeout <= 0, batch_timeout <= 0 or max_chars < 1.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        timeout: float = 1.0,
        max_chars: int = 200,
        batch_timeout: float | None = 60.0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers: got {workers}, takes at least 1")
        if not timeout > 0:
            raise ValueError(f"timeout: got {timeout}, takes a positive number of seconds")
        if max_chars < 1:
            raise ValueError(f"max_chars: got {max_chars}, takes at least 1")
        if batch_timeout is not None and not batch_timeout > 0:
            raise ValueError(
                f"batch_timeout: got {batch_timeout}, takes a positive number of seconds or None"
            )
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError(
                "checking answers mathematically needs math-verify: pip install math-verify==0.9.0 "
                "(or choose the exact verifier)"
            )
        self._max_chars = max_chars
        self._pool = WorkerPool(
            _WORKER,
            [str(timeout), str(_WORKER_MEMORY)],
            workers=workers,
            wall_s=3 * timeout + 2,
            cpu_s=timeout,
        )
        self._batch_timeout = batch_timeout
        self._timeout, self._workers = timeout, workers
        self._said_why = False

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the running workers; empty before the first item that needs one."""
        return self._pool.pids

    def verdicts(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """Grade answers, telling wrong from not scorable.

        Args:
            pairs: (content of the box or None, gold answer) each.

        Returns:
            True or False for each pair, in order; None where math-verify was needed and could not
            judge: none of its processes could be started, two in a row were stopped, killed or
            silent, or ``batch_timeout`` was used up. What the answer itself causes (too long,
            out of processor time, a crash that repeats in a fresh process) is False: a model must
            not be able to leave its group by breaking the checker.
        """
        results: list[bool | None] = [False] * len(pairs)
        left: dict[Question, list[int]] = {}
        for index, (answer, gold) in enumerate(pairs):
            decided = False if answer is None else self._decide(answer, gold)
            if isinstance(decided, bool):
                results[index] = decided
            else:  # the rollouts of a group often agree: ask once
                left.setdefault(decided, []).append(index)
        if left:
            # What may be slow comes last: it must not use up the time of the others.
            left = dict(sorted(left.items(), key=lambda asked: rough_cost("".join(asked[0][0]))))
            items = [{"answer": answer, "gold": gold} for answer, gold in left]
            try:
                answers, own = ask_in_shares(
                    self._pool,
                    items,
                    budget_s=self._batch_timeout,
                    timeout_s=self._timeout,
                    workers=self._workers,
                    least_s=_LEAST_SHARE,
                )
            except WorkerStartError as error:
                if not self._said_why:
                    logger.warning("answers not scored: math-verify does not start: %s", error)
                    self._said_why = True
                for places in left.values():
                    for index in places:
                        results[index] = None
                return results
            for number, (places, reply) in enumerate(zip(left.values(), answers, strict=True)):
                judged = reply is not None or number in own
                for index in places:
                    results[index] = (reply or {}).get("equal") is True if judged else None
        return results

    def close(self) -> None:
        """End the worker processes; the next call that needs them starts new ones."""
        self._pool.close()

    def _decide(self, answer: str, gold: str) -> bool | Question:
        """A verdict, or the parts of the answer and the gold that math-verify has to compare."""
        verdict = decide(answer, gold)
        if isinstance(verdict, bool):
            return verdict
        boxed = last_boxed(gold)
        gold = (gold if boxed is None else boxed).strip()
        answer = answer.strip()
        if len(answer) > self._max_chars or len(gold) > _LONGEST_GOLD:
            return False
        if not _is_one_box(answer) or not _is_one_box(gold):
            return False
        parts = [pair for pair in dict.fromkeys(verdict) if _are_boxes(pair)]
        if len(parts) < len(set(verdict)):
            return False
        return tuple(part for part, _ in parts), tuple(part for _, part in parts)


@dataclass(frozen=True)
class Limits:
    """The processes and the time that a recipe grants a verifier.

    Args:
        workers: processes.
        timeout: seconds of processor time for one item.
        max_chars: longest answer that is looked at.
        batch_timeout: seconds of wall time for the items of one call together; None: no limit.
        sandbox: what a verifier that runs programs does where a promise does not hold.
    """

    workers: int = 2
    timeout: float = 1.0
    max_chars: int = 200
    batch_timeout: float | None = 60.0
    sandbox: SandboxMode = "strict"


VERIFIERS: Registry[Callable[[Limits], Verifier]] = Registry("verifier")
"""Every verifier by name, as a function that builds it. A new one is one entry."""
VERIFIERS["exact"] = lambda limits: ExactVerifier()
VERIFIERS["math_verify"] = lambda limits: MathVerifier(
    workers=limits.workers,
    timeout=limits.timeout,
    max_chars=limits.max_chars,
    batch_timeout=limits.batch_timeout,
)
VERIFIERS["code"] = lambda limits: CodeVerifier(
    workers=limits.workers,
    timeout=limits.timeout,
    batch_timeout=limits.batch_timeout,
    sandbox=limits.sandbox,
)


def make_verifier(
    kind: str,
    *,
    workers: int = 2,
    timeout: float = 1.0,
    max_chars: int = 200,
    batch_timeout: float | None = 60.0,
    sandbox: SandboxMode = "strict",
) -> Verifier:
    """The verifier a recipe names.

    Args:
        kind: a name in `VERIFIERS`: ``"exact"``, ``"math_verify"``, ``"code"`` or one that a
            plug-in adds.
        workers: see ``MathVerifier``; ignored by ``"exact"``, as are the following.
        timeout: see ``MathVerifier``.
        max_chars: see ``MathVerifier``.
        batch_timeout: see ``MathVerifier``.
        sandbox: see ``CodeVerifier``; ignored by the others.

    Returns:
        A verifier, to be closed at the end.

    Raises:
        ImportError: math-verify is needed and not installed.
        SandboxError: programs cannot be shut in here.
        ValueError: an unknown kind or an impossible limit.
    """
    if kind not in VERIFIERS:
        raise ValueError(f"verifier: got {kind!r}; {one_of(VERIFIERS, str(kind), chr(39))}")
    return VERIFIERS[kind](Limits(workers, timeout, max_chars, batch_timeout, sandbox))


def _are_boxes(pair: tuple[str, str]) -> bool:
    return all(map(_is_one_box, pair))


def _is_one_box(content: str) -> bool:
    """Whether ``content`` put into a box is that box's content, and not nested absurdly deep."""
    if last_boxed(f"\\boxed{{{content}}}") != content:
        return False
    depth = 0
    for character in content:
        depth += (character in "([{") - (character in ")]}")
        if depth > _DEEPEST:
            return False
    return True
