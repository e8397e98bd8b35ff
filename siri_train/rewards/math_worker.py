r"""The process in which math-verify runs; started by ``MathVerifier`` as a script, never imported.

Reads one JSON object a line, ``{"answer": [str, ...], "gold": [str, ...]}``, the parts of both in
LaTeX, and ``"limit_s"``, seconds of processor time, if less than the usual ones. Writes one,
``{"equal": bool}``: whether each part of the one equals its partner; with ``"late": true`` if the
processor time was used up. A process of its own because math-verify evaluates what a model wrote
(``9^{9^{9^{9}}}``), and because its time limit needs a main thread and disarms every other alarm of
the process it runs in. Arguments: seconds of processor time for one item, bytes of address space.

It imports and warms up once and forks: a child answers until an item runs away with it, is ended,
and the next one is there in milliseconds instead of the seconds that the imports take.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

_WARMING = (
    ("x^{2}+2x+1", "(x+1)^{2}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"\sin x", r"\cos x"),
    (r"\frac{\ln 3}{\ln 2}", r"\log_{2} 3"),
    (r"e^{i\pi/3}", r"\frac{1+i\sqrt{3}}{2}"),
    (r"y=2x+3", r"x=2y+3"),
    (r"(1,2)\cup (2,3)", "(1,3)"),
    (r"|x-1|", r"|1-x|"),
    (r"2^{n}-1", r"n!"),
)


class _OutOfTime(BaseException):
    """Not an Exception: math-verify and sympy swallow those."""


def _on_timer(signum: int, frame: object) -> None:
    raise _OutOfTime


def main() -> None:
    """Announce readiness, then answer line by line until the input ends."""
    limit_s, memory = float(sys.argv[1]), int(sys.argv[2])
    # Run as a script, this folder is first on the path; its modules must not shadow anyone's.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    # Whatever a library prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C reaches the whole terminal; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        grade = _grader()
        for pair in _WARMING:  # the first comparisons are slow: caches, lazy imports
            grade(*pair)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    _limit_memory(memory)
    print(json.dumps({"ready": True}), file=answers, flush=True)

    child: _Child | None = None
    for line in sys.stdin:
        item = json.loads(line)
        if child is None:
            child = _Child(grade)
        reply = child.ask(item, min(limit_s, item.get("limit_s", limit_s)))
        if reply is None:
            child.kill()
            child, reply = None, {"equal": False, "late": True}
        print(json.dumps(reply), file=answers, flush=True)


class _Child:
    """A fork of this process that answers item after item."""

    def __init__(self, grade) -> None:
        items, self._items = os.pipe()
        self._replies, replies = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._items)
                os.close(self._replies)
                _serve(grade, items, replies)
                status = 0
            finally:
                os._exit(status)
        os.close(items)
        os.close(replies)

    def ask(self, item: dict, limit_s: float) -> dict | None:
        """The reply to ``item``; None when it has burnt twice its processor time without one.

        The child ends an item by itself at its limit, unless it is inside of one long C call.
        """
        before, began = self._cpu_seconds(), time.monotonic()
        try:
            os.write(self._items, json.dumps(item | {"limit_s": limit_s}).encode() + b"\n")
        except BrokenPipeError:
            self._died()
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        poll.register(0, 0)  # reports only that the parent process has ended
        line, wait = b"", limit_s
        while not line.endswith(b"\n"):
            for descriptor, event in poll.poll(1000 * max(wait, 0.001)):
                if descriptor == 0 and event & select.POLLHUP:
                    self.kill()
                    os._exit(0)
                if descriptor == self._replies:
                    chunk = os.read(self._replies, 1 << 16)
                    if not chunk:
                        self._died()
                    line += chunk
            now = self._cpu_seconds()
            burnt = 0.0 if now is None or before is None else now - before
            if not line and burnt >= limit_s * (1 if time.monotonic() - began > 3 * limit_s else 2):
                return None
            wait = min(0.25, limit_s / 2)
        return json.loads(line)

    def kill(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._items)
        os.close(self._replies)

    def _died(self) -> None:
        """End as it has ended: whoever started this process judges by that."""
        status = os.waitpid(self._pid, 0)[1]
        outside = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in outside:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(os.WEXITSTATUS(status) or 1 if os.WIFEXITED(status) else 1)

    def _cpu_seconds(self) -> float | None:
        try:
            with open(f"/proc/{self._pid}/stat", encoding="utf-8", errors="replace") as file:
                user, system = file.read().rpartition(")")[2].split()[11:13]
        except (OSError, ValueError):
            return None
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _serve(grade, items: int, replies: int) -> None:
    """Answer line by line until the input ends."""
    signal.signal(signal.SIGPROF, _on_timer)
    with os.fdopen(items, encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            reply = {"equal": False}
            try:
                try:
                    # Processor time, not wall time: a busy machine must not turn right into wrong.
                    # The timer repeats, in case the first exception is lost inside a C callback.
                    signal.setitimer(signal.ITIMER_PROF, item["limit_s"], 0.25)
                    reply["equal"] = all(map(grade, item["answer"], item["gold"]))
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
            except _OutOfTime:
                signal.setitimer(signal.ITIMER_PROF, 0)
                reply = {"equal": False, "late": True}
            except Exception:
                reply = {"equal": False}
            os.write(replies, json.dumps(reply).encode() + b"\n")


def _grader():
    import logging

    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    # Only a box is read, never a loose number; see rewards/extract.py.
    config = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]

    def read(answer: str) -> list[object]:
        found = parse(
            f"\\boxed{{{answer}}}",
            extraction_config=config,
            fallback_mode="no_fallback",
            parsing_timeout=None,  # the timer in main() bounds it
        )
        return [_complex(expression) for expression in found]

    def grade(answer: str, gold: str) -> bool:
        right, given = read(gold), read(answer)
        if not right or not given or not verify(right, given, timeout_seconds=None):
            return False
        return _nearly(given[0], right[0])

    return grade


def _complex(expression: object) -> object:
    """``expression`` with one symbol ``i``: math-verify has a real one (``2i``) and another."""
    import sympy  # type: ignore[import-untyped]

    if not isinstance(expression, sympy.Basic):
        return expression
    units = [symbol for symbol in expression.free_symbols if str(symbol) == "i"]
    return expression.xreplace(dict.fromkeys(units, sympy.I)) if units else expression


def _nearly(given: object, right: object) -> bool:
    """Whether two expressions that math-verify takes for equal have equal values.

    It compares six decimals, so that 1e-17*pi is 2e-17*pi to it. Ten significant digits must agree,
    and all digits where no decimal stands in either. What cannot be evaluated stays as it was.
    """
    import sympy

    if not (isinstance(given, sympy.Expr) and isinstance(right, sympy.Expr)):
        return True
    # Any positive values will do; square roots of primes are in no special position.
    names = sorted(given.free_symbols | right.free_symbols, key=str)
    values = {name: sympy.sqrt(sympy.prime(place + 2)) for place, name in enumerate(names)}
    try:
        one, two = (_value(side.subs(values)) for side in (given, right))
    except Exception:
        return True
    if one is None or two is None:
        return True
    inexact = given.has(sympy.Float) or right.has(sympy.Float)
    return abs(one - two) <= abs(two) * (1e-9 if inexact else sympy.Float("1e-25"))


def _value(expression):
    """The value of an expression to 40 digits, or None when it has none."""
    value = expression.evalf(40)
    return value if value.is_number and value.is_finite else None


def _limit_memory(limit: int) -> None:
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        pass  # a guard, not a need: the time limits remain


if __name__ == "__main__":
    main()
