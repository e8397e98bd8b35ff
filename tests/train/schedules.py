"""Drawn schedules: the paper's shapes, and any shape with options that it takes."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from siri_train.schedule import SHAPES, STAIR_ORDERS, LengthSchedule

PAPER = {"max_len": 16384, "min_len": 8192, "cycle": 640}


def drawn(shapes):
    return st.builds(
        lambda shape, order, lens, half: LengthSchedule(
            shape, max(lens), min(lens), 2 * half, order
        ),
        st.sampled_from(shapes),
        st.sampled_from(STAIR_ORDERS),
        st.tuples(st.integers(1, 40000), st.integers(1, 40000)),
        st.integers(1, 400),
    )


@st.composite
def drawn_of_all(draw, shapes=tuple(SHAPES)):
    """Any shape, with options that it takes and with the state of a run where it has one."""
    shape = draw(st.sampled_from(shapes))
    low, high = sorted(draw(st.tuples(st.integers(1, 40000), st.integers(1, 40000))))
    cycle, steps = 2 * draw(st.integers(1, 400)), st.integers(1, 500)
    options = {}
    if shape == "asymmetric":
        cycle = draw(st.integers(3, 800))
        options = {"compression": draw(st.integers(2, cycle - 1)) / cycle}
    elif shape in ("step-up", "step-down"):
        options = draw(st.sampled_from([{}, {"at": draw(steps)}]))
    elif shape == "points":
        repeat, cycle = draw(st.booleans()), draw(st.integers(1, 800))
        later = st.integers(1, cycle - 1 if repeat else 600)
        times = draw(st.lists(later, max_size=8, unique=True)) if cycle > 1 or not repeat else []
        lengths = st.integers(low, high)
        options = {
            "points": [[t, draw(lengths)] for t in [0, *sorted(times)]],
            "between": draw(st.sampled_from(["linear", "hold"])),
            "repeat": repeat,
        }
    elif shape == "plateau":
        options = {
            name: draw(st.none() | st.integers(1, 60)) for name in ("fall", "window", "patience")
        }
        fall = options["fall"] or max(1, cycle // 4)
        options["least"] = draw(st.integers(1, 90))
        options["most"] = draw(st.integers(max(fall + 2, options["least"]), 900))
    schedule = LengthSchedule(shape, high, low, cycle, draw(st.sampled_from(STAIR_ORDERS)), options)
    if schedule.kind.observe is not None:
        chance = random.Random(draw(st.integers(0, 2**32)))
        for step in range(draw(st.integers(0, 400))):
            schedule.observe(row_of(step, chance.uniform(low, high), chance.random()))
    return schedule


def row_of(step, length, accuracy):
    return {"step": step, "response_len_mean": length, "accuracy": accuracy}


schedules = drawn(("cosine", "stair", "stair-cosine", "constant"))  # the paper's, and the control
