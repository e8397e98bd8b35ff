from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_train.checkpoint import retention
from siri_train.report.schedule_plot import plot_svg, plot_text
from siri_train.rewards import REWARDS
from siri_train.schedule import SHAPES, LengthSchedule
from tests.train.schedules import PAPER, drawn_of_all


@given(drawn_of_all(), st.integers(1, 1500), st.integers(0, 400))
def test_ends_of_every_shape_ascend_and_end_their_phases(schedule, steps, lag):
    low, high = schedule.compressed_ends(steps, steps), schedule.expanded_ends(steps, steps)
    assert low == sorted(set(low)) and high == sorted(set(high))
    assert not {*low} & {*high} and all(0 < end <= steps for end in low + high)
    for ends, phase in ((low, "compression"), (high, "expansion")):
        assert all(schedule.phase(end - 1) == phase for end in ends)
        assert all(schedule.phase(end) != phase for end in ends if end < steps)
    marks = sorted(low + high)
    kinds = [end in low for end in marks]
    assert all(a != b for a, b in zip(kinds, kinds[1:], strict=False))  # they take turns
    # asked step by step, as a run does, or at once: the same ends
    some = range(0, steps + 1, max(1, steps // 40))
    for done in some:
        assert schedule.compressed_ends(done) == [end for end in low if end <= done and (
            end < steps or end in schedule.compressed_ends(steps))]  # fmt: skip
    assert [schedule.cycle_index(t) for t in some] == sorted(map(schedule.cycle_index, some))
    names = retention.ends(schedule, steps, lag, steps)
    assert list(names) == sorted(names)
    flat = [(step, name) for step, both in names.items() for name in both]
    late = [(end + lag, f"{name}-lagged") for name, ends in (("siri-low", low), ("siri-high", high))
            for end in ends if lag and end + lag <= steps]  # fmt: skip
    own = [(end, "siri-low") for end in low] + [(end, "siri-high") for end in high]
    assert sorted(flat) == sorted(own + late)
    assert all(both[0] == dict(own).get(step, both[0]) for step, both in names.items())


@given(drawn_of_all(), st.integers(1, 700))
def test_savings_and_plots_of_every_shape(schedule, steps):
    caps = [schedule(t) for t in range(steps)]
    assert [schedule(t) for t in range(steps)] == caps  # asking changes nothing
    assert min(caps) >= schedule.lowest and max(caps) <= schedule.max_len
    assert schedule.tokens_saved(steps) == steps * schedule.max_len - sum(caps)
    assert schedule.mean(steps) == pytest.approx(sum(caps) / steps)
    plot = plot_text(schedule, steps, 60, 9)
    assert len(plot.splitlines()) <= 12 and max(map(len, plot.splitlines())) <= 60
    assert plot_svg(schedule, steps).startswith("<svg")


def test_the_table_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line[:2] == "| "]
    steps = [int(text) for text in lines[0][1:-1]]
    table = {name.strip("`"): values for name, *values in lines[1:9]}
    assert {*table} == {*SHAPES} - {"points", "plateau"}
    for name, values in table.items():
        schedule = LengthSchedule(name, **PAPER)
        assert [*map(schedule, steps), schedule.mean(640)] == [*map(int, values)], name
    for name, shape in SHAPES.items():  # every shape and every option is on the page
        assert f"**`{name}`**" in page or f"`{name}`\n" in page or name in ("points",), name
        assert all(f"| `{option}` |" in page for option in shape.options), name
    assert all(f"| `{option}` |" in page for option in REWARDS["toggle"].options)


def test_asymmetric():
    schedule = LengthSchedule("asymmetric", **PAPER)
    assert [schedule(t) for t in (0, 319, 320, 639, 640)] == [16384, 8192, 16384, 16384, 16384]
    for t in range(320):
        assert schedule.exact(t) == pytest.approx(12288 + 4096 * math.cos(math.pi * t / 319))
    assert schedule.compressed_ends(1920) == [320, 960, 1600]
    assert schedule.expanded_ends(1920) == [640, 1280, 1920]
    assert schedule.mean(640) == 14336  # half a cycle at the middle, half at the top
    short = LengthSchedule("asymmetric", 20, 10, 7, options={"compression": 0.4})
    assert [short(t) for t in range(8)] == [20, 15, 10, 20, 20, 20, 20, 20]
    assert short.phases(10) == [(0, 3, "compression"), (3, 7, "expansion"), (7, 10, "compression")]
    for share in (0.0, 0.1, 0.99, 1, -1, "x", True, math.nan):
        with pytest.raises(ValueError, match="options.compression: got"):
            LengthSchedule("asymmetric", 20, 10, 7, options={"compression": share})


def test_steps_up_and_down():
    up = LengthSchedule("step-up", 16384, 8192, options={"at": 360})  # the 7B baseline
    assert [up(t) for t in (0, 359, 360, 5000)] == [8192, 8192, 16384, 16384]
    assert up.phases(900) == [(0, 360, "compression"), (360, 900, "expansion")]
    assert up.compressed_ends(900, 900) == [360] and up.expanded_ends(900, 900) == [900]
    assert up.expanded_ends(900, 1000) == up.expanded_ends(900) == []
    assert up.expanded_ends(360, 360) == up.compressed_ends(300, 300) == []
    assert up.cycle_index(800) == 1 and up.mean(720) == 12288
    down = LengthSchedule("step-down", 16384, 8192)
    assert [down(t) for t in (0, 319, 320, 5000)] == [16384, 16384, 8192, 8192]
    assert down.phases(900) == [(0, 320, "expansion"), (320, 900, "compression")]
    assert down.expanded_ends(900, 900) == [320] and down.compressed_ends(900, 900) == [900]
    assert LengthSchedule("step-up", 9, 5, 3).compressed_ends(3) == [1]
    for at in (0, -1, 3.0, True, "x", 2**60):
        with pytest.raises(ValueError, match="options.at: got .* takes a whole number of at least"):
            LengthSchedule("step-up", 9, 5, options={"at": at})


@pytest.mark.parametrize("shape", ["step-up", "step-down", "stair", "asymmetric"])
def test_a_jump_is_drawn_as_a_line(shape):
    schedule = LengthSchedule(shape, 16, 8, 40)
    lines = plot_text(schedule, 60, 60, 9).splitlines()[:-3]
    columns = zip(*(line.ljust(60) for line in lines), strict=True)
    assert any(all(cell not in " ┤│" for cell in column) for column in list(columns)[5:])


def of_points(points, between="linear", repeat=False, cycle=640):
    options = {"points": points, "between": between, "repeat": repeat}
    return LengthSchedule("points", 16, 4, cycle, options=options)


def test_points():
    line = of_points([[0, 16], [4, 8], [6, 8], [8, 16]])
    assert [line(t) for t in range(10)] == [16, 14, 12, 10, 8, 8, 8, 12, 16, 16]
    assert line.phases(12) == [(0, 6, "compression"), (6, 12, "expansion")]
    assert line.compressed_ends(12, 12) == [6] and line.expanded_ends(12, 12) == [12]
    assert line.lowest == 8
    held = of_points([[0, 8], [3, 16], [5, 12], [7, 4]], "hold")
    assert [held(t) for t in range(9)] == [8, 8, 8, 16, 16, 12, 12, 4, 4]
    assert held.phases(9) == [(0, 3, "compression"), (3, 5, "expansion"), (5, 9, "compression")]
    assert held.compressed_ends(9, 9) == [3, 9] and held.expanded_ends(9, 9) == [5]
    again = of_points([[0, 16], [2, 16], [4, 8]], repeat=True, cycle=8)
    assert [again(t) for t in range(12)] == [16, 16, 16, 12, 8, 10, 12, 14, 16, 16, 16, 12]
    assert again.compressed_ends(20) == [4, 12, 20] and again.expanded_ends(20) == [2, 10, 18]
    flat = of_points([[0, 12]])
    assert flat(99) == flat.lowest == 12 and flat.phases(9) == [(0, 9, "constant")]
    # the paper's stair and cosine, as points
    stair = of_points([[0, 4], [320, 16]], "hold", repeat=True)
    paper = LengthSchedule("stair", 16, 4, 640)
    assert [stair(t) for t in range(1300)] == [paper(t) for t in range(1300)]
    assert stair.phases(2000) == paper.phases(2000)
    turns = of_points([[0, 16], [320, 4]], repeat=True)
    assert turns.phases(2000) == LengthSchedule("cosine", 16, 4, 640).phases(2000)


@given(drawn_of_all(shapes=("points",)), st.integers(0, 2000))
def test_points_are_numpys_interpolation(schedule, step):
    options = schedule.options
    times, caps = map(list, zip(*options["points"], strict=True))
    t = step % schedule.cycle if options["repeat"] else step
    if options["repeat"]:
        times, caps = [*times, schedule.cycle], [*caps, caps[0]]
    if options["between"] == "linear":
        want = np.interp(t, times, caps)
    else:
        want = caps[int(np.searchsorted(times, t, side="right")) - 1]
    assert schedule.exact(step) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    "points, more, words",
    [
        ([], {}, "options.points: missing"),
        ([[1, 16]], {}, r"options.points\[0\]: step: got 1; takes 0"),
        ([[0, 16], [0, 8]], {}, r"options.points\[1\]: step: got 0; takes more than 0"),
        ([[0, 16], [5, 3]], {}, "cap: got 3; takes a whole number from min_len = 4 to max_len"),
        ([[0, 16], [5, 17]], {}, "cap: got 17"),
        ([[0, 16], [5, 8.5]], {}, "cap: got 8.5"),
        ([[0, 16], [5]], {}, r"options.points\[1\]: got \[5\]; takes \[step, cap\]"),
        ([[0, 16], [True, 8]], {}, "step: got True; takes a whole number"),
        ("0:16", {}, "options.points: got '0:16'; .* takes a list"),
        ([[0, 16], [8, 8]], {"repeat": True, "cycle": 8}, "step: got 8; takes less than cycle"),
        (
            [[0, 16]],
            {"between": "cubic"},
            "options.between: got .cubic.; takes one of linear",
        ),
    ],
)
def test_points_that_cannot_be(points, more, words):
    with pytest.raises(ValueError, match=words):
        of_points(points, **more)


def test_toggle_leaves_the_cap_alone():
    schedule = LengthSchedule("toggle", **PAPER)
    assert {schedule(t) for t in range(1300)} == {16384} == {schedule.lowest}
    assert not schedule.constant and schedule.phase(0) == "compression"
    assert schedule.compressed_ends(1280) == [320, 960] and schedule.mean(640) == 16384
    with pytest.raises(ValueError, match="got 'toggle', whose phases act through the reward 'togg"):
        schedule.require_stateless("TRL")


def test_a_constant_cap_needs_no_other_lengths(tiny):
    assert tiny("schedule={shape: constant, max_len: 40, cycle: 7}").budgets == [40]
    schedule = LengthSchedule("constant", 4096)
    assert schedule(7) == schedule.lowest == schedule.min_len == 4096
    assert LengthSchedule("constant", 40, 20, 7).cycle_index(7) == 2
    with pytest.raises(ValueError, match="min_len: got 8192; .* max_len = 4096"):
        LengthSchedule("cosine", 4096)


def test_lags_of_half_a_cycle_and_more():
    cosine = LengthSchedule("cosine", 9, 4, 8)
    assert retention.ends(cosine, 12, 4) == {
        4: ("siri-low",), 8: ("siri-high", "siri-low-lagged"), 12: ("siri-low", "siri-high-lagged"),
    }  # fmt: skip
    assert retention.ends(cosine, 16, 9) == {
        4: ("siri-low",), 8: ("siri-high",), 12: ("siri-low",), 13: ("siri-low-lagged",),
        16: ("siri-high",),
    }  # fmt: skip
    up = LengthSchedule("step-up", 9, 4, options={"at": 5})
    assert retention.ends(up, 9, 2, 9) == {
        5: ("siri-low",), 7: ("siri-low-lagged",), 9: ("siri-high",),
    }  # fmt: skip
    assert retention.ends(up, 8, 2, 9) == retention.ends(up, 8, 2)
