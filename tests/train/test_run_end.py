"""``train.max_tokens``: a run ends after the step that reaches it, resumed or not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from siri_train.checkpoint.save_load import checkpoints, tokens_sampled
from siri_train.config.base import ConfigError
from siri_train.config.run import TrainConfig
from siri_train.rollout.batch import Group, RolloutBatch
from siri_train.rollout.engine import Completion
from siri_train.train import train
from siri_train.trainer.run_end import RunEnd
from siri_train.trainer.signals import Stopped
from tests.train.test_checkpoint import rows
from tests.train.test_stop import interrupt_in, same_runs

AHEAD = ("rollout.asynchronous=true",)
DYNAMIC = ("rollout.oversample=2.0", "rollout.max_rounds=2")


def sampled(run: Path) -> list[int]:
    """Response tokens of each step, as its log has them."""
    return [row["tokens"] + row["tokens_discarded"] for row in rows(run / "metrics.jsonl")]


def batch(step: int, lengths: list[int], dropped: list[int], discarded: int) -> RolloutBatch:
    def group(position: int, length: int) -> Group:
        ids = [1] * length
        completion = Completion(ids, [0.0] * length, "stop")
        return Group(position, None, [completion])  # type: ignore[arg-type]

    places = iter(range(99))
    return RolloutBatch(
        step, 50, len(lengths),
        groups=[group(next(places), n) for n in lengths],
        dropped=[group(next(places), n) for n in dropped],
        tokens_discarded=discarded,
    )  # fmt: skip


def test_it_is_over_after_the_step_that_reaches_the_tokens_or_the_steps() -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for _ in range(200):
        steps, most = draw.randint(1, 8), draw.choice([None, draw.randint(1, 400)])
        end, total = RunEnd(TrainConfig(steps=steps, max_tokens=most)), 0
        while not end.over:
            lengths = [draw.randint(0, 30) for _ in range(draw.randint(1, 4))]
            dropped = [draw.randint(0, 30) for _ in range(draw.randint(0, 3))]
            discarded = draw.randint(0, 20)
            assert most is None or total < most, seed
            one = batch(end.done, lengths, dropped, discarded)
            last = end.is_last(one)
            end.add(one)
            total += sum(lengths) + sum(dropped) + discarded
            assert end.tokens == total and last == end.over, seed
        assert end.done == steps or (most is not None and total >= most), seed
        assert end.done <= steps, seed


@pytest.mark.parametrize("more", [(), AHEAD, DYNAMIC], ids=["usual", "ahead", "dynamic"])
def test_a_run_ends_as_one_with_so_many_steps(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Stopped and continued, too."""
    options = (*more, "checkpoint.every=0", "schedule.cycle=20")
    whole = train(tiny("train.steps=3", *options, f"output={tmp_path / 'whole'}"))
    per_step = sampled(whole)
    most = sum(per_step[:2]) + 1
    limited = tiny(
        "train.steps=50", f"train.max_tokens={most}", *options, f"output={tmp_path / 'limited'}"
    )
    with monkeypatch.context() as patch:
        interrupt_in(patch, call=2, signum=15)
        with pytest.raises(Stopped):
            train(limited)
    train(limited)
    same_runs(whole, limited.run_dir, 3)
    last = checkpoints(limited.run_dir)[3]
    assert tokens_sampled(last) == sum(per_step) and not (last / "rollouts.pt").exists()
    summary = json.loads((limited.run_dir / "summary.json").read_text())
    assert [(entry["name"], entry["step"]) for entry in summary] == [("start", 0), ("last", 3)]


def test_a_finished_run_stays_and_goes_on_with_more_tokens(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("train.steps=50", "schedule.cycle=20")
    run = train(tiny("train.max_tokens=1", *options))
    assert len(sampled(run)) == 1
    train(tiny("train.max_tokens=1", *options))
    assert len(sampled(run)) == 1
    assert "ends after 1 steps" in capsys.readouterr().out
    # A checkpoint of an older version does not know its tokens; the log does.
    index = run / "checkpoints" / "step_000001" / "checkpoint.json"
    held = json.loads(index.read_text())
    tokens = held.pop("tokens")
    index.write_text(json.dumps(held))
    train(tiny(f"train.max_tokens={tokens + 1}", *options))
    assert len(sampled(run)) == 2
    assert tokens_sampled(run / "checkpoints" / "step_000002") == sum(sampled(run))


@pytest.mark.parametrize("given", ["0", "-5", "1.5", "true"])
def test_what_is_no_number_of_tokens_is_refused(tiny: Any, given: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.max_tokens"):
        tiny(f"train.max_tokens={given}")


def test_an_end_that_moves_takes_its_name_along(tiny: Any, tmp_path: Path) -> None:
    """``step-up`` expands until the run ends: with more steps, or more tokens, that is later."""
    shape = ("schedule.shape=step-up", "schedule.options={at: 1}", "eval.every=1")
    whole = train(tiny("train.steps=4", *shape, f"output={tmp_path / 'whole'}"))
    for first in (("train.steps=2",), ("train.steps=4", "train.max_tokens=1")):
        folder = tmp_path / first[-1]
        begun = train(tiny(*first, *shape, f"output={folder}"))
        ended = rows(begun / "eval.jsonl")[-1]
        assert ended["name"] == {2: "siri-high", 1: "siri-low"}[ended["step"]]
        train(tiny("train.steps=4", *shape, f"output={folder}"))
        for name in ("eval.jsonl", "metrics.jsonl"):
            assert rows(folder / name) == rows(whole / name)
    names = [(row["step"], row["name"]) for row in rows(whole / "eval.jsonl")]
    assert names[1:] == [(1, "siri-low"), (2, None), (3, None), (4, "siri-high")]
