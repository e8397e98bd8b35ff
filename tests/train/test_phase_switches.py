"""Switches by phase (docs/losses.md): the gradient of train.py's own steps, against formulas."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from siri_train.ablate.plan import Asked, build_plan
from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.config.yaml_core import write_yaml
from siri_train.schedule import SHAPES
from siri_train.train import train
from siri_train.trainer.phase_switches import notices
from tests.train.conftest import TINY
from tests.train.phase_runs import ByHand, Recorded, gradient_by_hand, recorded_run

SEED = time.time_ns() % 2**31
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum-norm")
PHASES = {"compression": (0, 1), "expansion": (2,)}
STEPS = range(3)
DRAW = random.Random(SEED)
AGGREGATION = DRAW.choice(AGGREGATIONS)
BUFFER, FACTOR = DRAW.randint(2, 16), round(DRAW.uniform(0.2, 2), 2)
COEF, HIGH = round(DRAW.uniform(0.05, 0.5), 2), round(DRAW.uniform(0.4, 1), 2)

SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": (f"{{clip_high: {HIGH}}}", {"clip_high": HIGH}),
    "entropy": (f"{{entropy_coef: {COEF}}}", {"entropy_coef": COEF}),
    "filter": ("{overlong_filter: true}", {"filtered": True}),
    "shaping": (
        f"{{overlong_buffer: {BUFFER}, overlong_factor: {FACTOR}}}",
        {"buffer": BUFFER, "factor": FACTOR},
    ),
    "batch scale": ("{advantage_scale: batch_std}", {"scale": "batch_std"}),
    "no scale": ("{advantage_scale: none}", {"scale": "none"}),
}
SAID = f"seed {SEED}: {AGGREGATION}, {SWITCHES}"


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("time", "per_s", "memory")
    return [
        {k: v for k, v in json.loads(line).items() if not any(word in k for word in timed)}
        for line in lines
    ]


def config_of(*given: str) -> RunConfig:
    return parse_config(copy.deepcopy(TINY), list(given))


def check(run: Recorded, step: int, **rule: Any) -> None:
    """The gradient of a step is that of the formulas."""
    want = gradient_by_hand(run, step, ByHand(aggregation=AGGREGATION, **rule))
    got = run.gradients[step]
    assert want is not None and got is not None and want.norm() > 1e-6, SAID
    assert (got - want).norm() < 1e-4 * want.norm(), (step, rule, SAID)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The run without switches."""
    folder = tmp_path_factory.mktemp("plain")
    run = recorded_run(folder, SEED, f"loss.aggregation={AGGREGATION}")
    for step in STEPS:
        check(run, step)
    return run


@pytest.mark.costly
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("phase", PHASES)
def test_a_switch_acts_in_its_phase_and_nowhere_else(
    plain: Recorded, tmp_path: Path, name: str, phase: str
) -> None:
    given, rule = SWITCHES[name]
    run = recorded_run(tmp_path, SEED, f"loss.aggregation={AGGREGATION}", f"loss.{phase}={given}")
    for step in STEPS:
        same = torch.equal(run.gradients[step], plain.gradients[step])
        assert same == (step not in PHASES[phase]), (step, SAID)
    check(run, PHASES[phase][0], **rule)


def test_a_constant_cap_has_no_phases(tmp_path: Path) -> None:
    """The switches of phases do nothing there, to the bit; loss.overlong_filter acts."""
    given = ("schedule.shape=constant", f"loss.aggregation={AGGREGATION}", "train.steps=1")
    run = recorded_run(tmp_path / "plain", SEED, *given)
    every = "{clip_high: 0.9, entropy_coef: 0.3, overlong_filter: true, overlong_buffer: 8, "
    every += "advantage_scale: none, dynamic_sampling: true}"
    sampling = ("rollout.oversample=1.5", "loss.compression=null")
    both = [f"loss.{phase}={every.replace(', dynamic_sampling: true', '')}" for phase in PHASES]
    other = recorded_run(tmp_path / "phases", SEED, *given, *both)
    assert torch.equal(other.gradients[0], run.gradients[0]), SAID
    more = recorded_run(tmp_path / "dynamic", SEED, *given, *sampling)
    off = [f"loss.{phase}={{dynamic_sampling: false}}" for phase in PHASES]
    same = recorded_run(tmp_path / "no phases", SEED, *given, *sampling[:1], *off)
    assert torch.equal(same.gradients[0], more.gradients[0]), SAID
    masked = recorded_run(tmp_path / "masked", SEED, *given, "loss.overlong_filter=true")
    check(masked, 0, filtered=True)
    assert not torch.equal(masked.gradients[0], run.gradients[0]), SAID


def test_dynamic_sampling_in_compression_alone(tmp_path: Path) -> None:
    given = (f"loss.aggregation={AGGREGATION}", "rollout.oversample=2.5", "rollout.prompts=5")
    everywhere = recorded_run(tmp_path / "all", SEED, *given)
    run = recorded_run(tmp_path / "one", SEED, *given, "loss.expansion={dynamic_sampling: false}")
    for step in STEPS:
        check(run, step)
        same = torch.equal(run.gradients[step], everywhere.gradients[step])
        found = [group.position for group in run.batches[step].groups]
        if step in PHASES["compression"]:
            assert same, SAID
            assert all(group.informative for group in run.batches[step].groups), SAID
        else:  # the first questions of the step, whatever they earn
            assert found == [0, 1, 2, 3, 4] and not run.batches[step].dropped, SAID
            asked = [group.question.id for group in everywhere.batches[step].seen]
            assert [g.question.id for g in run.batches[step].groups] == asked[:5], SAID


def test_filter_and_entropy_together_leave_truncated_responses_out_of_both(tmp_path: Path) -> None:
    run = recorded_run(
        tmp_path, SEED, f"loss.aggregation={AGGREGATION}",
        f"loss.expansion={{overlong_filter: true, entropy_coef: {COEF}}}",
    )  # fmt: skip
    check(run, 2, filtered=True, entropy_coef=COEF)
    check(run, 0)


def test_a_step_in_which_all_are_truncated_changes_nothing(tmp_path: Path) -> None:
    """No update, no NaN: the weights stay as they were."""
    folder = tmp_path / "run"
    given = ["schedule.max_len=3", "schedule.min_len=2", "eval.at_start=false", "train.steps=4"]
    given += ["reward.think=none", "loss.expansion={overlong_filter: true, entropy_coef: 0.1}"]
    train(config_of(f"output={folder}", *given, "checkpoint.every=1", "checkpoint.keep_last=4"))
    found = rows(folder)
    assert [row["truncated_frac"] for row in found] == [1.0] * 4
    assert [row["overlong_masked_frac"] for row in found] == [0.0, 0.0, 1.0, 1.0]
    for row in found[2:]:
        assert row["grad_norm"] is None and row["loss"] == 0.0 and row["skipped_updates"] == 0
    name = "checkpoints/step_00000{}/model.safetensors"
    at = [(folder / name.format(step)).read_bytes() for step in (2, 3, 4)]
    assert at[0] == at[1] == at[2]


def test_metrics_say_what_the_switches_did(tmp_path: Path) -> None:
    phase = "{overlong_filter: true, overlong_buffer: 10, overlong_factor: 0.5}"
    run = recorded_run(tmp_path, SEED, f"loss.expansion={phase}")
    for step, row in enumerate(rows(tmp_path)):
        batch = run.batches[step]
        completions = [c for group in batch.groups for c in group.completions]
        over = [min(max(len(c.token_ids) - batch.cap + 10, 0) / 10, 1) for c in completions]
        on = step in PHASES["expansion"]
        assert list(row)[-2:] == ["overlong_masked_frac", "overlong_penalty"]
        assert row["overlong_masked_frac"] == (row["truncated_frac"] if on else 0), SAID
        wanted = 0.5 * sum(over) / len(over) if on else 0.0
        assert row["overlong_penalty"] == pytest.approx(wanted), SAID
    assert 0 < row["overlong_masked_frac"] < 1, SAID


@pytest.mark.draw(1)
@pytest.mark.parametrize("ahead", ["false", "true"])
def test_a_run_that_is_killed_resumes_to_the_bit(
    tmp_path: Path, ahead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["schedule.max_len=24", "schedule.min_len=16", "rollout.oversample=2"]
    given += ["train.steps=4", "eval.at_start=false", f"rollout.asynchronous={ahead}"]
    given += ["loss.compression={advantage_scale: batch_std, overlong_buffer: 4}"]
    given += ["loss.expansion={overlong_filter: true, dynamic_sampling: false, entropy_coef: 0.1}"]
    train(config_of(f"output={tmp_path / 'whole'}", *given))
    from siri_train import train as loop

    kept, calls = loop.update, []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("killed in step 2")
        return kept(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", killed)
        with pytest.raises(MemoryError, match="killed in step 2"):
            train(config_of(f"output={tmp_path / 'parts'}", *given))
    train(config_of(f"output={tmp_path / 'parts'}", *given))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.draw(1)
@pytest.mark.parametrize("setting", ["overlong_buffer: 4", "dynamic_sampling: false"])
def test_a_batch_that_was_sampled_under_other_switches_is_sampled_anew(
    tmp_path: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"output={tmp_path / 'run'}"
    given = [folder, "rollout.asynchronous=true", "rollout.oversample=2", "eval.at_start=false"]
    train(config_of(*given, "train.steps=4"))
    other = [f"loss.compression={{{setting}}}", f"loss.expansion={{{setting}}}", "train.steps=4"]
    capsys.readouterr()
    step = str(tmp_path / "run" / "checkpoints" / "step_000003")
    train(config_of(*given, *other, f"output={tmp_path / 'next'}"), resume=step)
    assert "was sampled with other settings; it is sampled anew" in " ".join(
        capsys.readouterr().out.split()
    )


def test_every_shape_has_the_phase_that_its_schedule_names() -> None:
    """toggle's cap does not move, and it has phases; a constant cap has none."""
    assert SHAPES["toggle"].moves and not SHAPES["constant"].moves
    given = ["loss.compression={overlong_filter: true}", "loss.expansion={clip_high: 0.5}"]
    for shape in ("cosine", "stair", "stair-cosine", "toggle", "constant"):
        reward = "toggle" if shape == "toggle" else "length-cap"
        config = config_of(f"schedule.shape={shape}", f"reward.function={reward}", *given)
        schedule = config.schedule.build()
        for step in range(8):
            loss = config.loss.at(schedule.phase(step))
            half = "constant" if shape == "constant" else list(PHASES)[step % 4 // 2]
            assert schedule.phase(step) == half
            assert loss.overlong_filter == (half == "compression")
            assert loss.clip_high == (0.5 if half == "expansion" else 0.28)


def drawn_refusals() -> list[tuple[list[str], str]]:
    """Recipes with drawn values that cannot be, and what is said."""
    rng = random.Random(SEED)
    phase = rng.choice(list(PHASES))
    key, long, factor = f"loss.{phase}", rng.randint(25, 10**6), round(rng.uniform(0.1, 9), 2)
    scale, flag = "".join(rng.choices("abc", k=5)), rng.choice(["true", "false"])
    short = rng.randint(1, 24)
    return [
        ([f"{key}.overlong_buffer={long}"], f"{key}.overlong_buffer: got {long}; takes 1 to 24"),
        ([f"{key}.overlong_buffer=0"], f"{key}.overlong_buffer: got 0"),
        ([f"{key}.overlong_factor={factor}"], f"overlong_factor: got {factor:g}, which has no eff"),
        ([f"{key}.advantage_scale={scale}"], f"{key}.advantage_scale: got '{scale}'"),
        ([f"{key}.overlong_filter={factor}"], f"{key}.overlong_filter: got {factor}"),
        (
            [f"{key}.dynamic_sampling={flag}"],
            f"{key}.dynamic_sampling: got {flag}, but rollout has no dynamic sampling (oversample "
            "1, max_rounds 1); set rollout.oversample or rollout.max_rounds above 1",
        ),
        (
            [
                f"{key}.overlong_buffer={short}",
                "reward.function=overlong",
                "reward.options={buffer: 8}",
            ],
            f"{key}.overlong_buffer: got {short} beside reward.function=overlong",
        ),
        ([f"{key}.overlong_filters=true"], f"did you mean {key}.overlong_filter"),
    ]


@pytest.mark.parametrize("case", range(len(drawn_refusals())))
def test_what_it_does_not_take_is_one_line(case: int) -> None:
    given, said = drawn_refusals()[case]
    with pytest.raises(ConfigError) as refusal:
        config_of(*given)
    assert said in str(refusal.value), SAID
    assert "\n" not in str(refusal.value)


def test_an_ablation_varies_a_switch(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(write_yaml(copy.deepcopy(TINY)))
    vary = ["loss.expansion.overlong_filter=true,false"]
    plan = build_plan(Asked(str(recipe), tmp_path / "out", vary=vary))
    found = {run.config.loss.own("expansion").overlong_filter for run in plan.runs}
    assert found == {True, False}
    assert all(run.config.loss.compression is None for run in plan.runs)


def test_what_is_probably_not_meant_is_said_at_the_start(tmp_path: Path, capsys: Any) -> None:
    quiet = config_of("loss.expansion={overlong_filter: true}")
    constant = config_of("loss.overlong_filter=true", "schedule.shape=constant")
    settled = config_of("loss.overlong_filter=true", "loss.compression={overlong_filter: false}")
    assert notices(quiet) == notices(constant) == notices(settled) == []
    half = config_of("rollout.oversample=2", "loss.expansion={dynamic_sampling: true}")
    (said,) = notices(half)
    assert "loss.compression.dynamic_sampling=false" in said
    for given in ("loss.overlong_filter=true", "loss.compression={overlong_filter: true}"):
        (said,) = notices(config_of(given))
        assert said.startswith("loss.overlong_filter is on in compression")
    run = f"output={tmp_path / 'run'}"
    train(config_of(run, "loss.overlong_filter=true", "train.steps=1", "eval.at_start=false"))
    out = " ".join(capsys.readouterr().out.split())
    assert "set loss.compression.overlong_filter=false to keep them" in out
