"""Rollouts in the loop: equal to the plain loop, one step ahead, dynamic sampling, faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import siri_train.trainer.run
from siri_train.config.base import ConfigError
from siri_train.rollout import Completion, EngineError
from siri_train.rollout.build import build_engine
from siri_train.train import train
from tests.train.plain_loop import plain_train


def rows(path: Path) -> list[dict[str, Any]]:
    """Records of a log, without the time of evaluations."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def last_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / f"step_{step:06d}")
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.draw(2, "runs")
@pytest.mark.parametrize("old", ["rollout", "recompute"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_bits_equal_the_plain_loops(tiny: Any, asynchronous: bool, old: str) -> None:
    """Synchronous: equal to the plain loop. Asynchronous: that loop, sampled one update behind."""
    config = tiny(
        "train.steps=6", f"rollout.asynchronous={asynchronous}", f"loss.old_logprobs={old}",
        "loss.skip_zero_advantage=false",
    )  # fmt: skip
    run = train(config)
    want, weights = plain_train(config, behind=int(asynchronous))
    got = rows(run / "metrics.jsonl")
    assert [{key: row[key] for key in want[0]} for row in got] == want
    assert [row["cap"] for row in got] == [56, 40, 24, 40, 56, 40]  # of the step, not the sampler's
    for name, value in last_weights(run, 6).items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.draw(2, "runs")
def test_asynchronous_is_another_run(tiny: Any) -> None:
    """The test above can fail: sampling one step behind gives other results."""
    _, on = plain_train(tiny("train.steps=4"), behind=0)
    _, off = plain_train(tiny("train.steps=4"), behind=1)
    assert not all(torch.equal(on[name], off[name]) for name in on)


class Faulty:
    """The recipe's engine with responses spoilt on the way out."""

    def __init__(self, engine: Any, spoil: Callable[[int, int, Completion], None]) -> None:
        self.engine, self.spoil, self.calls, self.syncs = engine, spoil, 0, 0

    def generate(self, prompts: Sequence[Any], params: Any, *args: Any, **kwargs: Any) -> Any:
        groups = self.engine.generate(prompts, params, *args, **kwargs)
        if params.n > 1:  # not the evaluation
            for index, group in enumerate(groups):
                for completion in group:
                    self.spoil(self.calls, index, completion)
            self.calls += 1
        return groups

    def sync(self) -> None:
        self.syncs += 1
        self.engine.sync()

    def sleep(self) -> None:
        self.engine.sleep()

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(spoil: Callable[[int, int, Completion], None]) -> list[Faulty]:
        made: list[Faulty] = []

        def build(*args: Any, **kwargs: Any) -> Faulty:
            made.append(Faulty(build_engine(*args, **kwargs), spoil))
            return made[-1]

        monkeypatch.setattr(siri_train.trainer.run, "build_engine", build)
        return made

    return install


def lose(completion: Completion, reason: str) -> None:
    completion.finish_reason, completion.error = "abort", reason


@pytest.mark.draw(2, "runs")
def test_a_prompt_that_fails_is_skipped_and_the_step_completes(tiny: Any, faulty: Any) -> None:
    def spoil(call: int, index: int, completion: Completion) -> None:
        if call == 1 and index == 2:
            lose(completion, "out of blocks")

    faulty(spoil)
    run = train(tiny("train.steps=3"))
    metrics = rows(run / "metrics.jsonl")
    assert [row["groups_failed"] for row in metrics] == [0, 1, 0]
    assert [row["groups"] for row in metrics] == [4, 3, 4]
    assert metrics[1]["response_len_mean"] * 12 == pytest.approx(metrics[1]["tokens"])
    alarm = next(a for a in rows(run / "alarms.jsonl") if a["alarm"] == "prompts-failed")
    assert alarm["step"] == 1 and "out of blocks" in alarm["cause"]


@pytest.mark.draw(2, "runs")
def test_when_every_prompt_fails_the_run_ends_with_its_state_safe(
    tiny: Any, faulty: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train(tiny("train.steps=4", f"output={tmp_path / 'whole'}"))

    def spoil(call: int, index: int, completion: Completion) -> None:
        if call == 2:
            lose(completion, "the GPU fell off the bus")

    with monkeypatch.context():
        faulty(spoil)
        with pytest.raises(EngineError, match="step 2.*the GPU fell off the bus"):
            train(tiny("train.steps=4"))
    monkeypatch.setattr(siri_train.trainer.run, "build_engine", build_engine)
    run = train(tiny("train.steps=4"))
    assert rows(run / "eval.jsonl") == rows(whole / "eval.jsonl")
    for name, value in last_weights(run, 4).items():
        assert torch.equal(value, last_weights(whole, 4)[name])


@pytest.mark.draw(2, "runs")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_bad_log_probs_are_never_trained_on(
    tiny: Any, faulty: Any, asynchronous: bool, tmp_path: Path
) -> None:
    """The first time it is sampled again with the same results; the second, or ahead, it ends."""

    def once(call: int, index: int, completion: Completion) -> None:
        if call == 1 and index == 1:
            completion.logprobs[0] = float("nan")

    made = faulty(once)
    if asynchronous:
        with pytest.raises(EngineError, match=r"step 1.*log-prob of token 0 .* is nan"):
            train(tiny("rollout.asynchronous=true"))
        return
    run = train(tiny("train.steps=3"))
    assert [row["rollout_retries"] for row in rows(run / "metrics.jsonl")] == [0, 1, 0]
    _, weights = plain_train(tiny("train.steps=3"))
    for name, value in last_weights(run, 3).items():
        assert torch.equal(value, weights[name]), name
    assert made[0].syncs == 4  # one more than updates

    def always(call: int, index: int, completion: Completion) -> None:
        if call >= 1:
            completion.logprobs[-1] = float("-inf")

    faulty(always)
    with pytest.raises(EngineError, match="also after the weights.*is -inf"):
        train(tiny("train.steps=3", f"output={tmp_path / 'other'}"))


@pytest.mark.draw(2, "runs")
def test_dynamic_sampling_trains_on_informative_groups_only(tiny: Any) -> None:
    run = train(tiny("train.steps=4", "rollout.oversample=2", "rollout.max_rounds=2"))
    metrics = rows(run / "metrics.jsonl")
    assert sum(row["groups_dropped"] for row in metrics) > 0
    assert sum(row["groups"] == 4 for row in metrics) >= 3
    for row in metrics:
        asked = row["groups"] + row["groups_dropped"] + row["groups_surplus"]
        assert asked >= 8 and row["groups"] <= 4
        # The statistics are about what was dropped too.
        assert row["tokens"] == pytest.approx(
            row["response_len_mean"] * 4 * (row["groups"] + row["groups_dropped"])
        )


@pytest.mark.draw(2, "runs")
def test_the_same_batch_with_and_without_early_stop(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["train.steps=3", "rollout.oversample=3", "rollout.batch_rows=8"]
    early = train(tiny(*options))
    monkeypatch.setattr("siri_train.rollout.collect._Round.early", False)
    late = train(tiny(*options, f"output={tmp_path / 'late'}"))
    for name, value in last_weights(early, 3).items():
        assert torch.equal(value, last_weights(late, 3)[name]), name
    saved = sum(row["tokens_discarded"] for row in rows(late / "metrics.jsonl"))
    assert sum(row["tokens_discarded"] for row in rows(early / "metrics.jsonl")) < saved


def test_asynchronous_is_refused_where_sampling_gathers_the_weights(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siri_train.distributed.active", lambda: True)
    monkeypatch.setattr("siri_train.distributed.world_size", lambda: 1)
    monkeypatch.setattr("siri_train.distributed.rank", lambda: 0)
    with pytest.raises(ConfigError, match=r"rollout\.asynchronous.*single process"):
        train(tiny("rollout.asynchronous=true"))


def test_a_thread_that_samples_ends_with_its_run(tiny: Any, monkeypatch: Any) -> None:
    import threading

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the update failed")

    monkeypatch.setattr("siri_train.train.update", fail)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="the update failed"):
        train(tiny("rollout.asynchronous=true", "schedule.max_len=400", "schedule.min_len=400"))
    assert not set(threading.enumerate()) - before  # those of earlier tests may have ended


def test_too_few_questions_for_dynamic_sampling_is_named(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.oversample.*80 .*64"):
        train(tiny("rollout.oversample=2", "rollout.max_rounds=10"))


@pytest.mark.draw(2, "runs")
def test_a_saved_batch_of_other_settings_is_sampled_anew(tiny: Any, capsys: Any) -> None:
    ahead = "rollout.asynchronous=true"
    run = train(tiny("train.steps=4", ahead))
    first = str(run / "checkpoints" / "step_000002")
    kept = last_weights(run, 4)
    train(tiny("train.steps=4", ahead), resume=first)
    assert "sampled anew" not in capsys.readouterr().out
    assert all(torch.equal(value, kept[name]) for name, value in last_weights(run, 4).items())
    train(tiny("train.steps=4", ahead, "rollout.temperature=0.7"), resume=first)
    assert "the batch of step 2 that" in (said := capsys.readouterr().out)
    assert "sampled with other settings; it is sampled anew" in said
    train(tiny("train.steps=4"), resume=first)  # synchronous: what was sampled ahead is not used
    assert len(rows(run / "metrics.jsonl")) == 4


@pytest.mark.draw(2, "runs")
def test_shards_may_be_ended_early_too(tiny: Any, tmp_path: Path) -> None:
    """One engine after the other for the parts of a call; once cancelled, no other part starts."""
    options = ["train.steps=2", "rollout.oversample=3", "rollout.shards=4"]
    run = train(tiny(*options))
    metrics = rows(run / "metrics.jsonl")
    assert all(row["groups"] == 4 for row in metrics)
    assert any(row["groups_surplus"] for row in metrics)


def test_all_that_decides_a_batch_is_in_its_fingerprint(tiny: Any) -> None:
    """A key of ``rollout`` that changes the draw makes a saved batch another one."""
    from siri_train.rollout.batch import fingerprint

    usual = fingerprint(3, 40, tiny().rollout, [])
    for key, value, same in (
        ("deal", "responses", False), ("keep", "first_done", False), ("shards", 2, False),
        ("shards", 1, True), ("temperature", 0.7, False), ("batch_rows", 3, True),
    ):  # fmt: skip
        found = fingerprint(3, 40, tiny(f"rollout.{key}={value}").rollout, [])
        assert (found == usual) == same, key
