"""math-verify behind the process pool: every trap it has, and every way its process can fail."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from siri_train.rewards import MathVerifier, Response, grade_responses, make_verifier
from siri_train.rewards.pool import WorkerPool, WorkerStartError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)

EVALUATED = ("2\\sqrt3", "\\sqrt{12}")
"""A pair that the fast path cannot decide."""


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=1) as shared:
        yield shared


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (*EVALUATED, True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("1,2", "2,1", True),
        (r"\{1,2\}", "2,1", True),
        ("200,100", "100,200", False),  # math-verify reads the gold answer as one number
        ("x=3", "3", True),
        ("f(x)=2x", "2x", True),
        ("y=2x+1", "y=2x+1", True),
        (r"\text{Area}=42", "42", True),
        ("42 cm", "42", True),
        ("(42)", "42", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("2\\sqrt3", "\\sqrt{13}", False),
        (r"\text{no}", r"\text{yes}", False),
        # A percent sign counts: math-verify alone accepts all three.
        ("10", r"10\%", False),
        ("1/10", r"10\%", False),
        (r"10\%", "0.1", False),
        (r"10\%", "10%", True),
        # A false equation: math-verify alone reads its right side.
        ("41=42", "42", False),
        ("x=41=42", "42", False),
        ("41=42", "x=42", False),
        # More than one answer.
        ("41,42", "42", False),
        ("41 or 42", "42", False),
        (r"\pm 42", "42", False),
        # Something left to compute, where an integer is asked for (DeepScaleR's rule).
        ("40+2", "42", False),
        ("84-42", "42", False),
        (r"6\cdot 7", "42", False),
        (r"41\ 42", "83", False),  # math-verify alone adds the two
        # Contents that would not stay one box.
        (r"41} \boxed{42", "42", False),
        (r"\sqrt{12", r"\sqrt{12}", False),
        ("", "42", False),
        (r"\sqrt{12}", "", False),
        ("x" * 201, "y", False),
        ("(" * 80 + "x" + ")" * 80, "y", False),
    ],
)
def test_verdicts(verifier: MathVerifier, answer: str, gold: str, right: bool) -> None:
    assert verifier.verdicts([(answer, gold)]) == [right]


def test_two_boxes_close_together_and_truncated_text(verifier: MathVerifier) -> None:
    # math-verify on the raw text makes {41, 42} of the first three, and 42 of the last two.
    texts = [
        r"x \boxed{41}</think> \boxed{2\sqrt3}",
        r"</think> \boxed{41}. Wait, \boxed{2\sqrt3}",
        r"</think> \boxed{41} and \boxed{2\sqrt3}",
        r"</think> \boxed{2\sqrt3",
        r"</think> it is 2\sqrt3 because",
    ]
    grades = grade_responses(
        [Response(text, "stop") for text in texts], [r"\sqrt{12}"] * 5, verifier=verifier
    )
    assert [grade.reward for grade in grades] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_order_is_kept_and_equal_items_are_asked_once(verifier: MathVerifier) -> None:
    pairs = [EVALUATED, (None, "1"), ("1", "1"), ("x+1", "1+x"), EVALUATED, ("x", "y")] * 5
    assert verifier.verdicts(pairs) == [True, False, True, True, True, False] * 5


PATHOLOGICAL = [
    "9^{9^{9^{9}}}",
    "100000000!",
    r"\prod_{k=1}^{100000000} k",
    r"\sum_{k=1}^{1000000000} \frac{1}{k}",
    "(" * 300 + "1" + ")" * 300,
    "(" * 20 + "1" + ")" * 20,
    "10^{10^{10}}",
    r"\binom{1000000}{500000}",
]


@pytest.mark.costly
@pytest.mark.draw(4, "processes")
def test_pathological_boxes_are_bounded_and_the_batch_goes_on() -> None:
    def cpu_s(workers: int, batch: list[tuple[str, str]]) -> float:
        before = _children_cpu_s()
        with MathVerifier(workers=workers, timeout=0.5) as verifier:
            assert verifier.verdicts(batch) == [False] * (len(batch) - 1) + [True]
        return _children_cpu_s() - before

    # Processor time, since other tests may load the machine, and a start for a yardstick, since it
    # too is longer there. Two starts and less than a second an item, whose limit of 0.5 s is asked
    # for every 0.25 s; math-verify's own limits let the batch take 40 s.
    start = cpu_s(1, [EVALUATED])
    assert cpu_s(2, [(box, r"\sqrt{5}") for box in PATHOLOGICAL] + [EVALUATED]) < 6 * start + 8


def test_nothing_is_evaluated_where_an_integer_is_asked_for() -> None:
    with MathVerifier(workers=1) as verifier:
        batch = [(box, "5") for box in PATHOLOGICAL if not box.startswith("(((")]
        assert verifier.verdicts(batch) == [False] * len(batch)
        assert verifier.worker_pids == []


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def test_outer_alarm_and_handler_survive(verifier: MathVerifier) -> None:
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        assert verifier.verdicts([EVALUATED]) == [True]
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_works_from_threads(verifier: MathVerifier) -> None:
    results: list[list[bool]] = []

    def work() -> None:
        results.append(verifier.verdicts([EVALUATED, ("x", "y"), ("x+1", "1+x")]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[True, False, True]] * 4


@pytest.mark.costly
@pytest.mark.draw(4, "processes")
def test_close_ends_the_processes_and_a_later_call_starts_new_ones() -> None:
    verifier = MathVerifier(workers=1)
    assert verifier.worker_pids == []  # nothing starts before it is needed
    assert verifier.verdicts([("1", "1"), (None, "x")]) == [True, False]
    assert verifier.worker_pids == []
    assert verifier.verdicts([EVALUATED]) == [True]
    (pid,) = verifier.worker_pids
    verifier.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert verifier.verdicts([EVALUATED]) == [True]
    verifier.close()
    verifier.close()


@pytest.mark.draw(4, "processes")
def test_not_scorable_is_none_only_where_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with MathVerifier(workers=1) as verifier:
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        verifier._pool._command[0] = "/nonexistent/python"
        pairs = [("1", "1"), EVALUATED, (None, "x"), ("9^9!", "5")]
        assert verifier.verdicts(pairs) == [True, None, False, False]
        assert verifier.verdicts(pairs) == [True, None, False, False]
        assert caplog.text.count("does not start") == 1


def test_missing_math_verify_and_bad_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"workers": 0}, {"timeout": 0.0}, {"timeout": float("nan")}, {"max_chars": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make_verifier("math_verify", **options)  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install math-verify"):
        make_verifier("math_verify")


ECHO = "say({'ready': True})\nfor line in sys.stdin: say(json.loads(line))\n"


def _pool(tmp_path: Path, body: str, wall_s: float = 60.0) -> WorkerPool:
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "say = lambda value: print(json.dumps(value), flush=True)\n" + body
    )
    return WorkerPool(str(script), [], workers=2, wall_s=wall_s)


@pytest.mark.draw(4, "processes")
def test_pool_kills_and_replaces_a_frozen_process(tmp_path: Path) -> None:
    pool = _pool(tmp_path, ECHO, wall_s=3.0)
    assert pool.map([{"n": 1}]) == [{"n": 1}]
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # deaf to its own timer, like a long C call
    # Its item is asked again: a process that was stopped must not make a right answer wrong.
    assert pool.map([{"n": n} for n in range(4)]) == [{"n": n} for n in range(4)]
    assert pid not in pool.pids
    assert pool.map([{"n": n} for n in range(4)]) == [{"n": n} for n in range(4)]
    pool.close()


@pytest.mark.draw(4, "processes")
def test_pool_replaces_a_process_that_died_between_calls(tmp_path: Path) -> None:
    pool = _pool(tmp_path, ECHO)
    assert pool.map([{"n": 1}]) == [{"n": 1}]
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    assert pool.map([{"n": n} for n in range(4)]) == [{"n": n} for n in range(4)]
    pool.close()
    assert pool.pids == []


@pytest.mark.draw(4, "processes")
def test_pool_is_usable_after_an_interrupted_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = _pool(tmp_path, ECHO)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pool, "_collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pool.map([{"n": 1}])
    # The answer to 1 must not be taken for the answer to 2.
    assert pool.map([{"n": 2}]) == [{"n": 2}]
    pool.close()


@pytest.mark.draw(4, "processes")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_processes(tmp_path: Path) -> None:
    pool = _pool(tmp_path, ECHO)
    assert pool.map([{"n": 1}]) == [{"n": 1}]
    pids = pool.pids
    child = os.fork()
    if child == 0:
        right = pool.map([{"n": 5}]) == [{"n": 5}] and not set(pool.pids) & set(pids)
        pool.close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.pids == pids and pool.map([{"n": 2}]) == [{"n": 2}]
    pool.close()


def test_pool_gives_up_an_item_that_kills_two_processes(tmp_path: Path) -> None:
    pool = _pool(
        tmp_path,
        "say({'ready': True})\n"
        "for line in sys.stdin:\n"
        "    item = json.loads(line)\n"
        "    if item['n'] == 3: os._exit(9)\n"
        "    say({'n': item['n'] * 10})\n",
    )
    answers = pool.map([{"n": n} for n in range(8)])
    assert answers == [None if n == 3 else {"n": n * 10} for n in range(8)]
    pool.close()


def test_pool_says_why_a_worker_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(WorkerStartError, match="no such module"):
        _pool(tmp_path, "say({'error': 'no such module'})\n").map([{}])
    with pytest.raises(WorkerStartError, match="exit status 3"):
        _pool(tmp_path, "sys.exit(3)\n").map([{}])


@pytest.mark.draw(4, "processes")
def test_workers_end_with_the_process_that_forgot_to_close() -> None:
    program = (
        "from siri_train.rewards import MathVerifier\n"
        "v = MathVerifier(workers=1)\n"
        "assert v.verdicts([('2\\\\sqrt3', '\\\\sqrt{12}')]) == [True]\n"
        "print(v.worker_pids[0])\n"
    )
    # No main guard in it: starting workers must not run a user's script again.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 200
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
