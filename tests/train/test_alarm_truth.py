"""Alarms against runs whose failure is known: the scenarios of rldoctor and rlprobe.

rldoctor 0.2 and rlprobe 0.1 (Apache-2.0) draw the curves of runs with one failure each, to test
their own detectors. `tests/train/alarm_runs.py` gives them our keys. The tables say which alarm a
scenario must raise, which others are true of it as well, and why a scenario cannot be expressed.
Any other alarm is a false one.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.conftest import DRAW
from tests.train.alarm_runs import Run, of_rldoctor, of_rlprobe, raised

SEEDS = range(20)


class Truth(NamedTuple):
    """What a scenario must raise.

    Args:
        alarm: its name; None: no alarm.
        also: alarms that are true of the scenario too, and may be raised.
        why: why the scenario's own failure cannot be seen in our logs.
    """

    alarm: str | None = None
    also: tuple[str, ...] = ()
    why: str = ""


RLDOCTOR = {
    "healthy": Truth(),
    "entropy_collapse": Truth("entropy-collapse", ("entropy-out-of-band", "reward-plateau")),
    # Training questions are as good as learned while held-out accuracy rests at 92.5 %.
    "saturated_groups": Truth("groups-without-signal"),
    "too_hard": Truth("groups-without-signal", ("all-zero-rewards", "reward-plateau")),
    "reward_hacking": Truth("reward-hacking"),
    "length_hacking": Truth("length-explosion"),  # longer for nothing
    "truncation": Truth("truncation-rising", ("length-explosion",)),
    "kl_blowup": Truth("reference-drift", ("reward-plateau",)),
    # Its entropy falls to a twentieth, too.
    "clip_saturation": Truth("clip-saturation", ("entropy-collapse", "entropy-out-of-band")),
    "grad_spikes": Truth("grad-norm-spike"),
    "plateau": Truth("reward-plateau"),
    "format_domination": Truth(
        why="a reward is one number here: it has no parts whose shares move"
    ),
}
RLPROBE = {
    "healthy": Truth(),
    "kl_blowup": Truth("reference-drift"),
    "entropy_collapse": Truth("entropy-collapse", ("entropy-out-of-band", "reward-plateau")),
    "reward_hack_length": Truth("length-explosion"),
    "format_gaming": Truth(
        # Its mean reward falls at the onset, by its own formula, and then hardly moves.
        also=("reward-decay", "reward-plateau"),
        why="a reward is one number here, without parts",
    ),
    "clip_saturation": Truth("clip-saturation"),
    "degenerate_groups": Truth("groups-without-signal"),
    "adv_collapse": Truth(why="advantages are not in the log; rewards and groups are as before"),
    "grad_pathology": Truth("grad-norm-spike", ("non-finite-gradient", "grad-norm-creep")),
    "truncation_starve": Truth("truncation-rising"),
    "repetition_spiral": Truth("repetition", ("entropy-out-of-band",)),
    "reward_std_death": Truth("groups-without-signal", ("reward-plateau",)),
    "ref_drift_asymmetry": Truth(why="the KL divergence is a mean over positions here"),
    "throughput_rot": Truth(
        also=("throughput-decay",),
        why="responses get 1.8 times as long with the time, and only steps of like tokens compare",
    ),
}
EVERY_ROW = ("grad_spikes", "grad_pathology")
"""Failures of single steps; of the others every 10th row is looked at."""


def rldoctor_run(scenario: str, seed: int) -> Run:
    simulate = pytest.importorskip("rl_doctor.simulate", reason="rldoctor is not installed")
    return of_rldoctor(*simulate.simulate(scenario, seed=seed))


def rlprobe_run(scenario: str, seed: int, steps: int = 500) -> Run:
    # Its public function writes Parquet files; these two make the curves.
    synth: Any = pytest.importorskip("rlprobe.testing.synth", reason="rlprobe is not installed")
    rng = np.random.default_rng(seed)
    series = synth._healthy_series(steps, rng, "grpo")
    parts = synth._healthy_components(series)
    positions = synth._healthy_kl_positional(series, rng)
    if scenario != "healthy":
        synth._inject(scenario, series, parts, positions, steps // 2, rng)
    return of_rlprobe(series)


def judge(truth: Truth, run: Run, scenario: str) -> list[str]:
    """Complaints: the scenario's alarm is not raised, or one that is not true of it."""
    told = set(raised(run, 1 if scenario in EVERY_ROW else 10))
    missed = {truth.alarm} - told - {None}
    false = told - {truth.alarm, *truth.also}
    return [f"missed {name}" for name in missed] + [f"false {name}" for name in false]


def complaints(scenarios: dict[str, Truth], make: Any, seeds: Any) -> dict[str, list[str]]:
    return {
        f"{scenario}, seed {seed}": wrong
        for scenario, truth in scenarios.items()
        for seed in seeds
        if (wrong := judge(truth, make(scenario, seed), scenario))
    }


def test_every_scenario_has_its_alarm_or_a_reason() -> None:
    simulate = pytest.importorskip("rl_doctor.simulate", reason="rldoctor is not installed")
    synth = pytest.importorskip("rlprobe.testing.synth", reason="rlprobe is not installed")
    assert set(RLDOCTOR) == set(simulate.SCENARIOS) and len(RLDOCTOR) == 12
    # A value function is the one thing of its kind: there is none here.
    assert {*RLPROBE, "value_divergence"} == {*synth.PATHOLOGIES, "healthy"}
    for scenario, truth in {**RLPROBE, **RLDOCTOR}.items():
        assert (truth.alarm is None) == bool(truth.why or scenario == "healthy"), scenario


def test_scenarios_of_the_day() -> None:
    seed = random.Random(DRAW).randrange(1000, 10**6)
    assert complaints(RLDOCTOR, rldoctor_run, [seed]) == {}
    assert complaints(RLPROBE, rlprobe_run, [seed]) == {}


@pytest.mark.slow
def test_rldoctor_over_20_seeds() -> None:
    assert complaints(RLDOCTOR, rldoctor_run, SEEDS) == {}


@pytest.mark.slow
def test_saturated_groups_over_200_more_seeds() -> None:
    """Held-out accuracy is 92.5 % there, and scatters by 2 points about it: no luck may decide."""
    some = {"saturated_groups": RLDOCTOR["saturated_groups"]}
    assert complaints(some, rldoctor_run, range(20, 220)) == {}


@pytest.mark.slow
def test_rlprobe_over_20_seeds() -> None:
    assert complaints(RLPROBE, rlprobe_run, SEEDS) == {}
