"""The supervised stage: its data, its settings, and what it refuses before it begins."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import siri_train.commands.sft
from siri_train.checkpoint import sft_state
from siri_train.checkpoint.save_load import checkpoints
from siri_train.cli import main
from siri_train.commands.sft import supervise
from siri_train.commands.sft_batches import SupervisedBatches, prepare_batches
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.data.demo_task import questions as embedded
from siri_train.data.supervised import SupervisedExample
from siri_train.files import WriteError
from siri_train.model import demo_model
from siri_train.model.policy import Policy
from siri_train.trainer.lock import run_lock
from siri_train.trainer.preflight import preflight
from tests.train.sft_stage import Killed, before_step, kill, rows


@pytest.mark.parametrize("seed", range(4))
def test_max_len_leaves_out_what_is_longer(small: Any, seed: int) -> None:
    draw = random.Random(seed)
    size = draw.randrange(16, 48)
    data = (f"data.train.0.size={size}", f"data.train.0.seed={seed}", "sft.batch_size=1")
    questions = embedded.questions(size, seed=seed)
    lengths = sorted(
        len(e.prompt_ids) + len(e.response_ids)
        for e in embedded.supervised_examples(questions, demo_model.tokenizer())
    )
    most = draw.choice(lengths[1:-1])
    config = small("run", *data, f"sft.max_len={most}")
    batches, _ = prepare_batches(config, config.sft)
    assert len(batches.examples) == sum(n <= most for n in lengths)
    config = small("run", *data, f"sft.max_len={lengths[0] - 1}")
    with pytest.raises(ConfigError, match=rf"^sft\.max_len: {lengths[0] - 1}, but only 0 of"):
        prepare_batches(config, config.sft)


def test_batches_are_a_function_of_the_step() -> None:
    draw = random.Random(5)
    for _ in range(20):
        count, size = draw.randrange(1, 90), draw.randrange(1, 9)
        examples = [
            SupervisedExample([i], [1] * draw.randrange(1, 30)) for i in range(count + size)
        ]
        batches = SupervisedBatches(examples, size, draw.randrange(99))
        steps = [draw.randrange(200) for _ in range(12)]
        drawn = {step: batches(step) for step in steps}
        again = SupervisedBatches(examples, size, batches.seed)
        assert all(again(step) == drawn[step] for step in sorted(steps, reverse=True))
        first_epoch = [
            e.prompt_ids[0] for step in range(len(batches._batches)) for e in again(step)
        ]
        assert len(set(first_epoch)) == len(first_epoch)


REFUSED = {
    "sft.max_len=3": "sft.max_len",
    "sft.batch_size=500": "sft.batch_size",
    "train.token_budget=80": "train.token_budget",
    "model.scratch.max_position_embeddings=20": "sft.max_len",
    "data.train=[{kind: file, path: nowhere.jsonl}]": "nowhere.jsonl",
    "data.train=[{kind: reasoning_gym, task: x}]": "reasoning-gym",
    "device=cuda:99": "device",
}


@pytest.mark.parametrize("override", REFUSED)
def test_data_and_configuration_are_checked_before_the_model_is_loaded(
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
) -> None:
    monkeypatch.setattr(siri_train.commands.sft, "load_policy", pytest.fail)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(small("run").to_yaml())
    budget = ["sft.max_len=200", "data.train.0.params={min_operations: 9, max_operations: 9}"]
    more = budget if "token_budget" in override else []
    assert main(["sft", str(recipe), override, *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert REFUSED[override] in line
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("ranks", [2, 7, 64])
def test_several_ranks_are_refused(small: Any, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ConfigError, match=f"^sft: runs in one process, torchrun started {ranks}"):
        supervise(small("run"))
    assert not small("run").run_dir.exists()


def test_a_half_done_stage_is_no_start_and_other_settings_are_refused(
    small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small("run")
    with monkeypatch.context() as patch:
        before_step(patch, 6, kill)
        with pytest.raises(Killed):
            supervise(config)
    with pytest.raises(ConfigError, match=r"^sft: .*half done \(4 of 9 steps\).*siri-train sft"):
        preflight(config)
    with pytest.raises(ConfigError, match="seed: .* begun with seed 0, now it is 3"):
        supervise(small("run", "seed=3"))
    with pytest.raises(ConfigError, match="another model than the recipe's"):
        supervise(small("run", "model.scratch.layers=2"))
    with pytest.raises(ConfigError, match=r"sft.steps: 3, but .* has already done 4"):
        supervise(small("run", steps=3))
    with pytest.raises(ConfigError, match="--resume: never"):
        supervise(config, "never")
    capsys.readouterr()
    supervise(small("run", "sft.weight_decay=0.5"))
    assert "sft.weight_decay was 0.01, is now 0.5" in capsys.readouterr().out

    with pytest.raises(ConfigError, match=r"^sft.weight_decay: .* was made with 0.5, now it is"):
        supervise(config)
    with pytest.raises(ConfigError, match="--resume: never"):
        supervise(config, "never")
    done = small("run", "sft.weight_decay=0.5", "train.lr=0.5")  # the start does not depend on it
    before = {p: p.stat().st_mtime_ns for p in done.run_dir.rglob("*")}
    assert supervise(done) == done.run_dir / "sft"
    assert "all 9 steps are done" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in done.run_dir.rglob("*")}
    assert preflight(done).start == done.run_dir / "sft"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10_000, b"5"])
def test_damaged_files_of_a_stage_are_refused(
    small: Any, draw: random.Random, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    config = small("run")
    with monkeypatch.context() as patch:
        before_step(patch, 5, kill)
        with pytest.raises(Killed):
            supervise(config)
    stage = config.run_dir / "sft_stage"
    good = (stage / "sft.json").read_bytes()
    if damage != b"[]":  # no settings: nothing to compare with
        (stage / "sft.json").write_bytes(damage)
        with pytest.raises(ConfigError, match=r"sft\.json: damaged"):
            supervise(config)
    (stage / "sft.json").write_bytes(good)
    file = draw.choice(sorted(stage.rglob("step_000004/*")))
    file.write_bytes(damage)
    with pytest.raises(ConfigError, match=rf"{file.name}.* (is damaged|is missing)"):
        supervise(config)
    assert not (config.run_dir / "sft").exists()


@pytest.mark.draw(1)
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_full_disk_loses_nothing_that_was_saved(
    small: Any, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    whole, cut = small("whole"), small("cut")
    supervise(whole)
    save, calls = Policy.save, [0]

    def full(self: Policy, folder: Path, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        save(self, folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "save", full)
        with pytest.raises(WriteError, match="same command again"):
            supervise(cut)
    assert not (cut.run_dir / "sft").exists()
    assert max(checkpoints(cut.run_dir / "sft_stage"), default=0) == 4 * call
    supervise(cut)
    assert rows(whole) == rows(cut)


def test_sft_after_training_from_the_base_is_refused(small: Any) -> None:
    config = small("run")
    config.run_dir.mkdir()
    (config.run_dir / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="already holds a training run"):
        supervise(config)


def test_the_embedded_task_needs_its_own_words(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = demo_model.tokenizer()
    other.add_tokens(["another"])
    monkeypatch.setattr(demo_model, "tokenizer", lambda: embedded_tokenizer)
    embedded_tokenizer = demo_model.Qwen2Tokenizer(vocab={"<pad>": 0}, merges=[])
    monkeypatch.setattr("siri_train.commands.sft_batches._tokenizer", lambda config: other)
    with pytest.raises(ConfigError, match="data.train: the embedded task is learnt with its own"):
        supervise(small("run"))


def test_an_adapted_model_becomes_a_plain_start(small: Any) -> None:
    pytest.importorskip("peft")
    config = small("run", "model.lora={rank: 2}")
    start = load_file(supervise(config) / "model.safetensors")
    assert start and not [name for name in start if "lora" in name or "base_layer" in name]


def test_settings_are_those_that_decide_the_weights(small: Any) -> None:
    settings = sft_state.Stage(small("run"))._settings()
    assert {"seed", "sft.lr", "model.path", "data.train", "reward.think"} <= settings.keys()
    assert not [key for key in settings if key.startswith(("train.", "rollout.", "eval."))]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_the_signals_status_and_says_how_to_continue(
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signum: signal.Signals,
) -> None:
    config = small("run")
    recipe = config.run_dir.with_suffix(".yaml")
    recipe.write_text(config.to_yaml())
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), signum))
        assert main(["sft", str(recipe)]) == 128 + signum
    (line,) = capsys.readouterr().err.splitlines()
    assert "stopped before step 3" in line and "run the same command again" in line
    assert main(["sft", str(recipe)]) == 0
    assert "continues from step 3" in capsys.readouterr().out


def test_a_stage_takes_the_lock_of_its_run(small: Callable[..., RunConfig]) -> None:
    config = small("run", steps=1)
    with run_lock(config.run_dir), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        supervise(config)
    assert supervise(config) == config.run_dir / "sft"
    assert not list(config.run_dir.glob(".siri-train.lock"))
