"""Answers that cannot be judged: asked again, within a budget, and never taken for wrong ones."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siri_train.monitor import alarms
from siri_train.rewards import ExactVerifier, Grade, MathVerifier, Response, grade_responses
from siri_train.rewards import pool as pool_module
from siri_train.rewards.pool import WorkerPool, WorkerStartError
from siri_train.rollout.batch import Group, RolloutBatch
from siri_train.rollout.engine import Completion
from tests.train.test_metrics_page import QUIET

READY = "say({'ready': True})\n"
LOOP = "for line in sys.stdin:\n    item = json.loads(line)\n"

# What a process does with an item whose "do" is the key, and whether that is the item's own doing.
ODD = {
    "noise": ("print('noise', flush=True)", False),
    "number": ("say(5)", False),
    "list": ("say([1])", False),
    "bytes": ("os.write(1, bytes([255, 254, 10]))", False),
    "deep": ("print('[' * 99999, flush=True)", False),
    "two lines": ("os.write(1, b'{}\\n{}\\n')", False),
    "sleeps": ("time.sleep(600)", False),
    "stops": ("os.kill(os.getpid(), signal.SIGSTOP)", False),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", False),
    "exits": ("os._exit(9)", True),
    "ends": ("sys.exit()", True),
    "segfault": ("signal.signal(signal.SIGSEGV, 0); os.kill(os.getpid(), signal.SIGSEGV)", True),
    "burns": ("\n        while True: pass", True),
}


def pool(tmp_path: Path, body: str, **options: Any) -> WorkerPool:
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, signal, subprocess, sys, time\n"
        "say = lambda value: print(json.dumps(value), flush=True)\n" + body
    )
    return WorkerPool(str(script), [], **{"workers": 2, "wall_s": 60.0, **options})


def odd_worker(kinds: list[str]) -> str:
    cases = "".join(f"    if item['do'] == {kind!r}: {ODD[kind][0]}; continue\n".replace(
        "pass; continue", "pass") for kind in kinds)  # fmt: skip
    return READY + LOOP + cases + "    say({'n': item['n']})\n"


@pytest.mark.draw(4)
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_item_is_answered_by_none_and_the_others_as_ever(tmp_path: Path, kind: str) -> None:
    # Only what hangs waits for the wall; the others must not depend on it on a busy machine.
    wall = 0.5 if kind in ("sleeps", "stops") else 300.0
    workers = pool(tmp_path, odd_worker([kind]), wall_s=wall, cpu_s=0.3)
    rng = random.Random(kind)
    odd = set(rng.sample(range(12), 2))
    items = [{"n": i, "do": kind if i in odd else "work"} for i in range(12)]
    answers, own = workers.run(items)
    workers.close()
    right = [None if i in odd else {"n": i} for i in range(12)]
    if kind not in ("sleeps", "stops"):
        assert answers == right
    assert all(answers[i] is None for i in odd)
    assert own == (odd if ODD[kind][1] else set())


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``later(file)``: an hour has passed at the sixth look at the clock after it has content:
    by then whoever started what wrote it has noted when that must end."""

    def when(file: Path, real: Callable[[], float] = time.monotonic) -> None:
        looks = itertools.count()

        def monotonic() -> float:
            there = file.exists() and file.stat().st_size
            return real() + (3600 if there and next(looks) > 5 else 0)

        monkeypatch.setattr(time, "monotonic", monotonic)

    return when


# Pools that look at the clock twice a second: they do so where processor time is limited.
LOOKING = {"wall_s": 600.0, "cpu_s": 600.0}


@pytest.mark.draw(2)
@pytest.mark.parametrize("kind", ["noise", "sleeps", "is killed", "exits", "segfault"])
def test_what_went_wrong_once_is_asked_again_elsewhere(
    tmp_path: Path, kind: str, later: Callable[[Path], None]
) -> None:
    flag = tmp_path / "once"
    body = READY + LOOP + (
        f"    if item['n'] == 3 and not os.path.exists({str(flag)!r}):\n"
        f"        open({str(flag)!r}, 'w').write('1')\n"
        f"        {ODD[kind][0]}\n        continue\n"
        "    say({'n': item['n'], 'pid': os.getpid()})\n"
    )  # fmt: skip
    workers = pool(tmp_path, body, workers=1, **LOOKING)
    if kind == "sleeps":
        later(flag)
    answers = workers.map([{"n": i} for i in range(6)])
    workers.close()
    assert flag.exists()
    assert [answer and answer["n"] for answer in answers] == list(range(6))
    assert answers[3]["pid"] != answers[2]["pid"]  # type: ignore[index]


@pytest.mark.costly
def test_a_batch_has_a_budget(tmp_path: Path) -> None:
    workers = pool(tmp_path, odd_worker(["sleeps"]), wall_s=600.0)
    workers.map([{"n": 1, "do": "work"}])  # a process that is there
    began = time.monotonic()
    answers, own = workers.run([{"n": i, "do": "sleeps"} for i in range(200)], budget_s=1.0)
    assert answers == [None] * 200 and own == set()
    assert time.monotonic() - began < 300  # and not 200 times 600 seconds
    # What they would have said is nobody's answer now.
    assert workers.map([{"n": 7, "do": "work"}]) == [{"n": 7}]
    workers.close()


def test_the_first_start_is_not_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    call = pool_module._Call([{}], until=101.0)

    def start() -> None:
        now[0] += 50.0

    call.pause(start)
    assert not call.over
    now[0] += 0.9
    assert not call.over
    now[0] += 0.2
    assert call.over
    call.pause(start)  # a process that replaces one: the items' own cost
    assert call.over


@pytest.mark.costly
def test_children_end_with_their_worker(tmp_path: Path, later: Callable[[Path], None]) -> None:
    body = READY + LOOP + (
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    open(item['file'], 'w').write(str(child.pid))\n"
        "    if item['hang']: time.sleep(600)\n    say({})\n"
    )  # fmt: skip
    pids = []
    for hang in (False, True):
        workers = pool(tmp_path, body, workers=1, **LOOKING)
        file = tmp_path / f"pid{hang}"
        if hang:
            later(file)  # the budget is used up when the child is there
        workers.map([{"hang": hang, "file": str(file)}], budget_s=600.0)
        workers.close()
        pids.append(int(file.read_text()))
    deadline = time.monotonic() + 200
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("first", ["noise", "5", "[]", '{"ready": false}', ""])
def test_a_worker_that_greets_oddly_does_not_start(tmp_path: Path, first: str) -> None:
    with pytest.raises(WorkerStartError):
        pool(tmp_path, f"print({first!r}, flush=True)\n").map([{}])


EVALUATED = (r"2\sqrt3", r"\sqrt{12}")


@pytest.mark.costly
def test_a_stopped_worker_does_not_make_a_right_answer_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("math_verify")
    with MathVerifier(workers=2, timeout=1.0, batch_timeout=None) as verifier:
        assert verifier.verdicts([EVALUATED, ("x+1", "1+x")]) == [True, True]
        for pid in verifier.worker_pids:
            os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(verifier._pool, "_wall_s", 0.5)
            assert verifier.verdicts([EVALUATED]) in ([True], [None])
        # Whoever ends them from outside, and how often: it is never the answer's fault.
        stop = threading.Event()

        def killer() -> None:
            while not stop.is_set():
                for pid in verifier.worker_pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                time.sleep(0.01)

        thread = threading.Thread(target=killer)
        thread.start()
        try:
            assert verifier.verdicts([EVALUATED]) == [None]
        finally:
            stop.set()
            thread.join()
        assert verifier.verdicts([EVALUATED]) == [True]


@pytest.mark.costly
def test_what_the_answer_itself_causes_stays_wrong() -> None:
    pytest.importorskip("math_verify")
    boxes = ["9^{9^{9^{9}}}", r"\sum_{k=1}^{1000000000} \frac{1}{k}", r"\binom{1000000}{500000}"]
    with MathVerifier(workers=1, timeout=0.3, batch_timeout=None) as verifier:
        verdicts = verifier.verdicts([(box, r"\sqrt{5}") for box in boxes])
        # None only where this machine was too busy to give them their processor time.
        assert all(verdict is False or verdict is None for verdict in verdicts)
        assert False in verdicts


def _batch(rewards: list[float]) -> RolloutBatch:
    def group(position: int, part: list[float]) -> Group:
        return Group(
            position,
            question=None,  # type: ignore[arg-type]
            completions=[Completion([1], [0.0], "stop") for _ in part],
            texts=[""] * len(part),
            grades=[Grade(r, r == 1, None, False, None if r != r else r == 1) for r in part],
        )

    groups = [group(i, rewards[i : i + 4]) for i in range(0, len(rewards), 4)]
    return RolloutBatch(0, 16, wanted=len(groups), groups=groups)


@pytest.mark.parametrize(("unjudged", "alarm"), [(0, False), (1, False), (3, True), (200, True)])
def test_a_notable_share_of_unjudged_answers_is_an_alarm(unjudged: int, alarm: bool) -> None:
    rewards = [math.nan] * unjudged + [1.0, 0.0] * ((200 - unjudged) // 2 + 1)
    raised = [a for a in _batch(rewards[:200]).alarms() if a["alarm"] == "answers-not-judged"]
    assert bool(raised) == alarm
    if alarm:
        assert (
            raised[0]["value"] == unjudged and f"{unjudged} of the step's 200" in raised[0]["cause"]
        )
        assert "reward.batch_timeout" in raised[0]["action"]


def test_unjudged_answers_have_no_reward_and_are_counted() -> None:
    class Some(ExactVerifier):
        def verdicts(self, pairs: Any) -> list[bool | None]:
            return [None if answer == "x" else answer == gold for answer, gold in pairs]

    grades = grade_responses(
        [Response(f"</think> \\boxed{{{a}}}", "stop") for a in ("x", "1", "2")],
        ["1"] * 3,
        verifier=Some(),
    )
    assert math.isnan(grades[0].reward) and [g.reward for g in grades[1:]] == [1.0, 0.0]


def test_metrics_count_them_and_what_the_cut_decides(tiny: Any, monkeypatch: Any) -> None:
    from siri_train.train import train
    from siri_train.trainer import run as run_module

    class Sometimes(ExactVerifier):
        calls = 0

        def verdicts(self, pairs: Any) -> list[bool | None]:
            found: list[bool | None] = list(super().verdicts(pairs))
            return [None if i % 4 == 0 else v for i, v in enumerate(found)]

    monkeypatch.setattr(run_module, "build_verifier", lambda config: Sometimes())
    folder = train(tiny("train.steps=2", "schedule.min_len=16", "schedule.max_len=20"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["unjudged"] == 4 for row in rows)
    assert all(row["truncated_frac"] > 0 for row in rows)
    assert all(0 <= row["truncated_correct_frac"] <= 1 for row in rows)
    raised = [
        json.loads(line)["alarm"] for line in (folder / "alarms.jsonl").read_text().splitlines()
    ]
    assert raised.count("answers-not-judged") == 1  # raised in the first step, on in the second
    dumped = (folder / "rollouts" / "step_000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in dumped].count(None) == 4
    assert "NaN" not in "".join(dumped)
    assert "not judged" in (folder / "report.html").read_text()
    evaluated = json.loads((folder / "eval.jsonl").read_text().splitlines()[0])
    assert evaluated["unjudged"] > 0 and len(evaluated["truncated_correct_frac"]) == 2


def test_all_truncated_is_an_alarm_that_names_what_was_paid() -> None:
    row = {**QUIET, "truncated_frac": 1.0, "reward_mean": 0.25, "grad_norm": None}
    (alarm,) = alarms.check(row, [])
    assert alarm["alarm"] == "mostly-truncated" and "the mean reward is 0.25" in alarm["cause"]


@pytest.mark.costly
@pytest.mark.parametrize("seed", range(3))
def test_a_process_that_does_not_read_is_given_up(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    read = draw.choice((0, 1, draw.randrange(1, 1 << 20)))
    items = [{"n": 1, "text": "x" * draw.randrange(1 << 21, 1 << 22)} for _ in range(2)]
    with_patience = {"workers": draw.choice((1, 2)), "wall_s": 0.2}
    workers = pool(tmp_path, READY + f"os.read(0, {read})\ntime.sleep(600)\n", **with_patience)
    assert workers.run(items) == ([None, None], set())
    workers.close()


def test_a_process_that_closes_its_input_is_not_replaced_for_ever(tmp_path: Path) -> None:
    workers = pool(tmp_path, "os.close(0)\n" + READY + "time.sleep(600)\n", workers=1)
    assert workers.run([{"n": 1}, {"n": 2}]) == ([None, None], set())
    workers.close()


def test_what_may_be_slow_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answers(self: WorkerPool, items: list[dict[str, Any]], **_: Any) -> pool_module.Answers:
        asked.extend(answer for item in items for answer in item["answer"])
        return pool_module.Answers([{"equal": is_quick(i["answer"][0])} for i in items], set())

    def is_quick(answer: str) -> bool:
        return not {"^", "!"} & set(answer)

    monkeypatch.setattr(WorkerPool, "run", answers)
    draw = random.Random(3)
    given = [f"{draw.randrange(2, 99)}x+{draw.randrange(2, 99)}y" for _ in range(10)]
    given += [f"{draw.randrange(2, 10)}^{{9^{{9^{{{n}}}}}}}x+y" for n in range(10)]
    given += [f"({draw.randrange(100, 999)}!)!x+y{'+y' * n}" for n in range(10)]
    draw.shuffle(given)
    with MathVerifier() as verifier:
        verdicts = verifier.verdicts([(answer, "x+y") for answer in given])
    assert [is_quick(answer) for answer in asked] == [True] * 10 + [False] * 20
    assert verdicts == [is_quick(answer) for answer in given]
