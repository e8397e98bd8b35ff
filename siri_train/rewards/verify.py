r"""Answer checking: is what stands in the box equal to the gold answer?

Two verifiers with one interface. ``ExactVerifier`` compares numbers and texts and evaluates nothing
(enough for AIME, GSM8K and every generator with integer answers). ``MathVerifier`` asks the same
first and math-verify about the rest, in processes that cannot take the training loop down.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, TypeVar

from siri_train.rewards.exact import as_number, exact_match, exact_verdict, normalise
from siri_train.rewards.extract import last_boxed
from siri_train.rewards.pool import WorkerPool, WorkerStartError

logger = logging.getLogger(__name__)

Pair = tuple["str | None", str]
VerifierKind = Literal["exact", "math_verify"]

_WORKER = str(Path(__file__).with_name("math_worker.py"))
_WORKER_MEMORY = 4 << 30
_LONGEST_GOLD = 2000
_DEEPEST = 16

# "x = 42" names its value; "41 = 42" is a claim that math-verify reads as 42.
_NAMED = re.compile(r"\\?[A-Za-z][A-Za-z ]*(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?=(?P<value>.*)", re.S)
_RELATION = re.compile(r"=|\\(?:eq|equiv|approx|sim)(?![A-Za-z])")
_OPERATION = re.compile(
    r"[+*/^!|]|(?<=[^\s(\[{])-|[0-9]\s+[0-9]|[0-9)}]\s*\(|"
    r"\\(?:cdot|times|div|frac|sqrt|sum|prod|int|lim|d?binom|log|ln|exp|sin|cos|tan|gcd|lcm|max|min|"
    r"l?floor|l?ceil|pmod|bmod|mod|pm|mp|circ|ast|choose|over)(?![A-Za-z])"
)


class Verifier(Protocol):
    """What the reward needs from a verifier."""

    def grade_many(self, pairs: Sequence[Pair]) -> list[bool]:
        """One bool for each (answer or None, gold), in order."""

    def verdicts(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """As ``grade_many``, with None where the answer could not be scored."""

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


class ExactVerifier(_Managed):
    """Equal numbers or equal texts, see ``exact_match``; needs nothing installed, never fails."""

    def grade_many(self, pairs: Sequence[Pair]) -> list[bool]:
        """One bool for each (answer or None, gold), in order; None is never right."""
        return [answer is not None and exact_match(answer, gold) for answer, gold in pairs]

    def verdicts(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """The same as ``grade_many``: everything can be scored."""
        return list(self.grade_many(pairs))


class MathVerifier(_Managed):
    r"""Mathematical equality by math-verify 0.9, with its traps closed.

    Decided here, in this order, before anything is evaluated:

    * equal numbers and equal texts are right, different numbers wrong (``exact_verdict``);
    * a percent sign on one side only is wrong;
    * a box of more than ``max_chars`` characters, with unbalanced braces or nested deeper than
      16 is wrong;
    * an equation is read as its right side if its left side is a name (``x = 42``), else wrong
      (``41 = 42``), unless the gold answer is an equation too;
    * if the gold answer is an integer, a box that leaves something to compute (``40+2``, ``9!``) is
      wrong. DeepScaleR's grader does the same.

    The rest goes to math-verify, as the content of one box and never as raw text, in processes of
    its own that are limited in time (processor time inside, wall time outside) and memory. An item
    that uses up its processor time or memory is wrong and the batch goes on. The caller's process
    keeps its alarms and signal handlers, any thread may call, and calls from several threads wait
    for each other.

    Args:
        workers: processes; they start at the first item that needs one (about 2 s each).
        timeout: seconds of processor time for one item. Its process is killed from outside after
            ``3 * timeout + 2`` seconds of wall time.
        max_chars: longest box that is looked at.
        batch_timeout: seconds of wall time for the items of one call together; what is left then
            could not be judged. None: no limit.

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
        self._said_why = False

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the running workers; empty before the first item that needs one."""
        return self._pool.pids

    def grade_many(self, pairs: Sequence[Pair]) -> list[bool]:
        """Grade answers.

        Args:
            pairs: (content of the box or None, gold answer) each.

        Returns:
            One bool a pair, in order; None, and what could not be scored, count as wrong.
        """
        return [verdict is True for verdict in self.verdicts(pairs)]

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
        left: dict[tuple[str, str], list[int]] = {}
        for index, (answer, gold) in enumerate(pairs):
            decided = False if answer is None else self._decide(answer, gold)
            if isinstance(decided, bool):
                results[index] = decided
            else:  # the rollouts of a group often agree: ask once
                left.setdefault(decided, []).append(index)
        if left:
            items = [{"answer": answer, "gold": gold} for answer, gold in left]
            try:
                answers, own = self._pool.run(items, budget_s=self._batch_timeout)
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

    def _decide(self, answer: str, gold: str) -> bool | tuple[str, str]:
        """A verdict, or the (answer, gold) that math-verify has to compare."""
        verdict = exact_verdict(answer, gold)
        if verdict is not None:
            return verdict
        boxed = last_boxed(gold)
        gold = (gold if boxed is None else boxed).strip()
        answer = answer.strip()
        if len(answer) > self._max_chars or len(gold) > _LONGEST_GOLD:
            return False
        if not _is_one_box(answer) or not _is_one_box(gold):
            return False
        plain_gold, plain = normalise(gold), normalise(answer)
        if _RELATION.search(plain) and not _RELATION.search(plain_gold):
            named = _NAMED.fullmatch(plain)
            if named is None or _RELATION.search(named["value"]):
                return False
            answer = plain = named["value"].strip()
            verdict = exact_verdict(answer, gold)
            if verdict is not None:
                return verdict
        number = as_number(plain_gold)
        if number is not None and number[0].denominator == 1 and _OPERATION.search(plain):
            return False
        return answer, gold


def make_verifier(
    kind: VerifierKind,
    *,
    workers: int = 2,
    timeout: float = 1.0,
    max_chars: int = 200,
    batch_timeout: float | None = 60.0,
) -> ExactVerifier | MathVerifier:
    """The verifier a recipe names.

    Args:
        kind: ``"exact"`` or ``"math_verify"``.
        workers: see ``MathVerifier``; ignored by ``"exact"``, as are the following.
        timeout: see ``MathVerifier``.
        max_chars: see ``MathVerifier``.
        batch_timeout: see ``MathVerifier``.

    Returns:
        A verifier, to be used as a context manager or closed at the end.

    Raises:
        ImportError: math-verify is needed and not installed.
        ValueError: an unknown kind or an impossible limit.
    """
    if kind == "exact":
        return ExactVerifier()
    if kind == "math_verify":
        return MathVerifier(
            workers=workers, timeout=timeout, max_chars=max_chars, batch_timeout=batch_timeout
        )
    raise ValueError(f"verifier: got {kind!r}, takes 'exact' or 'math_verify'")


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
