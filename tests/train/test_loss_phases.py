"""Values of the loss that hold in one phase of the schedule."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from siri_train.config.base import ConfigError
from siri_train.config.loss import LossConfig
from siri_train.config.recipe import load_config
from siri_train.train import train
from siri_train.trainer import memory_check

NAMES = ("clip_low", "clip_high", "entropy_coef")


def rows(run: Path) -> list[dict[str, Any]]:
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drop = ("time", "per_s", "memory")
    return [{k: v for k, v in row.items() if not any(d in k for d in drop)} for row in kept]


def test_a_phase_changes_what_it_names_and_nothing_else() -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    for _ in range(50):
        drawn = {
            phase: {name: rng.random() for name in rng.sample(NAMES, rng.randint(0, 3))}
            for phase in ("compression", "expansion")
        }
        loss = LossConfig(entropy_coef=0.01, kl_coef=0.1, **drawn)
        for phase, given in drawn.items():
            options = loss.at(phase).options()
            assert options == {**loss.options(), **given}, (seed, drawn)
        assert loss.at("constant") is loss
        coefs = [0.01, *(given.get("entropy_coef", 0.01) for given in drawn.values())]
        assert (loss.heaviest.entropy_coef != 0) == any(coefs), (seed, drawn)
    assert LossConfig().heaviest.entropy_coef == 0


def test_impossible_phases_are_refused_in_one_line() -> None:
    for given, said in (
        ("loss.expansion={clip_low: 1.5}", "expansion: clip_low: got 1.5; takes a number from 0"),
        ("loss.expansion={entropy: 1}", "did you mean loss.expansion.entropy_coef"),
        ("loss.compression={clip_high: -1}", "clip_high"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config("demo.yaml", [given])
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(
        ConfigError, match="expansion: delta: got 1.3; takes .* 1 . clip_high = 1.9"
    ):
        load_config("demo.yaml", ["loss.delta=1.3", "loss.expansion={clip_high: 0.9}"])


@pytest.mark.draw(1, "runs")
@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_has_the_loss_of_its_phase(tiny: Any, tmp_path: Path, ahead: bool) -> None:
    """Cycle 4: steps 0 and 1 compress, 2 and 3 expand."""
    options = ["schedule.cycle=4", "train.steps=4", f"rollout.asynchronous={str(ahead).lower()}"]

    def run(name: str, *more: str) -> list[dict[str, Any]]:
        return rows(train(tiny(*options, *more, f"output={tmp_path / name}")))

    plain = run("plain")
    bonus = run("bonus", "loss.entropy_coef=0.5")
    late = run("late", "loss.expansion={entropy_coef: 0.5}")
    early = run("early", "loss.entropy_coef=0.5", "loss.expansion={entropy_coef: 0}")
    both = run("both", "loss.compression={entropy_coef: 0.5}", "loss.expansion={entropy_coef: 0.5}")
    assert both == bonus
    assert late[:2] == plain[:2] and late[2]["grad_norm"] != plain[2]["grad_norm"]
    assert early[:2] == bonus[:2] and early[2]["grad_norm"] != bonus[2]["grad_norm"]
    # until the update of step 2 both have the same weights, with another loss
    assert late[2]["response_len_mean"] == plain[2]["response_len_mean"]


def test_the_rehearsal_takes_the_phase_with_the_bonus(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    kept = memory_check.policy_loss

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options["entropy_coef"])
        return kept(*args, **options)

    monkeypatch.setattr(memory_check, "policy_loss", watched)
    train(tiny("train.steps=1", "train.rehearse=always", "loss.expansion={entropy_coef: 0.25}"))
    assert seen and set(seen) == {0.25}
