"""The loop end to end on a tiny model: files, metrics, schedule, manifest, resume, refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_train.checkpoint.manifest import export
from siri_train.checkpoint.save_load import checkpoints
from siri_train.commands.sft import supervise
from siri_train.config.base import ConfigError
from siri_train.rollout import TransformersEngine
from siri_train.train import train
from siri_train.trainer.metrics import METRIC_KEYS
from siri_train.trainer.run import Run


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_a_run_writes_everything_it_promises(tiny: Any) -> None:
    config = tiny("train.steps=6")
    run = train(config)
    metrics = rows(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(6))
    assert all(tuple(row) == METRIC_KEYS for row in metrics)
    assert [row["cap"] for row in metrics] == [56, 40, 24, 40, 56, 40]
    assert [row["cycle"] for row in metrics] == [1, 1, 1, 1, 2, 2]
    assert [row["phase"] for row in metrics[:4]] == ["compression"] * 2 + ["expansion"] * 2
    assert any(row["grad_norm"] for row in metrics)  # the shipped start gives groups to learn from
    for row in metrics:
        assert row["response_len_p50"] <= row["response_len_p95"] <= row["cap"]
        assert row["tokens"] == pytest.approx(16 * row["response_len_mean"])
        assert 0 <= row["entropy"] <= math.log(37)
        assert row["accuracy"] == row["reward_mean"]

    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    assert manifest["siri-low"]["step"] == 6 and manifest["siri-high"]["step"] == 4
    assert [(e["which"], e["cycle"], e["step"]) for e in manifest["cycles"]] == [
        ("siri-low", 1, 2), ("siri-high", 1, 4), ("siri-low", 2, 6),
    ]  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert [entry["name"] for entry in summary] == ["start", "siri-low", "siri-high"]
    for entry in summary[1:]:
        folder = run / entry["path"]
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.config.vocab_size == len(tokenizer)
        low, high = entry["accuracy_interval"]
        assert 0 <= low <= entry["accuracy"] <= high <= 1
    evaluations = rows(run / "eval.jsonl")
    assert [(e["step"], e["name"]) for e in evaluations] == [
        (0, "start"), (2, "siri-low"), (4, "siri-high"), (6, "siri-low"),
    ]  # fmt: skip
    assert all(e["budgets"] == [24, 56] for e in evaluations)
    page = (run / "report.html").read_text()
    assert "<svg" in page and "</html>" in page
    assert {p.name for p in (run / "rollouts").iterdir()} == {
        "step_000000.jsonl", "step_000002.jsonl", "step_000004.jsonl", "step_000005.jsonl",
    }  # fmt: skip
    # The ends of cycles and the last step stay, of the others the newest two.
    assert list(checkpoints(run)) == [2, 3, 4, 5, 6]

    low = export(run, "siri-low")
    assert not (low / "trainer_state.pt").exists()
    AutoModelForCausalLM.from_pretrained(low)
    with pytest.raises(ConfigError, match="already exists"):
        export(run, "siri-low")


@pytest.mark.costly
@pytest.mark.draw(3, "runs")
def test_a_killed_run_continues_as_if_nothing_had_happened(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(f"output={tmp_path / 'whole'}", "train.lr_warmup_steps=3"))

    class Killed(Exception):
        pass

    killed = tiny(f"output={tmp_path / 'killed'}", "train.lr_warmup_steps=3")
    record = Run.record

    def die(self: Run, row: dict[str, Any], raised: Any) -> None:
        record(self, row, raised)
        if row["step"] == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "record", die)
        train(killed)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "cyc')  # killed in the middle of a line
    (tmp_path / "killed" / "checkpoints" / ".step_000003.partial").mkdir()
    train(killed)

    timing = {
        "time_rollout",
        "time_train",
        "rollout_tokens_per_s",
        "train_tokens_per_s",
        "peak_memory_gb",
    }
    for a, b in zip(
        rows(whole / "metrics.jsonl"), rows(tmp_path / "killed" / "metrics.jsonl"), strict=True
    ):
        assert {k: v for k, v in a.items() if k not in timing} == {
            k: v for k, v in b.items() if k not in timing
        }
    final = weights(tmp_path / "killed" / "checkpoints" / "step_000004")
    for name, value in weights(whole / "checkpoints" / "step_000004").items():
        assert torch.equal(value, final[name]), name


@pytest.mark.draw(3, "runs")
def test_more_steps_extend_a_finished_run_and_fewer_are_refused(tiny: Any) -> None:
    run = train(tiny("train.steps=2"))
    before = rows(run / "metrics.jsonl")
    train(tiny("train.steps=3"))
    assert rows(run / "metrics.jsonl")[:2] == before
    assert len(rows(run / "metrics.jsonl")) == 3
    train(tiny("train.steps=3"))  # nothing left to do is not an error
    with pytest.raises(ConfigError, match="already done 3 steps"):
        train(tiny("train.steps=1"))
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tiny("train.steps=3"), resume="never")


@pytest.mark.costly
@pytest.mark.draw(3, "runs")
def test_resume_from_a_named_checkpoint(tiny: Any, tmp_path: Path) -> None:
    run = train(tiny("train.steps=4"))
    kept = weights(run / "checkpoints" / "step_000004")
    train(tiny("train.steps=4"), resume=str(run / "checkpoints" / "step_000002"))
    assert len(rows(run / "metrics.jsonl")) == 4
    again = weights(run / "checkpoints" / "step_000004")
    assert all(torch.equal(kept[k], again[k]) for k in kept)
    with pytest.raises(ConfigError, match="--resume"):
        train(tiny(), resume=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError):
        train(tiny(), resume=str(tmp_path / "empty"))


@pytest.mark.draw(3, "runs")
def test_the_supervised_stage_is_where_training_starts(tiny: Any) -> None:
    config = tiny("model.scratch={}", "sft.steps=8", "sft.batch_size=4", "sft.lr=0.003")
    folder = supervise(config)
    losses = [row["loss"] for row in rows(folder.parent / "sft.jsonl")]
    assert len(losses) == 8 and losses[-1] < losses[0]
    with Run.open(config) as run:
        loaded = run.policy.model.state_dict()
        for name, value in weights(folder).items():
            assert torch.equal(value, loaded[name]), name


@pytest.mark.draw(3, "runs")
def test_a_constant_cap_has_no_ends(tiny: Any) -> None:
    run = train(tiny("schedule.shape=constant", "train.steps=2"))
    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    assert manifest == {"siri-low": None, "siri-high": None, "cycles": []}
    summary = json.loads((run / "summary.json").read_text())
    assert [entry["name"] for entry in summary] == ["start", "constant-cap"]
    with pytest.raises(ConfigError, match="not been reached"):
        export(run, "siri-low")


@pytest.mark.draw(3, "runs")
def test_old_logprobs_are_the_samplers_or_the_trainers_own(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose sampler reports every log-prob 0.1 too low."""
    made = TransformersEngine.generate

    def off(self: Any, *args: Any, **options: Any) -> Any:
        groups = made(self, *args, **options)
        for completion in (c for group in groups for c in group):
            completion.logprobs = [x - 0.1 for x in completion.logprobs]
        return groups

    monkeypatch.setattr(TransformersEngine, "generate", off)
    ratios = {}
    for which in ("rollout", "recompute"):
        options = (f"loss.old_logprobs={which}", "train.steps=1", "train.mini_batches=1",
                   "rollout.probe.threshold=1")  # fmt: skip
        run = train(tiny(*options, f"output={tmp_path / which}"))
        ratios[which] = rows(run / "metrics.jsonl")[0]["ratio_max"]
    assert ratios["recompute"] == pytest.approx(1, abs=1e-4)
    assert ratios["rollout"] == pytest.approx(math.exp(0.1), abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["schedule.max_len=600", "train.token_budget=2048"], "512 positions; at most 488 fit"),
        (["eval.budgets=[600]"], "512 positions"),
        (["data.train=[{kind: file, path: nowhere/questions.jsonl}]"], "nowhere/questions.jsonl"),
        (["data.max_prompt_len=4"], "data.max_prompt_len"),
        (["rollout.prompts=100"], "rollout.prompts"),
        (["data.train=[{kind: embedded, size: 64, params: {sizes: 3}}]"], "sizes"),
        (["model={path: models/nowhere}"], "models/nowhere"),
        (["device=cuda:7"], "device"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tiny: Any, tmp_path: Path, overrides: list[str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(tiny(*overrides))
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_held_out_questions_that_are_trained_on_are_refused(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": f"{i} +1 ? <think>", "answer": f"{i + 1}"}) + "\n"
            for i in range(8)
        )
    )
    source = f"[{{kind: file, path: {path}}}]"
    with pytest.raises(ConfigError, match="8 of 8 questions are also in"):
        train(tiny(f"data.train={source}", f"data.eval={source}"))


def test_a_malformed_row_is_named_with_file_and_line(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "1 +1 ? <think>", "answer": "2"}\n{"question": "2"}\n')
    with pytest.raises(ConfigError) as caught:
        train(tiny(f"data.train=[{{kind: file, path: {path}}}]"))
    assert "questions.jsonl" in str(caught.value)
    assert "2" in str(caught.value) and "answer" in str(caught.value)


@pytest.mark.draw(3, "runs")
def test_alarms_are_recorded_and_may_halt(tiny: Any) -> None:
    # One token is never enough for an answer: every response is truncated.
    config = tiny("schedule.max_len=1", "schedule.min_len=1", "train.steps=1")
    run = train(config)
    (alarm,) = rows(run / "alarms.jsonl")
    assert alarm["alarm"] == "mostly-truncated" and alarm["action"]
    shutil.rmtree(run)
    with pytest.raises(RuntimeError, match="mostly-truncated"):
        train(tiny("schedule.max_len=1", "schedule.min_len=1", "monitor.halt_on_alarm=true"))


def test_a_prompt_that_is_too_long_is_named_with_its_key_and_numbers(
    tiny: Any, tmp_path: Path
) -> None:
    """Before anything is written: prompt over its limit, then prompt and cap over the model's."""
    with pytest.raises(ConfigError) as caught:
        train(tiny("data.max_prompt_len=7"))
    said = str(caught.value)
    assert re.search(r"data\.max_prompt_len: \d+ of 64 prompts are longer than 7 tokens", said)
    assert re.search(r"the longest, \S+, has \d+", said)
    with pytest.raises(ConfigError, match=r"schedule\.max_len: data\.max_prompt_len \(24\) .*"
                       r"\(489\) = 513 tokens, but the model has 512 positions"):  # fmt: skip
        train(tiny("schedule.max_len=489"))
    assert not (tmp_path / "run").exists()
