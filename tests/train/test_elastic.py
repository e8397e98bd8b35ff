"""Ranks that are started again: by torchrun after a death, on fewer nodes, as four of them."""

from __future__ import annotations

import copy
import datetime
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_train import distributed
from siri_train.checkpoint.save_load import problem
from siri_train.config.recipe import load_config
from siri_train.model import demo_model
from siri_train.train import train
from tests.torchrun import ROOT, torchrun

from .conftest import TINY

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available(),
        reason="this PyTorch is built without torch.distributed",
    ),
    pytest.mark.timeout(3600),
]

MEASURED = ("time_rollout", "time_train", "rollout_tokens_per_s", "train_tokens_per_s",
            "peak_memory_gb", "ranks")  # fmt: skip


def member(environment: dict[str, str], delay: float, pipe: Any) -> None:
    os.environ.update(environment)
    time.sleep(delay)
    store = distributed.fresh_store(datetime.timedelta(seconds=60))
    if environment["RANK"] == "0":
        store.set("launch", environment["LAUNCH"])
    pipe.send(store.get("launch").decode())


def test_the_ranks_of_a_launch_meet_each_other_and_no_dead_ones() -> None:
    """Launches of unequal size share torchrun's store, in which the former ones left everything.

    Some launches end while not all of their ranks have come.
    """
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    host = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    fork = multiprocessing.get_context("fork")
    for launch in range(8):
        size = draw.randint(1, 5)
        ranks = []
        for number in range(size):
            environment = {
                "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(host.port), "RANK": str(number), "WORLD_SIZE": str(size),
                "LAUNCH": str(launch),
            }  # fmt: skip
            ours, theirs = fork.Pipe()
            delay = draw.choice([0.0, 0.0, 0.1])
            arguments = (environment, delay, theirs)
            process = fork.Process(target=member, args=arguments, daemon=True)
            process.start()
            ranks.append((process, ours))
        if dies := draw.random() < 0.4:
            ranks[draw.randrange(size)][0].kill()
        for process, pipe in ranks:
            if not dies:
                assert pipe.poll(60), f"seed {seed}: launch {launch} of {size} ranks hangs"
                assert pipe.recv() == str(launch), f"seed {seed}"
            else:
                process.kill()
            process.join()


def test_a_rank_without_the_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    host = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(host.port), "WORLD_SIZE": "3",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for number, missing in ((0, "ranks 1, 2 of 3"), (2, "rank 0")):
        monkeypatch.setenv("RANK", str(number))
        with pytest.raises(RuntimeError, match=f"no word from {missing}"):
            distributed.fresh_store(datetime.timedelta(seconds=2))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert distributed.fresh_store(datetime.timedelta(seconds=1)) is None


DIES = '''
"""A plug-in: one rank gets SIGKILL in an update, once."""
import os
import signal
from pathlib import Path

import siri_train.train as method

update, calls = method.update, []


def once(*args, **kwargs):
    calls.append(1)
    if len(calls) == {call} and os.environ.get("RANK") == "{rank}":
        flag = Path(__file__).with_suffix(".died")
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return update(*args, **kwargs)


method.update = once
'''


WAITS = '''
"""A plug-in: the ranks wait in their third update until the test has killed a node."""
import time
from pathlib import Path

import siri_train.train as method

update, calls = method.update, []


def held(*args, **kwargs):
    calls.append(1)
    while len(calls) >= 3 and not Path(__file__).with_name("go").exists():
        time.sleep(0.02)
    return update(*args, **kwargs)


method.update = held
'''


def recipe(folder: Path, shards: int, **sections: Any) -> Path:
    """A tiny recipe with this number of shards, written to ``folder``."""
    made = copy.deepcopy(TINY)
    made["device"] = "cpu"
    made["rollout"]["shards"] = shards
    made["train"] |= {"token_budget": 200, "mini_batches": 1}  # several rows a rank
    for section, values in sections.items():
        made[section] = {**made.get(section, {}), **values}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{step:06d}"
    assert problem(folder) is None
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def near(run: Path, reference: Path, steps: int, begin: Path) -> None:
    """Another number of ranks adds in another order: the same run up to rounding."""
    got, want = weights(run, steps), weights(reference, steps)
    start = AutoModelForCausalLM.from_pretrained(begin).state_dict()
    apart = {
        name: torch.cat([(a[key] - want[key]).flatten() for key in want]).norm()
        for name, a in (("run", got), ("start", start))
    }
    assert apart["run"] < 1e-3 * apart["start"]
    assert len(rows(run)) == len(rows(reference)) == steps
    for ours, theirs in zip(rows(run), rows(reference), strict=True):
        assert ours["response_len_hist"] == theirs["response_len_hist"]
        for key in ("tokens", "reward_mean", "cap", "phase", "groups_all_zero"):
            assert ours[key] == pytest.approx(theirs[key]), key
        for key in ("loss", "grad_norm", "entropy"):
            want = theirs[key]  # None: nothing went through the model
            near_it = None if want is None else pytest.approx(want, rel=1e-3, abs=1e-6)
            assert ours[key] == near_it, key


@pytest.mark.slow
def test_torchrun_starts_all_ranks_again_after_one_was_killed(tmp_path: Path) -> None:
    """The run is to the bit the one that nobody killed."""
    path = recipe(tmp_path, 2)
    (tmp_path / "dies.py").write_text(DIES.format(call=3, rank=1))
    outputs = {name: tmp_path / name for name in ("whole", "killed")}
    launcher = ["-m", "siri_train", "train", str(path)]
    done = torchrun(*launcher, f"output={outputs['whole']}")
    assert done.returncode == 0, done.stdout + done.stderr
    killed = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "1", *launcher, f"output={outputs['killed']}", "plugins=[dies]"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stdout + killed.stderr
    assert (tmp_path / "dies.died").exists() and "exitcode: -9" in killed.stderr
    want, got = weights(outputs["whole"], 4), weights(outputs["killed"], 4)
    assert all(torch.equal(value, got[name]) for name, value in want.items())
    for ours, theirs in zip(rows(outputs["killed"]), rows(outputs["whole"]), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - set(MEASURED):
            assert ours[key] == theirs[key], key


@pytest.fixture
def agents() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Torchrun agents that a test starts; they and their ranks end with it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for agent in started:
        kill_tree(agent)
        agent.wait()


def kill_tree(agent: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and its children at the same time, as when a machine loses power."""
    if agent.poll() is not None:  # its number may be another process's now
        return
    os.kill(agent.pid, signal.SIGSTOP)  # it starts no further rank
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    below = children.read_text().split() if children.exists() else []
    for pid in (agent.pid, *map(int, below)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a node's processes in /proc")
def test_a_run_goes_on_without_a_node_that_died(
    tmp_path: Path, agents: list[subprocess.Popen[bytes]]
) -> None:
    """Two nodes of one rank, of which one is lost: torchrun goes on with the other one."""
    steps = 6
    path = recipe(tmp_path, 2, train={"steps": steps, "lr": 1e-4}, schedule={"cycle": 6})
    (tmp_path / "waits.py").write_text(WAITS)
    train(load_config(path, [f"output={tmp_path / 'alone'}"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
        "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
        "--rdzv-id", "job",
        # The second node may come a minute later under load; a dead one is noticed in seconds.
        "--rdzv-conf", "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=5",
        "-m", "siri_train", "train", str(path), f"output={tmp_path / 'run'}",
        "plugins=[waits]",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with open(tmp_path / "said.txt", "wb") as said:
        for _ in range(2):  # the first one keeps the store
            agents.append(
                subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
            )
            wait_for(lambda: listening(port), 300, "torchrun's store")
        both = tmp_path / "run" / "metrics.jsonl"

        def together() -> bool:  # the checkpoint of the first of two steps is then whole
            return sum(row["ranks"] == 2 for row in rows_so_far(both)) >= 2

        wait_for(together, 900, "two steps of both")
        kill_tree(agents[1])
        (tmp_path / "go").touch()
        assert agents[0].wait(timeout=1800) == 0, (tmp_path / "said.txt").read_text()
    ranks = [row["ranks"] for row in rows(tmp_path / "run")]
    assert ranks[-1] == 1 and 2 in ranks, ranks
    near(tmp_path / "run", tmp_path / "alone", steps, demo_model.START_FOLDER)


def rows_so_far(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(ready: Any, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"no {what} in {seconds} s"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True], ids=["whole head", "sharded head"])
def test_four_ranks_are_one_process(tmp_path: Path, cut: bool) -> None:
    """FSDP2 over four ranks, packed rows, rollouts by shards; a run that one process then ends."""
    model = AutoModelForCausalLM.from_pretrained(demo_model.START_FOLDER)
    head = model.get_output_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.resize_token_embeddings(40, mean_resizing=False)  # four parts of ten ids
    with torch.no_grad():
        model.lm_head.weight[len(head) :] = 0
    start = tmp_path / "start"
    model.save_pretrained(start)
    AutoTokenizer.from_pretrained(demo_model.START_FOLDER).save_pretrained(start)
    path = recipe(tmp_path, 4, model={"path": str(start)}, train={"steps": 3})
    train(load_config(path, [f"output={tmp_path / 'alone'}"]))
    arguments = ["-m", "siri_train", "train", str(path), f"output={tmp_path / 'run'}"]
    arguments += [f"distributed.vocabulary_parallel_head={str(cut).lower()}", "train.steps=2"]
    done = torchrun(*arguments, ranks=4)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["ranks"] for row in rows(tmp_path / "run")] == [4, 4]
    train(load_config(path, [f"output={tmp_path / 'run'}"]), resume="auto")
    near(tmp_path / "run", tmp_path / "alone", 3, start)
