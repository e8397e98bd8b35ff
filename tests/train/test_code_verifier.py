"""The verifier of programs: its order, its limits, its budget."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siri_train.data.problems import OURS, load_problems
from siri_train.rewards import Limits, Response, grade_responses
from siri_train.rewards.code.extract import last_program
from siri_train.rewards.code.verifier import CodeVerifier, Verdict
from siri_train.rewards.verify import VERIFIERS
from tests.train.programs import BURNS, PATIENT, RIGHT, SQUARE, WRONG, BestEffort, gold


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = BestEffort(workers=2, timeout=PATIENT, batch_timeout=None)
    yield made
    made.close()


def test_our_references_pass_and_their_mutants_fail(verifier: CodeVerifier) -> None:
    questions = load_problems(OURS) + load_problems(OURS, split="test")
    pairs = [(last_program(q.solution or "", think="none"), q.answer) for q in questions]
    mutants = []
    for program, tests in pairs:
        (name,) = json.loads(tests)["names"]
        for body in (f"[{name}_(*a)]", "None if len(str(a)) % 2 else 'x'", "1 / 0"):
            mutants.append((f"{program}\n{name}_ = {name}\ndef {name}(*a): return {body}", tests))
    judged = verifier.judge(pairs + mutants)
    for question, verdict in zip(questions, judged, strict=False):
        assert verdict.right is True, (question.where, verdict)
    for (program, _), verdict in zip(mutants, judged[len(pairs) :], strict=True):
        assert verdict.right is False, program


def test_order_none_and_repeats(verifier: CodeVerifier) -> None:
    pairs = [(RIGHT, SQUARE), (None, SQUARE), (WRONG, SQUARE), (RIGHT, SQUARE), ("", SQUARE)]
    assert verifier.verdicts(pairs) == [True, False, False, True, False]
    assert verifier.verdicts([]) == []
    assert verifier.judge([(None, SQUARE)]) == [Verdict(False, "no program")]


def test_drawn_batches_come_back_in_order(verifier: CodeVerifier) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    numbers = [rng.randrange(-(10**9), 10**9) for _ in range(24)]
    right = [rng.random() < 0.5 for _ in numbers]
    pairs = [
        (f"def f(): return {n if good else n + 1}", gold(f"assert f() == {n}"))
        for n, good in zip(numbers, right, strict=True)
    ]
    assert verifier.verdicts(pairs) == right, seed


def test_a_flood_of_slow_programs_takes_no_time_of_the_others() -> None:
    slow = [f"{BURNS}  # {n}" for n in range(3)]
    slow += [f"import time\ndef f(x): time.sleep(60)  # {n}" for n in range(6)]
    quick = [f"{RIGHT}  # {n}" for n in range(6)]
    made = BestEffort(workers=2, timeout=0.5, batch_timeout=6.0)
    try:
        made.verdicts([(RIGHT, SQUARE)])
        verdicts = made.verdicts([(program, SQUARE) for program in slow + quick])
    finally:
        made.close()
    # The slow ones are wrong, by their own doing, and not without a verdict.
    assert verdicts == [False] * len(slow) + [True] * len(quick)


def test_what_is_left_when_the_budget_ends_has_no_verdict() -> None:
    made = BestEffort(workers=1, timeout=5.0, batch_timeout=0.05)
    try:
        verdicts = made.verdicts([(f"{RIGHT}  # {n}", SQUARE) for n in range(400)])
    finally:
        made.close()
    assert None in verdicts and False not in verdicts


def test_processes_that_others_kill_are_replaced(verifier: CodeVerifier) -> None:
    verifier.verdicts([(RIGHT, SQUARE), (WRONG, SQUARE)])
    for pid in verifier._pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert verifier.verdicts([(RIGHT, SQUARE), (WRONG, SQUARE)]) == [True, False]


def test_a_program_whose_processes_others_kill_twice_has_no_verdict() -> None:
    made = BestEffort(workers=1, timeout=60.0, batch_timeout=None)
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.2):
            for pid in made._pool.pids:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    made.verdicts([(RIGHT, SQUARE)])
    killer.start()
    try:
        assert made.verdicts([(BURNS, SQUARE)]) == [None]
    finally:
        over.set()
        killer.join()
        made.close()


def test_where_memory_runs_out_programs_end_first() -> None:
    mark = 1.40625
    made = BestEffort(workers=1, timeout=mark, batch_timeout=None)
    asked = threading.Thread(target=made.verdicts, args=([(BURNS, SQUARE)],))
    seen: list[list[int]] = []
    asked.start()
    while asked.is_alive():
        seen.append(sorted(map(_dies_at, _running(mark))))
        time.sleep(0.01)
    made.close()
    # The two of a program, and neither who forks them nor who asks.
    usual = _dies_at(str(os.getpid()))
    assert [usual, usual, 1000, 1000] in seen, seen


def _dies_at(pid: str) -> int:
    """The kernel's order where memory runs out: 1000 is first; -1: the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except OSError:
        return -1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to another process")
def test_no_zombie_is_left_to_the_first_process(tmp_path: Path) -> None:
    # In a container the first process is often one that collects no orphans.
    script = tmp_path / "trainer.py"
    script.write_text(
        "import ctypes, os\nfrom siri_train.rewards import worker\n"
        "from siri_train.rewards.code.verifier import CodeVerifier\nworker._PARTING_S = 60\n"
        "assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # orphans become children\n"
        "made = CodeVerifier(workers=2, timeout=60.0, batch_timeout=0.3, sandbox='best_effort')\n"
        f"for n in range(2): assert None in made.verdicts([({BURNS!r}, {SQUARE!r})])\n"
        "made.close()\n"
        "try: print(os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError: print('none')\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=120)
    assert ran.stdout == b"none\n", ran


def test_nothing_is_left_when_the_trainer_is_killed(tmp_path: Path) -> None:
    mark = 0.71875
    script = tmp_path / "trainer.py"
    script.write_text(
        "from siri_train.rewards.code.verifier import CodeVerifier\n"
        f"made = CodeVerifier(workers=2, timeout={mark}, batch_timeout=None, "
        "sandbox='best_effort')\n"
        f"made.verdicts([({RIGHT!r}, {SQUARE!r})])\nprint('started', flush=True)\n"
        f"made.verdicts([({BURNS!r} + str(n), {SQUARE!r}) for n in range(99)])\n"
    )
    trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert trainer.stdout is not None and trainer.stdout.readline() == b"started\n"
    time.sleep(0.3)
    assert _running(mark)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    until = time.monotonic() + 60
    while _running(mark) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _running(mark)


def _running(mark: float) -> list[str]:
    """Processes with a number in their command line that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(mark).encode() in words:
            found.append(path.name)
    return found


def test_responses_are_graded_by_their_last_block(verifier: CodeVerifier) -> None:
    block = f"```python\n{RIGHT}\n```"
    texts = [
        f"</think>{block}",
        f"```python\n{WRONG}\n```</think>So:\n{block}\nDone.",
        block,  # before the end of the thoughts
        f"</think>```python\n{RIGHT}",  # truncated
        f"</think>{block}\n```python\n{WRONG}\n```",
    ]
    grades = grade_responses(
        [Response(text, "length") for text in texts], [SQUARE] * len(texts), verifier=verifier
    )
    assert [grade.reward for grade in grades] == [1, 1, 0, 0, 0]
    assert [grade.answer for grade in grades] == [RIGHT, RIGHT, None, None, WRONG]


@pytest.mark.parametrize(
    "held",
    [
        *("42", "{}", "no", "[]", "[" * 100_000),
        '{"setup": "", "names": [], "tests": ["f()"]}',
        '{"setup": "", "names": ["f"], "tests": [["f()"]]}',
    ],
    ids=range(7),
)
def test_a_gold_answer_that_is_no_problem_is_an_error(held: str, verifier: CodeVerifier) -> None:
    with pytest.raises(ValueError, match="gold: got .* takes the gold of read_problem"):
        verifier.verdicts([(RIGHT, SQUARE), (None, held)])


def test_the_registry_builds_it_with_the_limits_of_the_recipe() -> None:
    made = VERIFIERS["code"](Limits(workers=3, timeout=0.7, sandbox="best_effort"))
    assert isinstance(made, CodeVerifier) and made._timeout == 0.7 and made._workers == 3
    assert made.about.startswith("code sandbox: ")
    made.close()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"workers": 0}, "workers: got 0, takes at least 1"),
        ({"timeout": 0.0}, "timeout: got 0.0, takes a positive number"),
        ({"batch_timeout": -1.0}, "batch_timeout: got -1.0, takes a positive number"),
        ({"sandbox": "none"}, "sandbox: got 'none', takes 'strict' or 'best_effort'"),
    ],
)
def test_impossible_limits(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeVerifier(**limits)
