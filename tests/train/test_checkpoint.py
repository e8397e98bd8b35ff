"""Checkpoints: killed at any moment, damaged, foreign, on a full disk, and what is kept."""

from __future__ import annotations

import copy
import json
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from siri_train.checkpoint import retention, save_load
from siri_train.checkpoint.manifest import export
from siri_train.checkpoint.save_load import CheckpointError, checkpoints, problem
from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.files import WriteError, recover, written_aside
from siri_train.train import train
from siri_train.trainer import run_folder
from siri_train.trainer.evaluate import Evaluated, Evaluation
from siri_train.trainer.run import Run
from tests.train.conftest import TINY
from tests.train.killer import killed_and_finished, untimed

TIMING = {"time_rollout", "time_train", "rollout_tokens_per_s", "train_tokens_per_s",
          "peak_memory_gb", "seconds"}  # fmt: skip


def rows(path: Path) -> list[dict[str, Any]]:
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in kept]


ROLLOUTS = {
    "synchronous": (),
    "ahead": ("rollout.asynchronous=true", "checkpoint.every=2"),
    "dynamic": ("rollout.oversample=2", "rollout.max_rounds=2", "rollout.batch_rows=8"),
    "dynamic, ahead": (
        "rollout.asynchronous=true", "rollout.oversample=2", "rollout.keep=first_done",
    ),
}  # fmt: skip


@pytest.mark.draw(1)
@pytest.mark.parametrize("rollouts", ["synchronous", "dynamic, ahead"])
def test_kill_at_random_moments_changes_nothing(tiny: Any, tmp_path: Path, rollouts: str) -> None:
    _kill_and_compare(tiny, tmp_path, 4, ROLLOUTS[rollouts])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rollouts", ROLLOUTS)
def test_fifty_kills_change_nothing(tiny: Any, tmp_path: Path, rollouts: str) -> None:
    _kill_and_compare(tiny, tmp_path, 50, ROLLOUTS[rollouts])


def _kill_and_compare(tiny: Any, tmp_path: Path, kills: int, options: Sequence[str]) -> None:
    """SIGKILL in rollout, update and checkpoint write in turn; see tests/train/killer.py."""
    steps = 8
    short = ("schedule.max_len=32", "schedule.min_len=16")
    options = [f"train.steps={steps}", "train.lr_warmup_steps=3", *short, *options]
    whole = tiny(*options, f"output={tmp_path / 'whole'}")
    cut = tiny(*options, f"output={tmp_path / 'cut'}")
    train(whole)
    hit = killed_and_finished(cut, kills)
    assert sum(hit.values()) >= kills
    assert min(hit.values()) >= kills // 4, hit  # every phase was hit

    for name in ("metrics.jsonl", "eval.jsonl"):
        assert rows(tmp_path / "whole" / name) == rows(tmp_path / "cut" / name)
    for name in ("checkpoints/manifest.json", "summary.json"):
        assert untimed(tmp_path / "whole" / name) == untimed(tmp_path / "cut" / name)
    assert list(checkpoints(whole.run_dir)) == list(checkpoints(cut.run_dir))
    last = f"checkpoints/step_{steps:06d}"
    one, two = (
        AutoModelForCausalLM.from_pretrained(tmp_path / run / last).state_dict()
        for run in ("whole", "cut")
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    a, b = (
        torch.load(tmp_path / run / last / "trainer_state.pt", weights_only=True)["optimizer"]
        for run in ("whole", "cut")
    )
    for number, state in a["state"].items():
        assert all(torch.equal(state[key], b["state"][number][key]) for key in state)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    return train(parse_config(copy.deepcopy(TINY), [f"output={output}", "train.steps=3"]))


@pytest.fixture
def run(tiny: Any, trained: Path) -> Path:
    """A run of three steps for each test to harm: a copy where ``tiny`` continues it."""
    return shutil.copytree(trained, tiny().run_dir)


@pytest.mark.draw(2, "runs")
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("flip", "CRC-32"),
        ("cut", "bytes"),
        ("remove", "model.safetensors is missing"),
        ("index", "checkpoint.json is damaged"),
        ("format", "format 99"),
        ("foreign", "checkpoint.json is missing"),
    ],
)
def test_damaged_is_refused_and_the_newest_good_one_named(
    run: Path, tiny: Any, harm: str, reason: str
) -> None:
    newest = run / "checkpoints" / "step_000003"
    weights, index = newest / "model.safetensors", newest / "checkpoint.json"
    data = bytearray(weights.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif harm == "cut":
        weights.write_bytes(data[:-7])
    elif harm == "remove":
        weights.unlink()
    elif harm == "index":
        index.write_text('{"format": 1, "fil')
    elif harm == "format":
        index.write_text('{"format": 99, "files": {}}')
    else:
        index.unlink()
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=reason) as caught:
        train(tiny("train.steps=4"))
    good = run / "checkpoints" / "step_000002"
    assert f"--resume {good}" in str(caught.value)
    assert (run / "metrics.jsonl").read_text() == before

    train(tiny("train.steps=4"), resume=str(good))
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [0, 1, 2, 3]
    assert problem(run / "checkpoints" / "step_000003") is None
    assert (run / "checkpoints" / "abandoned_step_000003").is_dir()


def test_another_models_state_is_refused(run: Path, tiny: Any) -> None:
    newest = run / "checkpoints" / "step_000003"
    state = torch.load(newest / "trainer_state.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.ones(3, 3)
    torch.save(state, newest / "trainer_state.pt")
    index = json.loads((newest / "checkpoint.json").read_text())
    index["files"]["trainer_state.pt"] = save_load.size_and_crc(newest / "trainer_state.pt")
    (newest / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="another model"):
        train(tiny("train.steps=4"))


@pytest.mark.draw(2, "runs")
def test_a_resumed_branch_is_not_left_for_the_old_one(
    run: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Run, row: dict[str, Any], raised: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "record", stop)
        train(tiny("train.steps=4"), resume=str(run / "checkpoints" / "step_000001"))
    train(tiny("train.steps=4"))
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.draw(2, "runs")
def test_a_write_that_fails_stops_cleanly_and_loses_nothing(
    run: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny("train.steps=3").to_yaml())
    held = {path: path.read_bytes() for path in (run / "checkpoints").glob("step_*/*")}
    # Any file past this size fails as on a full disk: a real error of the kernel, in mid-write
    # (Python ignores the signal that comes with it).
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        assert main(["train", str(recipe), "train.steps=4"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "could not be written" in error and "GiB free" in error
    assert f"the newest one is {run / 'checkpoints' / 'step_000003'}" in error
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in held} == held
    assert not list((run / "checkpoints").glob(".*"))
    assert main(["train", str(recipe), "train.steps=4"]) == 0  # room again
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [0, 1, 2, 3]


def test_saving_reports_any_error_as_its_own(
    run: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(tiny("train.steps=4"))


@pytest.mark.draw(2, "runs")
def test_the_best_by_metric_is_kept(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of given evaluations stays, among equal ones the shorter; before training none."""
    given = iter([(0.9, 50), (0.3, 40), (0.5, 40), (0.5, 40), (0.5, 30), (0.4, 9)])

    def evaluate(*args: Any, **kwargs: Any) -> Evaluated:
        accuracy, tokens = next(given)
        row = {
            "budgets": [24, 56], "accuracy": [0.1, accuracy], "accuracy_interval": [[0, 1]] * 2,
            "pass_at_k": [0, 0], "tokens": tokens, "backtrack_per_1k": 0.0,
        }  # fmt: skip
        return Evaluated(row, [])

    monkeypatch.setattr(Evaluation, "__call__", evaluate)
    options = ["schedule.cycle=10", "eval.every=2", "checkpoint.every=0", "checkpoint.keep_last=1"]
    run = train(tiny("train.steps=4", *options, "checkpoint.best=accuracy"))
    assert list(checkpoints(run)) == [2, 4]  # 4 is the last and the best, 2 was

    def manifest() -> dict[str, Any]:
        return json.loads((run / "checkpoints" / "manifest.json").read_text())

    assert manifest()["best"] == {
        "step": 4, "path": "checkpoints/step_000004", "accuracy": 0.5, "tokens": 40,
    }  # fmt: skip
    train(tiny("train.steps=7", *options, "checkpoint.best=accuracy"))
    assert [row["step"] for row in rows(run / "eval.jsonl")] == [0, 2, 4, 5, 6, 7]
    assert list(checkpoints(run)) == [4, 5, 6, 7]  # newest unprotected, siri-low, best, last
    assert manifest()["best"]["step"] == 6 and manifest()["siri-low"]["step"] == 5

    for which, folder, step in (("best", "best", 6), ("4", "step_000004", 4)):
        assert main(["export", str(run), "--which", which]) == 0
        out = run / "export" / folder
        got = AutoModelForCausalLM.from_pretrained(out).state_dict()
        want = AutoModelForCausalLM.from_pretrained(
            run / "checkpoints" / f"step_{step:06d}"
        ).state_dict()
        assert all(torch.equal(value, got[name]) for name, value in want.items())
        assert not (out / "trainer_state.pt").exists()
    with pytest.raises(ConfigError, match="no checkpoint of step 2; kept are 4, 5, 6, 7"):
        export(run, "2")
    with pytest.raises(ConfigError, match=r"siri-low-lagged .*checkpoint\.lag"):
        export(run, "siri-low-lagged")
    with pytest.raises(SystemExit):
        main(["export", str(run), "--which", "middle"])


def test_best_counts_only_what_can_be_loaded() -> None:
    evaluations = [
        {"step": step, "accuracy": [low, high], "pass_at_k": [0, high / 2], "tokens": 10}
        for step, low, high in ((2, 0.6, 0.9), (4, 0.4, 0.7), (6, 0.5, 0.7))
    ]
    for metric, step in (("accuracy", 4), ("accuracy_low_budget", 6), ("pass_at_k", 4)):
        assert (retention.best(evaluations, metric, {4, 6}) or {})["step"] == step
    assert retention.best(evaluations, "accuracy", {2, 4, 6}) == evaluations[0]
    assert retention.best(evaluations, "accuracy", set()) is None
    assert retention.best(evaluations, None, {2}) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("hidden_size", "hidden_size is 64 there, 128 in the recipe's"),
        ("architecture", "model_type is 'llama' there, 'qwen2' in the recipe's"),
        ("tokens", "tokenizer has 38 tokens, the recipe's 37"),
        ("swapped", "as token"),
    ],
)
def test_another_models_checkpoint_is_refused(
    run: Path, tiny: Any, change: str, reason: str
) -> None:
    newest = run / "checkpoints" / "step_000003"
    overrides = ["train.steps=4"]
    if change == "hidden_size":
        overrides.append("model.scratch={hidden_size: 128}")
    elif change == "architecture":
        config = json.loads((newest / "config.json").read_text())
        config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (newest / "config.json").write_text(json.dumps(config))
    else:
        tokenizer = json.loads((newest / "tokenizer.json").read_text())
        words = tokenizer["added_tokens"]
        if change == "tokens":
            words.append({**words[-1], "id": 37, "content": " surplus"})
        else:
            words[-1]["content"], words[-2]["content"] = words[-2]["content"], words[-1]["content"]
        (newest / "tokenizer.json").write_text(json.dumps(tokenizer))
    index = json.loads((newest / "checkpoint.json").read_text())
    for name in ("config.json", "tokenizer.json"):  # whole, but of another model
        index["files"][name] = save_load.size_and_crc(newest / name)
    (newest / "checkpoint.json").write_text(json.dumps(index))
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=reason) as caught:
        train(tiny(*overrides), resume=str(newest))
    assert str(newest) in str(caught.value) and "embedded" in str(caught.value)
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.draw(2, "runs")
@pytest.mark.parametrize("file", ["metrics.jsonl", "eval.jsonl"])
def test_a_full_disk_at_an_append_stops_cleanly(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The third row of the file meets the kernel's limit in mid-line; then there is room again."""
    real = run_folder.append_record
    asked: list[Path] = []

    def limited(path: Path, row: dict[str, Any]) -> None:
        asked.append(path) if path.name == file else None
        if path.name != file or len(asked) != 3:
            return real(path, row)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
        try:
            real(path, row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    config = tiny("train.steps=4", "eval.every=1")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "append_record", limited)
        with pytest.raises(WriteError, match="GiB free.*run the same command again"):
            train(config)
    found = (config.run_dir / file).read_text()
    assert len(found.splitlines()) == 2 and found.endswith("\n")  # no half of the third
    assert all(problem(folder) is None for folder in checkpoints(config.run_dir).values())
    train(config)
    assert [row["step"] for row in rows(config.run_dir / "metrics.jsonl")] == [0, 1, 2, 3]
    assert [row["step"] for row in rows(config.run_dir / "eval.jsonl")] == [0, 1, 2, 3, 4]


def test_recover_after_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    for name in (".a.old", ".a.partial", ".b.old", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a" / "x").read_text() == ".a.old"
    assert (tmp_path / "b" / "x").read_text() == "b"


def test_an_error_in_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    with pytest.raises(OSError, match="full"), written_aside(tmp_path / "a") as aside:
        (aside / "x").write_text("new")
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "old"
    with written_aside(tmp_path / "a") as aside:
        (aside / "x").write_text("new")
    assert (tmp_path / "a" / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
