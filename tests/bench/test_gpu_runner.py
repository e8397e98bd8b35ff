"""The runner of a GPU run: order, budget, limits and what is left over, by a clock of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.__main__ import parser_for
from bench.gpu import environment, plan, records
from bench.gpu.clock import Clock
from bench.gpu.command import call_of
from bench.gpu.plan import Part
from bench.gpu.process import Started, wait
from bench.gpu.records import Records, read
from bench.gpu.runner import Call, Runner
from bench.gpu.summary import summary

ROOT = Path(__file__).parents[2]


class FakeClock(Clock):
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += max(seconds, 0.5)


class FakeProcess:
    """Runs for so long, then gives its exit code; a line is written when it starts."""

    def __init__(self, clock: FakeClock, seconds: float, code: int) -> None:
        self.clock, self.end, self.code = clock, clock.now() + seconds, code
        self.killed = False

    def poll(self) -> int | None:
        if self.killed and self.clock.now() < self.end:
            return -9
        return self.code if self.clock.now() >= self.end else None

    def kill(self) -> None:
        self.killed = True


class Machine:
    """What each part does: (seconds, exit code); the others take ``otherwise`` seconds."""

    def __init__(self, out: Path, parts: dict[str, tuple[float, int]], otherwise: float = 5):
        self.clock, self.out, self.parts, self.otherwise = FakeClock(), out, parts, otherwise
        self.began: list[str] = []
        self.commands: list[list[str]] = []

    def start(self, command, environment, log) -> FakeProcess:
        name = command[command.index("bench.gpu.child") + 1] if "bench.gpu.child" in command else ""
        self.began.append(name)
        self.commands.append(list(command))
        if name:
            call = command[command.index("--call") + 1]
            file = Records(self.out / f"{call}.jsonl", {"call": call, "part": name})
            file.write("number", key=f"{name}.x", value=1.0)
            log.write_text(f"output of {name}\n")
        return FakeProcess(self.clock, *self.parts.get(name, (self.otherwise, 0)))

    def run(self, name="first", **options) -> dict[str, str]:
        call = Call(name, self.out, wheels=self.out / "no wheels", **options)
        return Runner(call, self.clock, self.start, say=lambda line: None).run()


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    facts = {"commit": "abc", "source": "def", "python": "3.12", "cores": 16, "versions": {}}
    monkeypatch.setattr(environment, "facts", lambda: dict(facts))


def limits(out: Path, call: str = "first") -> dict[str, float]:
    return {r["part"]: r["limit"] for r in read(out) if r["what"] == "start" and r["call"] == call}


def test_all_parts_in_their_order_and_the_call_ends_in_time(tmp_path):
    machine = Machine(tmp_path, {})
    ended = machine.run()
    assert machine.began == list(plan.BY_NAME) == list(ended)
    assert set(ended.values()) == {"done"}
    assert {r["key"] for r in read(tmp_path) if r["what"] == "number"} == {
        f"{name}.x" for name in plan.BY_NAME
    }


def test_a_hanging_part_is_killed_at_its_limit_and_the_others_run(tmp_path):
    machine = Machine(tmp_path, {"head": (10_000, 0), "values": (3, -11)})
    begun = machine.clock.now()
    ended = machine.run()
    assert ended.pop("head") == "killed" and ended.pop("values") == "failed"
    assert set(ended.values()) == {"done"}
    assert machine.clock.now() - begun < plan.BUDGETS["first"]
    end = {r["part"]: r for r in read(tmp_path) if r["what"] == "end"}
    assert "over its limit of 140 s" in end["head"]["why"]
    assert end["values"]["why"] == "ended by SIGSEGV"
    assert "head.x" in {r.get("key") for r in read(tmp_path)}, "what it wrote before is kept"


def test_all_hang_and_the_budget_still_holds(tmp_path):
    machine = Machine(tmp_path, {}, otherwise=10_000)
    begun = machine.clock.now()
    ended = machine.run()
    assert machine.clock.now() - begun <= plan.BUDGETS["first"]
    # Reserves hold: nobody before them takes the step's time.
    assert all(ended[n] == "killed" for n in ("rates", "values", "head", "tests", "step"))
    given = limits(tmp_path)
    for name in ("tests", "losses", "step"):
        assert given[name] >= plan.BY_NAME[name].reserve - 12  # killing takes a moment
    assert ended["peer-verl"] == "not reached"
    told = {r["part"]: r for r in read(tmp_path) if r["what"] == "end"}
    assert "s were left" in told["peer-verl"]["why"]


def test_what_is_left_is_given_on():
    parts = [Part("a", 40, 100), Part("b", 50, 60), Part("c", 10, 500)]
    assert plan.limit(parts[0], parts[1:], 120) == 60  # 120 less what b and c keep
    assert plan.limit(parts[0], parts[1:], 300) == 100  # not more than its most
    assert plan.limit(parts[1], parts[2:], 118) == 60
    assert plan.limit(parts[2], [], 116) == 116
    assert plan.limit(parts[0], parts[1:], 70) == 40  # short: from the front
    assert plan.limit(parts[0], parts[1:], 20) == 20


def test_reserves_fit_into_the_first_call():
    kept = sum(part.reserve for part in plan.PARTS)
    assert kept <= plan.BUDGETS["first"] - plan.MARGIN
    assert plan.BUDGETS["first"] + 10 < 570 and plan.BUDGETS["second"] < 240


def test_the_second_call_makes_up_and_then_measures_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    hang, crash = (10_000, 0), (3, 1)
    lame = {"head": hang, "step": crash, "step-full": (300, 0), "tests": hang, "rates": (70, 0)}
    ended = Machine(first, lame, otherwise=40).run()
    left = [n for n, status in ended.items() if status == "not reached"]
    assert left, "nothing left to make up for"
    machine = Machine(second, {}, otherwise=5)
    begun = machine.clock.now()
    again = machine.run("second", after=first)
    failed = [n for n, status in ended.items() if status in ("failed", "killed")]
    assert machine.began[: len(left)] == left
    assert machine.began[len(left) : len(left) + len(failed)] == failed
    done = [n for n in plan.AGAIN if ended[n] == "done"]
    assert machine.began[len(left) + len(failed) :] == done
    assert machine.clock.now() - begun <= plan.BUDGETS["second"]
    assert all(status == "done" for status in again.values())
    assert all("--after" in command for command in machine.commands)


def test_the_second_call_after_a_whole_first_one_repeats_the_most_important(tmp_path):
    Machine(tmp_path, {}).run()
    machine = Machine(tmp_path, {})
    machine.run("second")  # the same folder: it finds the first call there
    assert machine.began == list(plan.AGAIN)
    assert {r["call"] for r in read(tmp_path)} == {"first", "second"}


def test_files_are_few_and_small(tmp_path):
    Machine(tmp_path, {"head": (3, 1)}).run()
    Machine(tmp_path, {}).run("second")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) <= 8
    for path in files:
        assert path.parent == tmp_path and path.stat().st_size < 16 * 2**20
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert "output of head" in (tmp_path / "first.log").read_text()


def test_a_log_that_grows_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.runner.PART_LOG", 100)
    monkeypatch.setattr("bench.gpu.runner.MOST_LOG", 500)
    machine = Machine(tmp_path, {})
    start = machine.start

    def loud(command, environment, log):
        process = start(command, environment, log)
        log.write_text("x" * 5000 + "the end\n")
        return process

    machine.start = loud  # type: ignore[method-assign]
    machine.run()
    text = (tmp_path / "first.log").read_text()
    assert len(text) < 500 and "the end" in text


def test_records_stop_before_the_file_is_too_large(tmp_path):
    file = Records(tmp_path / "a.jsonl", {"call": "first"}, most=3000)
    for number in range(200):
        file.write("number", key="k", value=number)
    assert file.path.stat().st_size <= 3000
    found = list(read(tmp_path))
    assert found[-1]["what"] == "full" and found[0]["value"] == 0


def test_half_a_line_costs_only_itself(tmp_path):
    file = Records(tmp_path / "a.jsonl", {"call": "first"})
    file.write("number", key="a", value=float("nan"))
    with file.path.open("a") as out:
        out.write('{"what": "number", "ke')
    file.write("number", key="b", value=float("inf"))
    assert [(r["key"], r["value"]) for r in read(tmp_path)] == [("a", "nan"), ("b", "inf")]


def test_a_line_that_is_too_long_is_named_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_LINE", 200)
    Records(tmp_path / "a.jsonl", {"part": "head"}).write("kernels", rows=["x" * 300])
    assert "left_out" in next(read(tmp_path))


def test_wheels_are_installed_first_and_found_by_the_parts(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a-1-py3-none-any.whl").touch()
    machine, seen = Machine(tmp_path / "out", {}), []
    start = machine.start
    machine.start = lambda c, e, log: (seen.append((c, e["PYTHONPATH"])), start(c, e, log))[1]  # type: ignore[method-assign]
    Runner(Call("first", machine.out, wheels=wheels), machine.clock, machine.start, print).run()
    pip, paths = seen[0]
    assert {"--no-index", "--no-deps", "--target"} <= set(pip) and "site" not in paths
    assert all(path.endswith("site") for _, path in seen[1:])


def test_the_command_line():
    def call_for(words: str) -> Call:
        return call_of(parser_for("gpu").parse_args(["gpu", *words.split()]))

    call = call_for("second out --after first --only head,step --limit head=3 --rehearse")
    assert (call.name, call.only, call.limits) == ("second", ("head", "step"), {"head": 3.0})
    with pytest.raises(SystemExit, match="no part is called 'nothing'; takes rates, "):
        call_for("first out --only nothing")


def test_the_runner_imports_no_torch():
    code = "import sys, bench.gpu.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_closing_table_is_short_and_says_what_is_wrong(tmp_path):
    Machine(tmp_path, {"head": (3, 1)}).run()
    file = Records(tmp_path / "first.jsonl", {"call": "first", "part": "values"})
    file.write("check", name="9000x1536 lists", ok=False, wrong=["d_weight"])
    for number in range(500):
        file.write("test_failed", test=f"tests/kernels/test_x.py::test_{number}", message="no")
    text = summary(list(read(tmp_path)))
    assert "head           failed" in text and "WRONG 9000x1536 lists ['d_weight']" in text
    assert len(text) < 12_000


def test_a_process_is_killed_with_its_children(tmp_path):
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)']); print(p.pid, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    process = Started([sys.executable, "-c", code], os.environ, log)
    end = time.monotonic() + 20
    while not log.read_text().strip() and time.monotonic() < end:
        time.sleep(0.05)
    child = int(log.read_text())
    status, why = wait(process, 0.1, Clock())
    assert status == "killed" and "over its limit" in why
    while _alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.slow
def test_a_crash_a_hang_and_a_missing_package_lose_nothing_of_the_others(tmp_path):
    """Real processes: the parts themselves, at the sizes of a rehearsal."""
    done = subprocess.run(
        ["sh", "scripts/gpu_run.sh", "first", str(tmp_path), "--rehearse",
         "--only", "rates,values,repeats,step-full,fused", "--limit", "repeats=1",
         # A rehearsal's own limits are for an idle machine.
         "--limit", "rates=150", "--limit", "values=150", "--limit", "fused=150",
         "--fault", "crash:values", "--fault", "hang:repeats", "--fault", "missing:pydantic"],
        cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    end = {r["part"]: r for r in read(tmp_path) if r["what"] == "end"}
    assert {name: r["status"] for name, r in end.items()} == {
        "rates": "done", "values": "failed", "repeats": "killed", "fused": "done",
        "step-full": "missing",
    }  # fmt: skip
    assert end["values"]["why"] == "ended by SIGSEGV"
    assert end["step-full"]["why"] == "pydantic is not installed: pip install pydantic"
    assert end["step-full"]["seconds"] < 3
    first = json.loads((tmp_path / "first.jsonl").read_text().splitlines()[0])
    assert first["what"] == "environment"
    assert "rates.copy" in {r.get("key") for r in read(tmp_path)}
    assert "step-full" in done.stdout[-3000:]
