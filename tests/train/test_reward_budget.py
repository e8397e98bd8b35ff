"""A flood of boxes that would be evaluated for ever does not take the time of honest ones."""

from __future__ import annotations

import heapq
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from siri_train.rewards import MathVerifier
from siri_train.rewards.cost import rough_cost
from siri_train.rewards.pool import Answers, WorkerPool
from siri_train.rewards.verify import _WORKER

ENDLESS = float("inf")


class Simulated:
    """Processes with a clock of their own: what an item costs is drawn, not measured."""

    def __init__(self, workers: int, timeout: float, cost: dict[str, tuple[float, float]]) -> None:
        self.workers, self.timeout, self.cost = workers, timeout, cost
        self.seconds = 0.0

    def run(self, items: list[dict[str, Any]], budget_s: float | None = None) -> Answers:
        free = [0.0] * self.workers
        answers: list[dict[str, Any] | None] = []
        for item in items:
            began = heapq.heappop(free)
            limit = item.get("limit_s", self.timeout)
            needs, overrun = self.cost[item["answer"][0].removesuffix("*1")]
            ends = began + (needs if needs <= limit else overrun * limit)
            if budget_s is not None and ends > budget_s:
                answers.append(None)
                ends = budget_s
            elif needs <= limit:
                answers.append({"equal": True})
            else:
                answers.append({"equal": False, "late": True})
            heapq.heappush(free, ends)
        self.seconds += max(free)
        return Answers(answers, set())


@pytest.mark.draw(4)
@pytest.mark.parametrize("seed", range(12))
def test_honest_answers_are_judged_whatever_stands_around_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    workers, timeout = draw.choice((1, 2, 4)), draw.choice((0.5, 1.0, 3.0))
    honest, flood = draw.randrange(1, 200), draw.randrange(100, 400)
    # All of one look, so that no order by looks can tell them apart.
    names = [f"{n}x+y" for n in random.Random(seed).sample(range(100, 999), honest + flood)]
    cost = {name: (draw.uniform(0.001, 0.03), 1.0) for name in names[:honest]}
    cost |= {name: (ENDLESS, draw.choice((1.0, 1.5, 2.0))) for name in names[honest:]}
    # Enough for the honest ones, by far too little for the others.
    budget = 4 * (honest + flood) * 0.04 / workers
    simulated = Simulated(workers, timeout, cost)
    monkeypatch.setattr(
        WorkerPool, "run", lambda _, items, budget_s=None: simulated.run(items, budget_s)
    )
    shuffled = draw.sample(names, len(names))
    with MathVerifier(workers=workers, timeout=timeout, batch_timeout=budget) as verifier:
        verdicts = dict(
            zip(shuffled, verifier.verdicts([(n, "x+y") for n in shuffled]), strict=True)
        )
    assert all(verdicts[name] is True for name in names[:honest])
    assert all(verdicts[name] in (False, None) for name in names[honest:])
    assert simulated.seconds <= budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_what_fits_into_the_budget_is_asked_once_with_all_its_time(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    asked: list[dict[str, Any]] = []

    def run(self: WorkerPool, items: list[dict[str, Any]], budget_s: Any = None) -> Answers:
        asked.extend(items)
        return Answers([{"equal": False, "late": True} for _ in items], set())

    monkeypatch.setattr(WorkerPool, "run", run)
    workers, count = draw.choice((1, 2)), draw.randrange(1, 40)
    with MathVerifier(workers=workers, timeout=1.0, batch_timeout=80.0) as verifier:
        pairs = [(f"{n}x+y", "x+y") for n in range(2, 2 + count)]
        # Out of its whole processor time is the answer's own doing.
        assert verifier.verdicts(pairs) == [False] * count
    assert [item["limit_s"] for item in asked] == [1.0] * count


@pytest.mark.parametrize("seed", range(5))
def test_what_may_run_away_costs_more_than_what_cannot(seed: int) -> None:
    draw = random.Random(seed)
    a, b, c = (draw.randrange(2, 10) for _ in range(3))
    cheap = [
        f"{a}x^{{3}}+{b}x^{{2}}+{c}x^{{{a}}}+x^{{9}}", rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}",
        f"{a}{b}{c}{a}{b}{c}+x", rf"{a}^{{{b}}}+{c}!", rf"(x+{a})^{{2}}(x-{b})^{{2}}",
    ]  # fmt: skip
    dear = [
        f"{a}^{{{b}^{{{c}}}}}", f"{a}^{{9999{b}}}", f"({a}{b}{c}!)!", f"{a}{b}{c}{a}!",
        rf"\sum_{{k=1}}^{{{a}00000000}} k", rf"\binom{{{a}00000}}{{{b}0000}}",
        f"(({a}^{{9}})^{{9}})^{{9}}",
    ]  # fmt: skip
    assert max(map(rough_cost, cheap)) < min(map(rough_cost, dear))


RUNAWAY = [
    r"9^{9^{9^{9}}}", r"\sum_{k=1}^{1000000000} \frac{1}{k}", r"(9999!)!", r"7^{99999999}",
]  # fmt: skip


@pytest.mark.costly
def test_a_runaway_item_does_not_cost_its_process() -> None:
    pytest.importorskip("math_verify")
    pool = WorkerPool(_WORKER, ["60", str(4 << 30)], workers=1, wall_s=600.0, cpu_s=60.0)
    honest = {"answer": [r"2\sqrt{3}"], "gold": [r"\sqrt{12}"]}
    try:
        assert pool.map([honest]) == [{"equal": True}]
        pids = pool.pids
        runaway = [{"answer": [t], "gold": [r"\sqrt{5}"], "limit_s": 0.05} for t in RUNAWAY]
        answers, own = pool.run([*runaway, honest])
        assert answers == [{"equal": False, "late": True}] * len(runaway) + [{"equal": True}]
        assert own == set() and pool.pids == pids
    finally:
        pool.close()


@contextmanager
def runaway_worker() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A worker whose item never ends, and the process id of its child."""
    pytest.importorskip("math_verify")
    process = subprocess.Popen(
        [sys.executable, _WORKER, "500", str(4 << 30)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        assert json.loads(process.stdout.readline()) == {"ready": True}
        process.stdin.write(b'{"answer": ["9^{9^{9^{9}}}"], "gold": ["x+1"]}\n')
        process.stdin.flush()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("this system does not tell the children of a process")
        until = time.monotonic() + 120
        while not (found := children.read_text().split()) and time.monotonic() < until:
            time.sleep(0.02)
        yield process, int(found[0])
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.costly
def test_nothing_is_left_of_a_process_whose_owner_is_gone() -> None:
    with runaway_worker() as (process, child):
        assert process.stdin is not None
        process.stdin.close()
        process.wait(120)
        until = time.monotonic() + 120
        while _alive(child) and time.monotonic() < until:
            time.sleep(0.02)
        assert not _alive(child)


@pytest.mark.costly
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_dies_takes_its_process_with_it(signum: signal.Signals) -> None:
    with runaway_worker() as (process, child):
        os.kill(child, signum)
        # Killed from outside is nobody's fault, a crash is the item's: see pool.Answers.
        assert process.wait(120) == (-signal.SIGKILL if signum == signal.SIGKILL else 1)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
