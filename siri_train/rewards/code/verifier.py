"""``CodeVerifier``: a program is right if the tests of its problem pass in the sandbox."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from siri_train.rewards.code import sandbox as sandboxes
from siri_train.rewards.code.extract import last_program
from siri_train.rewards.code.isolation import LAYERS
from siri_train.rewards.code.problems import require_gold
from siri_train.rewards.code.sandbox import SandboxMode
from siri_train.rewards.extract import ThinkMode
from siri_train.rewards.pool import WorkerPool, WorkerStartError
from siri_train.rewards.shares import ask_in_shares

logger = logging.getLogger(__name__)

# Processor seconds; two processes are forked within it.
_LEAST_SHARE = 0.1


class Verdict(NamedTuple):
    """A verdict on a program, and why it is not right."""

    right: bool | None
    why: str


class CodeVerifier:
    """Programs against tests, see ``docs/code-rewards.md``.

    A program and its tests run in two processes that share nothing but plain values. Both are shut
    in: no file, no network, no further process or thread, no way to another process, limits on
    memory and time.

    Args:
        workers: programs at a time; each takes two processes besides those that wait for it.
        timeout: seconds of processor time for one program with all its tests. Half as much again
            may pass in which it could have run.
        batch_timeout: seconds for the programs of one call together; what is left then has no
            verdict. Each first gets an equal share. None: no limit.
        sandbox: ``"strict"``: refuse where a promise of the sandbox does not hold on this machine;
            ``"best_effort"``: go on with what holds.

    Raises:
        SandboxError: the sandbox does not start, or ``"strict"`` and a promise does not hold.
        ValueError: workers < 1, timeout <= 0 or batch_timeout <= 0, an unknown ``sandbox``.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        timeout: float = 1.0,
        batch_timeout: float | None = 60.0,
        sandbox: SandboxMode = "strict",
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers: got {workers}, takes at least 1")
        if not timeout > 0:
            raise ValueError(f"timeout: got {timeout}, takes a positive number of seconds")
        if batch_timeout is not None and not batch_timeout > 0:
            raise ValueError(
                f"batch_timeout: got {batch_timeout}, takes a positive number of seconds or None"
            )
        if sandbox not in ("strict", "best_effort"):
            raise ValueError(f"sandbox: got {sandbox!r}, takes 'strict' or 'best_effort'")
        needed = sandboxes.require(sandbox)
        self.about = str(sandboxes.look())
        self._pool = WorkerPool(
            sandboxes.SCRIPT,
            sandboxes.arguments(timeout, LAYERS, needed),
            workers=workers,
            wall_s=6 * (3 * timeout + 2),
            flags=sandboxes.FLAGS,
            environment=sandboxes.ENVIRONMENT,
        )
        self._workers, self._timeout, self._batch_timeout = workers, timeout, batch_timeout
        self._said_why = False

    def extract(self, text: str, *, think: ThinkMode = "required") -> str | None:
        """The program in a response, see :func:`siri_train.rewards.code.extract.last_program`."""
        return last_program(text, think=think)

    def verdicts(self, pairs: Sequence[tuple[str | None, str]]) -> list[bool | None]:
        """Whether programs pass the tests.

        Args:
            pairs: (program or None, gold as ``problems`` writes it) each.

        Returns:
            True or False for each, in order; None where no process could be started, two in a row
            were killed from outside, or ``batch_timeout`` was used up before the program had its
            share. What a program itself causes is False: its time, its memory, its end.

        Raises:
            ValueError: a gold answer that ``problems`` has not written.
        """
        return [verdict.right for verdict in self.judge(pairs)]

    def judge(self, pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
        """As :meth:`verdicts`, with a reason for each that is not right.

        Raises:
            ValueError: a gold answer that ``problems`` has not written.
        """
        asked: dict[tuple[str, str], Verdict] = {}
        for gold in {gold for _, gold in pairs}:
            require_gold(gold)
        for program, gold in pairs:
            if program is not None:
                asked[program, gold] = Verdict(None, "not judged")
        items: list[dict[str, Any]] = [{"program": p, "gold": g} for p, g in asked]
        if items:
            try:
                answers, own = ask_in_shares(
                    self._pool,
                    items,
                    budget_s=self._batch_timeout,
                    timeout_s=self._timeout,
                    workers=self._workers,
                    least_s=_LEAST_SHARE,
                    keep_late=True,
                )
            except WorkerStartError as error:
                if not self._said_why:
                    logger.warning("programs not judged: the sandbox does not start: %s", error)
                    self._said_why = True
                answers, own = [None] * len(items), set()
            for number, (pair, reply) in enumerate(zip(asked, answers, strict=True)):
                if reply is not None:
                    asked[pair] = Verdict(reply.get("right") is True, str(reply.get("why", "")))
                elif number in own:
                    asked[pair] = Verdict(False, "its process crashed twice")
        return [
            Verdict(False, "no program") if program is None else asked[program, gold]
            for program, gold in pairs
        ]

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        self._pool.close()
