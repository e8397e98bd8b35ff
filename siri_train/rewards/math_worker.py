r"""The process in which math-verify runs; started by ``MathVerifier`` as a script, never imported.

Reads one JSON object a line, ``{"answer": [str, ...], "gold": [str, ...]}``, the parts of both in
LaTeX, writes one, ``{"equal": bool}``: whether each part of the one equals its partner. A
process of its own because math-verify evaluates what a model wrote (``9^{9^{9^{9}}}``), and because
its time limit needs a main thread and disarms every other alarm of the process it runs in.
Arguments: seconds of processor time for one item, bytes of address space.
"""

from __future__ import annotations

import json
import os
import signal
import sys


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
        grade("x^2+2x+1", "(x+1)^2")  # the first comparison is slow: caches, lazy imports
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    _limit_memory(memory)
    signal.signal(signal.SIGPROF, _on_timer)
    print(json.dumps({"ready": True}), file=answers, flush=True)

    for line in sys.stdin:
        item = json.loads(line)
        equal = False
        try:
            try:
                # Processor time, not wall time: a busy machine must not turn right into wrong. The
                # timer repeats, in case the first exception is lost inside a C callback.
                signal.setitimer(signal.ITIMER_PROF, limit_s, 0.25)
                equal = all(map(grade, item["answer"], item["gold"]))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except (_OutOfTime, Exception):
            signal.setitimer(signal.ITIMER_PROF, 0)
            equal = False
        print(json.dumps({"equal": equal}), file=answers, flush=True)


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
