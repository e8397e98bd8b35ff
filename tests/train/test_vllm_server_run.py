"""Whole SIRI runs from a recipe with a server that samples from the weights it was sent."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.model.policy import load_policy, resolve_model_path
from siri_train.rollout import EngineError
from siri_train.rollout.vllm.server import VllmServerEngine
from siri_train.train import train
from tests.torchrun import torchrun
from tests.train.fake_vllm import TESTED, TOO_NEW, FakeVllm, HangUp, Sampler


@pytest.fixture
def fake(tiny: Any) -> Iterator[FakeVllm]:
    config = tiny()
    policy = load_policy(config.model, torch.device("cpu"))
    server = FakeVllm(resolve_model_path(config.model), Sampler(policy.model)).start()
    yield server
    server.die()


def recipe(tiny: Any, fake: FakeVllm, *overrides: str) -> Any:
    return tiny(
        "rollout.engine=vllm-server",
        f"rollout.server.url={fake.url}",
        "rollout.server.start_minutes=4",
        "train.steps=3",
        "rollout.prompts=2",
        "eval.at_start=false",
        "data.eval.0.size=2",  # the server answers one request after the other
        *overrides,
    )


def sampled(body: Any) -> bool:
    """A response for training or evaluation; the probe's are shorter than any cap."""
    return "sampling_params" in body and body["sampling_params"]["max_tokens"] > 16


def rows(run: Path) -> list[dict[str, Any]]:
    timed = ("time_rollout", "time_train", "rollout_tokens_per_s", "train_tokens_per_s",
             "peak_memory_gb")  # fmt: skip
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.costly
@pytest.mark.draw(1, "runs")
def test_a_run_whose_server_is_killed_ends_as_one_whose_server_is_not(
    tiny: Any, fake: FakeVllm, tmp_path: Path
) -> None:
    undisturbed = rows(train(recipe(tiny, fake, f"output={tmp_path / 'calm'}")))
    assert len(undisturbed) == 3 and all(row["probe_logprob_diff"] < 1e-4 for row in undisturbed)
    assert any(row["grad_norm"] for row in undisturbed)  # new weights, and the probe saw them
    assert len(fake.asked("/collective_rpc")) == 4  # at the start and after each step

    answers, deaths = itertools.count(1), []

    def count(route: str, body: Any) -> None:
        if route == "/inference/v1/generate" and sampled(body):
            if next(answers) in (10, 20):  # in the second step, and while it is sampled again
                deaths.append(fake.restart(0.4))
                raise HangUp

    fake.hook = count
    killed = train(recipe(tiny, fake, f"output={tmp_path / 'killed'}"))
    for thread in deaths:
        thread.join()
    assert len(deaths) == 2
    assert rows(killed) == undisturbed
    assert not (killed / "server").exists()  # weights for the server


@pytest.mark.draw(1, "runs")
def test_a_server_that_stays_away_ends_the_run_and_the_run_can_be_continued(
    tiny: Any, fake: FakeVllm, tmp_path: Path
) -> None:
    undisturbed = rows(train(recipe(tiny, fake, f"output={tmp_path / 'calm'}")))
    answers = itertools.count(1)

    def die(route: str, body: Any) -> None:
        if route == "/inference/v1/generate" and sampled(body):
            if next(answers) == 10:  # in the second step
                fake.die()
                raise HangUp

    fake.hook = die
    config = recipe(tiny, fake, f"output={tmp_path / 'lost'}", "rollout.server.start_minutes=0.02")
    with pytest.raises(EngineError, match="no vLLM server at .*newest checkpoint"):
        train(config)
    assert len(rows(config.run_dir)) < 3
    fake.hook = lambda route, body: None
    fake.start()
    assert rows(train(config)) == undisturbed


@pytest.mark.slow
def test_two_ranks_share_a_server_that_is_killed(tiny: Any, fake: FakeVllm, tmp_path: Path) -> None:
    """Rank 0 sends the weights; after the restart either rank does."""
    config = recipe(tiny, fake, "rollout.shards=2", "train.steps=2", f"output={tmp_path / 'one'}")
    undisturbed = rows(train(config))
    answers, deaths = itertools.count(1), []

    def count(route: str, body: Any) -> None:
        if route == "/inference/v1/generate" and sampled(body):
            if next(answers) == 10:  # in the second step
                deaths.append(fake.restart(0.4))
                raise HangUp

    fake.hook = count
    path = tmp_path / "recipe.yaml"
    path.write_text(config.model_copy(update={"output": str(tmp_path / "two")}).to_yaml())
    done = torchrun("-m", "siri_train", "train", str(path), timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert deaths and len(fake.asked("/collective_rpc")) >= 3 + 3 + 1
    got = rows(tmp_path / "two")
    assert len(got) == len(undisturbed) == 2
    for row, want in zip(got, undisturbed, strict=True):
        for key in ("reward_mean", "tokens", "loss", "grad_norm", "entropy"):
            assert row[key] == pytest.approx(want[key], rel=1e-3, abs=1e-6), key


@pytest.mark.costly
def test_refusals_before_anything_is_loaded(
    tiny: Any, fake: FakeVllm, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake.vllm = TOO_NEW
    with pytest.raises(ConfigError, match=f"vLLM {TOO_NEW} runs at"):
        train(recipe(tiny, fake))
    fake.vllm = TESTED
    with pytest.raises(ConfigError, match="--max-model-len 184"):
        train(recipe(tiny, fake, "schedule.max_len=160"))
    with pytest.raises(ConfigError, match="rollout.server.sync: got nccl.*takes disk"):
        train(recipe(tiny, fake, "rollout.server.sync=nccl"))
    with pytest.raises(ConfigError, match="python is for a server that the trainer starts"):
        recipe(tiny, fake, "rollout.server.python=python3")
    with pytest.raises(ConfigError, match="rollout.server.url: got 'localhost'"):
        train(recipe(tiny, fake, "rollout.server.url=localhost"))
    assert not (tmp_path / "run").exists()
    fake.die()
    path = tmp_path / "recipe.yaml"
    config = recipe(tiny, fake, "rollout.server.start_minutes=0.01")
    path.write_text(config.to_yaml())
    assert main(["train", str(path)]) == 1
    assert f"no vLLM server at {fake.url}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def own(tiny: Any, tmp_path: Path) -> Any:
    """A recipe whose run starts a server of its own, from an interpreter that is the fake."""
    python = tmp_path / "python"
    root = Path(__file__).parents[2]
    python.write_text(
        f"#!/bin/sh\n[ $1 = -c ] && echo {TESTED} && exit\n"
        f'cd {root} && exec {sys.executable} -m tests.train.fake_vllm "$@"\n'
    )
    python.chmod(0o755)

    def make(*overrides: str) -> Any:
        return tiny(
            "rollout.engine=vllm-server",
            f"rollout.server.python={python}",
            "model={path: scratch, scratch: {hidden_size: 64, heads: 2, layers: 2}}",
            *("train.steps=2", "rollout.prompts=2", "eval.at_start=false"),
            *("loss.entropy_coef=0.01", "rollout.server.start_minutes=10"),
            *overrides,
        )

    return make


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_run_with_a_server_of_its_own_which_is_killed(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = rows(train(own(f"output={tmp_path / 'calm'}")))
    assert all(row["probe_logprob_diff"] < 1e-4 and row["grad_norm"] for row in undisturbed)
    started, killed = itertools.count(1), []
    respond = VllmServerEngine._respond

    def count(self: VllmServerEngine, call: Any, *job: Any) -> Any:
        assert self.process is not None
        if call.params.max_tokens > 16 and next(started) == 10:  # in the second step
            killed.extend(children(self.process._supervisor.pid))
            os.kill(killed[0], signal.SIGKILL)
        return respond(self, call, *job)

    monkeypatch.setattr(VllmServerEngine, "_respond", count)
    config = own(f"output={tmp_path / 'killed'}")
    assert rows(train(config)) == undisturbed
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    log = (config.run_dir / "server.log").read_text()
    assert log.count("supervisor: start") == 2 and log.count("ended, status -9") == 1
    assert not (config.run_dir / "server").exists()
    assert not children(os.getpid()) or "supervisor" not in processes()


def processes() -> str:
    """The command lines of this process's children."""
    return " ".join(
        Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in children(os.getpid())
    )


def test_an_own_server_needs_vllm(tiny: Any, tmp_path: Path) -> None:
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\nexit 1\n")
    nothing.chmod(0o755)
    config = tiny("rollout.engine=vllm-server", f"rollout.server.python={nothing}")
    with pytest.raises(ConfigError, match="no vLLM in the environment of"):
        train(config)
    assert not (tmp_path / "run").exists()
