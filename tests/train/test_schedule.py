from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_train.report.schedule_plot import plot_svg, plot_text
from siri_train.schedule import SHAPES, LengthSchedule, Shape
from siri_train.schedule.waves import cos_turns
from tests.train.schedules import PAPER, drawn_of_all, schedules

# reference/siri-paper.md section 1.3: step, cosine, stair-cosine
TABLE = [
    (0, 16384, 16384),
    (80, 15184.3, 16384),
    (120, 13855.5, 15184.3),
    (160, 12288, 12288),
    (200, 10720.5, 9391.7),
    (240, 9391.7, 8192),
    (320, 8192, 8192),
    (400, 9391.7, 8192),
    (440, 10720.5, 9391.7),
    (480, 12288, 12288),
    (560, 15184.3, 16384),
    (640, 16384, 16384),
]


@pytest.mark.parametrize("step, cosine, stair_cosine", TABLE)
def test_values_of_the_paper(step, cosine, stair_cosine):
    for shape, value in (("cosine", cosine), ("stair-cosine", stair_cosine)):
        schedule = LengthSchedule(shape, **PAPER)
        assert schedule.exact(step) == pytest.approx(value, abs=0.05)
        assert schedule(step) == math.floor(schedule.exact(step) + 0.5)
        assert abs(schedule(step) - value) <= 0.5
        assert type(schedule(step)) is int


def test_cosine_is_the_formula_everywhere():
    schedule = LengthSchedule("cosine", **PAPER)
    for t in range(3 * 640):
        want = 12288 + 4096 * math.cos(2 * math.pi * t / 640)
        assert schedule.exact(t) == pytest.approx(want, abs=1e-8)


def test_stair_cosine_is_the_formula_everywhere():
    schedule = LengthSchedule("stair-cosine", **PAPER)
    pi = math.pi
    for t in range(1280):
        phi = 2 * pi * (t % 640) / 640
        if phi < pi / 4 or phi >= 7 * pi / 4:
            want = 16384.0
        elif phi < 3 * pi / 4:
            want = 12288 + 4096 * math.cos(2 * (phi - pi / 4))
        elif phi < 5 * pi / 4:
            want = 8192.0
        else:
            want = 12288 + 4096 * math.cos(2 * (phi - 3 * pi / 4))
        assert schedule.exact(t) == pytest.approx(want, abs=1e-8)


def formula(shape: str, t: int, top: int, bottom: int, cycle: int, order: str) -> float:
    """The shapes of the paper in one function, as they were before there was a registry."""
    t %= cycle
    middle, half = (top + bottom) / 2, (top - bottom) / 2
    if shape == "constant":
        return float(top)
    if shape == "cosine":
        return middle + half * cos_turns(t, cycle)
    if shape == "stair":
        if order == "compress_first":
            return float(bottom if 2 * t < cycle else top)
        return float(bottom if cycle <= 4 * t < 3 * cycle else top)
    if 8 * t < cycle or 8 * t >= 7 * cycle:
        return float(top)
    if 8 * t < 3 * cycle:
        return middle + half * cos_turns(8 * t - cycle, 4 * cycle)
    if 8 * t < 5 * cycle:
        return float(bottom)
    return middle + half * cos_turns(8 * t - 3 * cycle, 4 * cycle)


@given(schedules, st.integers(0, 5000))
def test_caps_are_the_formulas_to_the_bit(schedule, step):
    s = schedule
    want = formula(s.shape, step, s.max_len, s.min_len, s.cycle, s.stair_order)
    assert schedule.exact(step) == want
    assert schedule(step) == math.floor(want + 0.5)


@given(drawn_of_all(), st.integers(1, 2000))
def test_every_shape_stays_in_its_bounds_and_changes_phase_at_its_ends(schedule, steps):
    assert schedule.lowest <= schedule(steps) <= schedule.max_len
    phases = schedule.phases(steps)
    assert [a for a, _, _ in phases] == [0, *(b for _, b, _ in phases[:-1])]
    assert phases[-1][1] == steps
    for start, end, name in phases:
        for step in {start, (start + end) // 2, end - 1}:
            assert schedule.phase(step) == name


@pytest.fixture
def shapes():
    before = dict(SHAPES.data)
    yield SHAPES
    SHAPES.data = before


def test_a_shape_of_its_own_ends_and_options(shapes):
    """Compression for three quarters of an odd cycle, in steps, once."""

    def cap(step, s):
        low = s.options["low_from"]
        return float(s.max_len if step % s.cycle < low else s.min_len)

    def check(s):
        if not 0 < s.options["low_from"] < s.cycle:
            raise ValueError(f"options.low_from: takes 1 to {s.cycle - 1}")

    shapes["late"] = Shape(
        cap,
        phase=lambda step, s: "compression" if step % s.cycle < s.cycle - 2 else "expansion",
        compressed_ends=lambda steps, s: list(range(s.cycle - 2, steps + 1, s.cycle)),
        options={"low_from": 3},
        check=check,
        even_cycle=False,
    )
    schedule = LengthSchedule("late", 9, 4, 7, options={"low_from": 4})
    assert [schedule(t) for t in range(8)] == [9, 9, 9, 9, 4, 4, 4, 9]
    assert schedule.compressed_ends(20) == [5, 12, 19] and schedule.expanded_ends(20) == [7, 14]
    assert schedule.phases(8) == [(0, 5, "compression"), (5, 7, "expansion"), (7, 8, "compression")]
    assert schedule.tokens_saved(16) == 2 * 15
    for text in (plot_text(schedule, 20), plot_svg(schedule, 20)):
        assert "5" in text and "19" in text
    with pytest.raises(ValueError, match="options.low_from: takes 1 to 6"):
        LengthSchedule("late", 9, 4, 7, options={"low_from": 7})
    with pytest.raises(ValueError, match="options.low: unknown option; the schedule shape 'late'"):
        LengthSchedule("late", 9, 4, 7, options={"low": 7})
    with pytest.raises(ValueError, match="options.a: unknown option; .*'cosine' takes none"):
        LengthSchedule("cosine", 9, 4, 8, options={"a": 7})
    shapes["wrong"] = Shape(lambda step, s: s.max_len + 2.0 * step)
    with pytest.raises(ValueError, match="'wrong' gives a cap of 11.0 at step 1; takes .* 4 to 9"):
        LengthSchedule("wrong", 9, 4, 8)(1)


def test_points_that_do_not_repeat_and_a_state(shapes):
    points = [[0, 40], [10, 20], [30, 30]]

    def cap(step, s):
        return float(np.interp(step, *zip(*s.options["points"], strict=True)))

    shapes["mine"] = Shape(cap, options={"points": points}, periodic=False)
    schedule = LengthSchedule("mine", 40, 20, 4)
    assert [schedule(t) for t in (0, 5, 10, 20, 99)] == [40, 30, 20, 25, 30]
    assert schedule.tokens_saved(40) == sum(40 - schedule(t) for t in range(40))

    shapes["learns"] = Shape(
        lambda step, s: float(s.min_len if (s.state or {}).get("low") else s.max_len),
        observe=lambda row, s: {"low": row["accuracy"] > 0.5},
    )
    schedule = LengthSchedule("learns", 40, 20, 4)
    assert "depends on how the run goes" in schedule.forecast
    alias, caps = schedule, []
    for step, accuracy in enumerate([0.1, 0.6, 0.7, 0.2]):
        caps.append(alias(step))
        schedule.observe({"accuracy": accuracy})
    assert caps == [40, 40, 20, 20] and schedule(9) == 40
    with pytest.raises(ValueError, match="shape: got 'learns', whose cap depends .* verl does"):
        schedule.require_stateless("verl")
    LengthSchedule("cosine", 40, 20, 4).require_stateless("verl")


def test_stair_both_readings():
    first = LengthSchedule("stair", **PAPER)
    assert first.stair_order == "compress_first"
    assert [first(t) for t in (0, 319, 320, 639, 640)] == [8192, 8192, 16384, 16384, 8192]
    centred = LengthSchedule("stair", **PAPER, stair_order="phase_centred")
    assert [centred(t) for t in (0, 159, 160, 320, 479, 480, 639)] == [
        16384, 16384, 8192, 8192, 8192, 16384, 16384,
    ]  # fmt: skip


@pytest.mark.parametrize("shape", ["cosine", "stair", "stair-cosine"])
def test_mean_over_a_cycle(shape):
    schedule = LengthSchedule(shape, **PAPER)
    assert schedule.mean(640) == 12288
    assert schedule.mean(1920) == 12288
    assert schedule.tokens_saved(640) == 640 * 4096
    assert schedule.saved_share(1920) == 0.25
    assert schedule.mean(1000) == pytest.approx(sum(map(schedule, range(1000))) / 1000)
    assert schedule.mean(7) == pytest.approx(sum(map(schedule, range(7))) / 7)


def test_constant():
    schedule = LengthSchedule("constant", **PAPER)
    assert {schedule(t) for t in range(2000)} == {16384}
    assert schedule.phase(5) == "constant"
    assert schedule.cycle_index(640) == 2
    assert schedule.mean(11) == 16384
    assert schedule.tokens_saved(11) == 0
    assert schedule.compressed_ends(5000) == schedule.expanded_ends(5000) == []


@pytest.mark.parametrize("cycle", [8, 24, 640])
def test_stair_cosine_has_no_jumps(cycle):
    schedule = LengthSchedule("stair-cosine", 16384, 8192, cycle)
    steepest = 4096 * 4 * math.pi / cycle  # the cosine between the flats turns twice as fast
    for t in range(2 * cycle):
        assert abs(schedule.exact(t + 1) - schedule.exact(t)) <= steepest + 1e-9


def test_phases_cycles_and_ends():
    schedule = LengthSchedule("cosine", **PAPER)
    assert [schedule.phase(t) for t in (0, 319, 320, 639, 640)] == [
        "compression", "compression", "expansion", "expansion", "compression",
    ]  # fmt: skip
    assert [schedule.cycle_index(t) for t in (0, 639, 640, 1919)] == [1, 1, 2, 3]
    assert schedule.compressed_ends(1920) == [320, 960, 1600]  # siri-low after 1600 steps
    assert schedule.expanded_ends(1920) == [640, 1280, 1920]  # siri-high after 1920
    assert schedule.compressed_ends(319) == schedule.expanded_ends(0) == []
    assert schedule.compressed_ends(320) == [320]


def test_halves_round_up_at_both_crossings():
    # the middle is 19.5; plain math.cos lands above it on the way down, below it on the way up
    schedule = LengthSchedule("cosine", 25, 14, 8)
    assert schedule.exact(2) == schedule.exact(6) == 19.5
    assert schedule(2) == schedule(6) == 20
    twelfth = LengthSchedule("cosine", 16, 14, 12)
    assert [twelfth.exact(t) for t in (2, 10)] == [15.5, 15.5]


@given(schedules, st.integers(0, 10**7))
def test_bounds_period_and_symmetry(schedule, step):
    cap = schedule(step)
    assert schedule.min_len <= cap <= schedule.max_len
    assert schedule.min_len <= schedule.exact(step) <= schedule.max_len
    assert schedule(step + schedule.cycle) == cap
    assert schedule.cycle_index(step + schedule.cycle) == schedule.cycle_index(step) + 1
    assert schedule.phase(step + schedule.cycle) == schedule.phase(step)
    if "cosine" in schedule.shape:
        mirrored = schedule.cycle - step % schedule.cycle
        assert schedule(mirrored) == cap
        assert schedule(schedule.cycle // 2) == schedule.min_len
        assert schedule(0) == schedule.max_len


@given(schedules, st.integers(1, 3000))
def test_ends_and_savings_add_up(schedule, steps):
    saved = sum(schedule.max_len - schedule(t) for t in range(steps))
    assert schedule.tokens_saved(steps) == saved
    assert schedule.mean(steps) == pytest.approx(schedule.max_len - saved / steps)
    for end in schedule.compressed_ends(steps):
        assert end <= steps and schedule.phase(end - 1) == "compression"
        assert schedule.phase(end) == "expansion"
    for end in schedule.expanded_ends(steps):
        assert end <= steps and end % schedule.cycle == 0


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"cycle": 0}, ValueError, ["cycle", "got 0", "at least 1"]),
        ({"cycle": -640}, ValueError, ["cycle", "got -640"]),
        ({"cycle": 641}, ValueError, ["cycle", "got 641", "even", "640 or 642"]),
        ({"cycle": 640.0}, TypeError, ["cycle", "640.0 (float)", "whole number"]),
        ({"cycle": True}, TypeError, ["cycle", "bool"]),
        ({"max_len": "16384"}, TypeError, ["max_len", "'16384' (str)"]),
        ({"max_len": 0}, ValueError, ["max_len", "got 0"]),
        ({"min_len": -1}, ValueError, ["min_len", "got -1"]),
        ({"min_len": None}, TypeError, ["min_len", "None"]),
        ({"min_len": float("nan")}, TypeError, ["min_len", "nan"]),
        ({"min_len": 16385}, ValueError, ["min_len", "got 16385", "max_len = 16384"]),
        ({"shape": "cosin"}, ValueError, ["shape", "'cosin'", "mean 'cosine'?", "'constant'"]),
        ({"shape": "Stair_Cosine"}, ValueError, ["did you mean 'stair-cosine'?"]),
        ({"shape": "zzzz"}, ValueError, ["shape", "'zzzz'", "'stair-cosine'"]),
        ({"shape": 3}, TypeError, ["shape", "3 (int)"]),
        ({"stair_order": "phase-centered"}, ValueError, ["did you mean 'phase_centred'?"]),
    ],
)
def test_refusals_name_the_key(change, kind, words):
    with pytest.raises(kind) as error:
        LengthSchedule(**{"shape": "cosine", **PAPER, **change})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("method", ["__call__", "exact", "cycle_index", "phase"])
def test_bad_steps_are_refused(method):
    schedule = LengthSchedule("constant", **PAPER)
    with pytest.raises(ValueError, match="step: got -1"):
        getattr(schedule, method)(-1)
    with pytest.raises(TypeError, match="step: got 1.5"):
        getattr(schedule, method)(1.5)


def test_no_mean_of_nothing():
    with pytest.raises(ValueError, match="steps: got 0"):
        LengthSchedule("cosine", **PAPER).mean(0)


def test_frozen_and_plain():
    schedule = LengthSchedule("cosine", np.int64(64), np.int32(16), 10)
    assert [type(v) for v in (schedule.max_len, schedule.min_len)] == [int, int]
    assert schedule == LengthSchedule("cosine", 64, 16, 10)
    assert schedule(np.int64(5)) == 16
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.cycle = 2  # type: ignore[misc]
