from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_train.schedule import SHAPES, STAIR_ORDERS, LengthSchedule

PAPER = {"max_len": 16384, "min_len": 8192, "cycle": 640}

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

schedules = st.builds(
    lambda shape, order, lens, half: LengthSchedule(shape, max(lens), min(lens), 2 * half, order),
    st.sampled_from(tuple(SHAPES)),
    st.sampled_from(STAIR_ORDERS),
    st.tuples(st.integers(1, 40000), st.integers(1, 40000)),
    st.integers(1, 400),
)


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
