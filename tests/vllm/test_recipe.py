"""SIRI on a real vLLM from a recipe: whole steps, kill and resume, faults inside a step."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from transformers import AutoModelForCausalLM

from siri_train.checkpoint.save_load import checkpoints
from siri_train.cli import main
from siri_train.commands.sft import supervise
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.rollout import EngineError
from siri_train.rollout.vllm.engine import VllmEngine
from siri_train.train import train
from siri_train.trainer.metrics import METRIC_KEYS
from siri_train.trainer.sync_probe import SyncError
from tests.torchrun import torchrun

pytestmark = pytest.mark.timeout(3600)  # against hanging alone

TASK = {"min_operations": 1, "max_operations": 2, "slip_rate": 0.0, "single_pass_rate": 1.0}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "threads": 1,
    "model": {"scratch": {"hidden_size": 128, "intermediate_size": 128, "layers": 2}},
    "data": {
        "train": [{"kind": "embedded", "size": 256, "params": TASK}],
        "eval": [{"kind": "embedded", "size": 8, "seed": 1, "params": TASK}],
        "max_prompt_len": 24,
    },
    # The caps truncate some of the responses, which are 8 to 12 tokens long.
    "schedule": {"max_len": 16, "min_len": 10, "cycle": 4},
    "sft": {"steps": 60, "batch_size": 16, "lr": 3e-3},
    "rollout": {"engine": "vllm", "prompts": 8, "group_size": 8, "shards": 2},
    "train": {"steps": 5, "lr": 1e-3, "token_budget": 1024},
    "eval": {"every": 0},
    "checkpoint": {"every": 1, "keep_last": 9},
    "monitor": {"rollouts_every": 1, "rollouts_kept": 64},
}
CAPS = [16, 13, 10, 13, 16]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen the task, so that rewards differ."""
    folder = tmp_path_factory.mktemp("start")
    config = parse_config(
        copy.deepcopy(RECIPE), [f"output={folder}", "rollout.engine=transformers"]
    )
    return supervise(config)


@pytest.fixture(scope="module")
def recipe(start: Path) -> Callable[..., RunConfig]:
    def make(folder: Path, *overrides: str) -> RunConfig:
        raw = copy.deepcopy({**RECIPE, "model": {"path": str(start)}})
        del raw["sft"]
        return parse_config(raw, [f"output={folder}", *overrides])

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Callable[..., RunConfig]) -> Path:
    """Five steps without an incident."""
    return train(recipe(tmp_path_factory.mktemp("whole") / "run"))


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Every line must be whole."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def weights(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same(row: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run repeats: all that does not depend on the clock and the process."""
    timed = ("time_rollout", "time_train", "rollout_tokens_per_s", "train_tokens_per_s")
    return {k: v for k, v in row.items() if k not in (*timed, "peak_memory_gb")}


def test_five_steps(whole: Path, start: Path) -> None:
    metrics = rows(whole)
    assert [row["cap"] for row in metrics] == CAPS
    for row in metrics:
        assert tuple(row) == METRIC_KEYS
        assert row["rollout_kl"] < 1e-6 and abs(row["rollout_ratio_max"] - 1) < 1e-3
        assert row["probe_logprob_diff"] < 1e-4
        assert 0 < row["reward_mean"] < 1 and row["grad_norm"] > 0
    assert sum(row["truncated_frac"] > 0 for row in metrics) >= 2
    for step, cap in enumerate(CAPS):
        responses = rows(whole, f"rollouts/step_{step:06d}.jsonl")
        assert len(responses) == 64
        assert all(r["tokens"] <= cap for r in responses)
        truncated = [r for r in responses if r["truncated"]]
        # A truncated response is rewarded only for an answer before its end.
        assert all(r["tokens"] == cap and (r["reward"] == 0 or r["answer"]) for r in truncated)
        assert any(r["truncated"] for r in responses) or cap == 16
    saved = [weights(start), *(weights(folder) for folder in checkpoints(whole).values())]
    assert len(saved) == 6
    assert all((b - a).norm() > 1e-3 for a, b in zip(saved, saved[1:], strict=False))
    assert not dist.is_initialized()  # vLLM has been shut down with the run


def kill_after_two_rows(path: Path, run: Path) -> None:
    metrics, log = run / "metrics.jsonl", path.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "siri_train", "train", str(path)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        # Whole lines: the row of a step may be half written when it is looked at.
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() in (None, 0), log.read_text()[-3000:]
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_a_killed_run_is_continued(
    recipe: Callable[..., RunConfig], whole: Path, tmp_path: Path
) -> None:
    """SIGKILL at a random moment of the third step, in a process of its own."""
    run = tmp_path / "run"
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe(run).to_yaml())
    for _ in range(3):  # one that is done before it is looked at starts anew
        kill_after_two_rows(path, run)
        if len(rows(run)) < 5:
            break
        shutil.rmtree(run)
    assert 2 <= len(rows(run)) < 5
    assert main(["train", str(path)]) == 0
    assert [same(row) for row in rows(run)] == [same(row) for row in rows(whole)]
    last = "checkpoints/step_000005"
    assert torch.equal(weights(run / last), weights(whole / last))


def crash_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's engine fails in the middle of the ``call``-th ``generate``."""
    calls = []
    real = VllmEngine.generate

    def generate(self: VllmEngine, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            step, steps = self.llm.llm_engine.step, []

            def fail() -> Any:
                steps.append(1)
                if len(steps) == 4:
                    raise RuntimeError("worker died")
                return step()

            self.llm.llm_engine.step = fail
        return real(self, *args, **kwargs)

    monkeypatch.setattr(VllmEngine, "generate", generate)


def test_an_engine_that_crashes_in_a_step_ends_the_run_with_its_state_whole(
    recipe: Callable[..., RunConfig],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, run = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(recipe(run, "train.steps=2").to_yaml())
    with monkeypatch.context() as patch:
        # Two shards each: the probe and the evaluation at the start, the first step's rollout and
        # probe; then the second step's rollout, in its second half.
        crash_at(10, patch)
        assert main(["train", str(path)]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: worker died" in said and "newest checkpoint" in said
    assert "Traceback" not in said
    assert [row["step"] for row in rows(run)] == [0]
    assert list(checkpoints(run)) == [1]
    assert not dist.is_initialized()
    assert main(["train", str(path)]) == 0
    assert [same(row) for row in rows(run)] == [same(row) for row in rows(whole)[:2]]


def test_weights_of_nan_are_seen_before_they_are_sampled_from(
    recipe: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import siri_train.train

    real = siri_train.train.update

    def poisoned(policy: Any, *args: Any, **kwargs: Any) -> Any:
        stats = real(policy, *args, **kwargs)
        if kwargs["seed"] % 1_000_003 == 1:
            with torch.no_grad():
                policy.model.model.norm.weight[0] = float("nan")
        return stats

    monkeypatch.setattr(siri_train.train, "update", poisoned)
    with pytest.raises(SyncError, match="NaN in the weights"):
        train(recipe(tmp_path / "run"))
    assert [row["step"] for row in rows(tmp_path / "run")] == [0]
    assert list(checkpoints(tmp_path / "run")) == [1]


def test_a_vllm_that_does_not_start_leaves_nothing_behind(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="rollout.vllm.cache_gib"):
        train(recipe(tmp_path / "run", "rollout.vllm.cache_gib=60000"))
    assert not (tmp_path / "run").exists() and not dist.is_initialized()


def test_siri_train_eval_samples_with_the_recipes_vllm(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []
    real = VllmEngine.generate
    monkeypatch.setattr(
        VllmEngine, "generate", lambda self, *a, **k: started.append(self) or real(self, *a, **k)
    )
    assert main(["eval", str(whole / "checkpoints/step_000005")]) == 0
    # Two shards each: the sync probe, the evaluation.
    assert len(started) == 4 and '"questions": 8' in capsys.readouterr().out
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert config["rollout"]["vllm"]["sleep_level"] == 1


def test_two_ranks_each_with_a_vllm_draw_what_one_process_draws(
    recipe: Callable[..., RunConfig], whole: Path, tmp_path: Path
) -> None:
    """torchrun, FSDP2: every sync gathers the shards, every rank samples its part."""
    run, path = tmp_path / "run", tmp_path / "tiny.yaml"
    path.write_text(recipe(run, "train.steps=2", "device=cpu").to_yaml())
    arguments = ("-m", "siri_train", "train", str(path))
    done = torchrun(*arguments, folder=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    for got, want in zip(rows(run), rows(whole), strict=False):
        for name in ("cap", "tokens", "reward_mean", "truncated_frac"):
            assert got[name] == want[name]
        assert got["loss"] == pytest.approx(want["loss"], abs=1e-5)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-3)
        assert got["probe_logprob_diff"] < 1e-5
    assert len(rows(run)) == 2
