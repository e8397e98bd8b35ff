"""The drawings of a report: ticks, thinning, labels, numbers, and the schedule's plots."""

from __future__ import annotations

import random
import re
import time
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from siri_train.report import plot_svg, plot_text
from siri_train.report.data import interval, number
from siri_train.report.markup import clean, coordinate
from siri_train.report.pareto import Spot, close_up, plane
from siri_train.report.scale import rounded, running_mean, show, text_width, thin, ticks
from siri_train.report.svg import Chart, Line, extent, render, spread
from siri_train.schedule import SHAPES, LengthSchedule


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e9), st.integers(3, 9))
def test_ticks_are_round_and_inside(low, span, most):
    high = low + span
    marks = ticks(low, high, most)
    assert len(marks) <= most
    assert all(low - 1e-6 * span <= mark <= high + 1e-6 * span for mark in marks)
    below, above = rounded(low, high, most)
    assert below <= low + 1e-6 * span and above >= high - 1e-6 * span and below < above


@given(st.floats(0, 1e-290), st.floats(0, 1e-290), st.integers(3, 9))
@example(0.0, 5e-324, 5)  # the smallest number there is: an axis has no powers of ten for it
def test_axes_of_values_next_to_zero_have_a_span(one, two, most):
    low, high = rounded(min(one, two), max(one, two), most)
    assert low <= min(one, two) and high >= max(one, two)
    assert 2 <= len(ticks(low, high, most + 1)) <= most + 1


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=300), st.integers(10, 50))
def test_thinning_keeps_extremes_and_order(values, most):
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thin(points, most)
    assert set(kept) <= set(points) and kept == sorted(kept, key=lambda point: point[0])
    there = [y for y in values if y is not None]
    if there:
        left = [y for _, y in kept if y is not None]
        assert (min(left), max(left)) == (min(there), max(there))
    assert len(running_mean(points, 5)) == len(points)


@given(st.lists(st.floats(0, 200), max_size=8))
def test_spread_keeps_labels_apart(wanted):
    places = spread(sorted(wanted), 14, 0, 200)
    assert all(b - a >= 14 - 1e-6 for a, b in zip(places, places[1:], strict=False))
    assert all(place <= 200 for place in places)


@pytest.mark.parametrize(
    "value, unit, step, text",
    [
        (0.641, "percent", None, "64.1 %"), (0.5, "percent", 0.1, "50 %"),
        (0.005, "percent", 0.005, "0.5 %"), (16384, "tokens", None, "16,384"),
        (12.34, "number", None, "12.3"), (0.0001, "number", 5e-5, "0.00010"),
        (2_500_000, "number", None, "2.5 M"), (20.0, "number", 5.0, "20"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(value, unit, step, text):
    assert show(value, unit, step) == text


def test_single_values_and_gaps_draw():
    chart = Chart("one", [Line("a", [(3.0, 0.5)], "siri"), Line("b", [(3.0, None)], "low")])
    ElementTree.fromstring(render(chart, 300, 200, "x"))
    empty = Chart("none", [Line("a", [(0.0, None)], "siri")])
    assert extent(empty) is None
    with pytest.raises(ValueError, match="no finite value"):
        render(empty, 300, 200, "x")


def test_the_plane_looks_at_the_named_checkpoints_and_not_at_the_start():
    def spot(tokens, accuracy, label=""):
        bounds = (accuracy - 0.01, accuracy + 0.01)
        return Spot(tokens, accuracy, bounds, "siri", f"{label} {tokens}", label)

    start, low, high = spot(40, 0.4, "start"), spot(18, 0.96, "siri-low"), spot(21, 0.98, "high")
    path = [start, spot(30, 0.9), spot(19, 0.97), low, high]
    assert close_up([start, low, high]) == [low, high]
    assert close_up([low, high]) == close_up([start, low]) == close_up([]) == []
    picture = str(plane([("siri", path)], [start, low, high], 720, 440, "x"))
    assert picture.count("<circle") == 3 + 2  # the start and the point at 30 lie outside
    assert ">start<" not in picture and ">siri-low<" in picture
    low_x, high_x, low_y, _ = map(float, re.search('data-limits="([^"]*)"', picture)[1].split())
    assert low_x > 15 and high_x < 25 and low_y > 0.9
    whole = str(plane([("siri", path)], [start, low], 720, 440, "x"))
    assert whole.count("<circle") == 5 + 2 and ">start<" in whole


def test_small_readers():
    assert number(True) is None and number("3") is None and number(10**400) is None
    assert number(3) == 3.0
    assert interval([0.2, 0.1]) is None and interval([0.1, 0.2]) == (0.1, 0.2)
    assert clean("<\x01>") == "<\ufffd>" and clean(0.25) == "0.2" and clean(3) == "3"
    with pytest.raises(ValueError, match="got nan"):
        coordinate(float("nan"))


def paper_sized(shape):
    """The shape between the paper's caps; a list of points that falls and rises once."""
    listed = {"points": [[0, 16384], [320, 8192], [640, 16384]]}
    return LengthSchedule(shape, 16384, 8192, 640, options=listed if shape == "points" else {})


@pytest.mark.parametrize("shape", SHAPES)
def test_schedule_svg(shape):
    schedule = paper_sized(shape)
    drawing = plot_svg(schedule, 1920)
    root = ElementTree.fromstring(drawing)  # well-formed XML, as a file of its own needs
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert root.find(".//svg:title", names) is not None
    assert "nan" not in drawing and "prefers-color-scheme" in drawing
    texts = [text.text for text in root.iterfind(".//svg:text", names)]
    assert "16,384" in texts
    if shape != "constant":
        assert texts.count("siri-low") == len(schedule.compressed_ends(1920, 1920)) >= 1
        assert texts.count("siri-high") == len(schedule.expanded_ends(1920, 1920)) >= 1
        assert "compression" in texts
    if shape not in ("constant", "toggle"):  # whose cap does not move
        assert {"8,192", "12,288"} <= set(texts)


def test_schedule_svg_marks_the_ends():
    drawing = plot_svg(LengthSchedule("cosine", 32, 16, 60), 180)
    place = r'" transform="translate\(([\d.]+) ([\d.]+)\)"'
    low = re.findall(f'class="dot low{place}', drawing)
    high = re.findall(f'class="dot high{place}', drawing)
    assert len(low) == len(high) == 3
    assert min(float(y) for _, y in low) > max(float(y) for _, y in high)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps, width, height", [(1920, 76, 14), (1, 24, 5), (7, 40, 8)])
def test_schedule_text_fits(shape, steps, width, height):
    text = plot_text(paper_sized(shape), steps, width, height)
    lines = text.split("\n")
    assert height <= len(lines) <= height + 3  # the marks' names go on where there is no room
    assert all(len(line) <= width for line in lines)
    assert "16,384" in text and "\x1b" not in text


def test_schedule_text_of_the_paper():
    text = plot_text(LengthSchedule("cosine", 16384, 8192, 640), 1920)
    lines = text.split("\n")
    assert lines[0].startswith("16,384 ┤") and lines[0].count("▲") == 3
    assert lines[11].startswith(" 8,192 ┤") and lines[11].count("▼") == 3
    assert lines[-2].split() == ["0", "320", "640", "960", "1,280", "1,600", "1,920"]
    assert "siri-low after 320 960 1,600" in lines[-1]


def test_schedule_plots_refuse_nothing_to_plot():
    schedule = LengthSchedule("cosine", 32, 16, 60)
    with pytest.raises(ValueError, match="steps: got 0"):
        plot_text(schedule, 0)
    with pytest.raises(ValueError, match="steps: got 0"):
        plot_svg(schedule, 0)
    with pytest.raises(ValueError, match="got 10 x 14"):
        plot_text(schedule, 10, width=10)


@pytest.mark.parametrize("seed", [time.time_ns() + k for k in range(20)])
@pytest.mark.parametrize("width, height", [(720, 440), (360, 360)])
def test_names_on_the_plane_lie_on_no_other_and_in_the_picture(seed, width, height):
    rng = random.Random(seed)
    named = [
        Spot(rng.gauss(20, 3), min(max(rng.gauss(0.9, 0.05), 0), 1), None, "siri", "tip",
             f"{rng.choice('abc') * rng.randint(1, 16)} siri-{rng.choice(['low', 'high'])}")
        for _ in range(rng.randint(2, 24))
    ]  # fmt: skip
    picture = str(plane([], named, width, height, "x"))
    found = re.findall(
        r'<text class="label big[^>]*translate\(([-\d.]+) ([-\d.]+)\)"\s+x="([-\d.]+)"'
        r' y="([-\d.]+)">([^<]*)<', picture,
    )  # fmt: skip
    boxes = []
    for x, y, dx, dy, text in found:
        left, base = float(x) + float(dx), float(y) + float(dy)
        boxes.append((left, base - 10, left + text_width(text, 14, bold=True), base))
    assert boxes and len(boxes) <= len(named), seed
    assert all(box[0] >= 0 and box[2] <= width for box in boxes), seed
    for place, one in enumerate(boxes):
        for two in boxes[:place]:
            wide = min(one[2], two[2]) - max(one[0], two[0])
            high = min(one[3], two[3]) - max(one[1], two[1])
            assert wide <= 0 or high <= 0 or wide * high < 0.1 * 10 * (one[2] - one[0]), seed
