"""Which responses the page has, how far a run was at each step, and lengths as a map."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.report import write_report
from siri_train.report.axes import spent
from siri_train.report.data import read_run_folder
from siri_train.report.heat import LEVELS, Heat
from siri_train.report.lengths import COLUMNS, length_map
from siri_train.report.records import Run
from siri_train.report.responses import left_out, shortened, spans
from siri_train.report.samples import (
    LONGEST_SAMPLE,
    SAMPLE_BYTES,
    SAMPLE_ROWS,
    contrast,
    evenly,
    read_samples,
    verdict,
)
from tests.train.report_page import HOSTILE, check, jsonl, make_demo, rollout
from tests.train.report_runs import make


@given(st.integers(1, 300), st.integers(2, 60))
def test_evenly_keeps_both_ends(count, most):
    found = evenly(list(range(count)), most)
    assert found[0] == 0 and found[-1] == count - 1 and len(found) <= max(most, 1)
    assert found == sorted(set(found)) and len(found) == min(count, most)
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_responses_keep_within_their_room(tmp_path, seed):
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(1000), rng.randint(30, 120)))
    for step in steps:
        rows = [
            {**rollout("x" * rng.randint(1, 9000)), "truncated": rng.random() < 0.3,
             "reward": rng.choice([0.0, 1.0, None])}
            for _ in range(rng.randint(1, 20))
        ]  # fmt: skip
        jsonl(tmp_path / f"step_{step:06d}.jsonl", rows)
    room = rng.choice([60_000, 300_000, 1_000_000])
    notes: list[str] = []
    shown, recorded, parts = read_samples(tmp_path, "", notes, room)
    assert recorded == len(steps) and notes == []
    kept = [step for step, _ in shown]
    assert kept[0] == steps[0] and kept[-1] == steps[-1] and kept == sorted(kept)
    spent_on = sum(min(len(row["response"]), LONGEST_SAMPLE) for _, rows in shown for row in rows)
    # a step always shows its contrast, however little room it has
    assert spent_on <= 1.3 * room + len(shown) * 4 * LONGEST_SAMPLE
    for step, rows in shown:
        written = [json.loads(line) for line in (tmp_path / f"step_{step:06d}.jsonl").open()]
        assert rows and all(row in written for row in rows)
        assert all(row in rows for row in contrast(written))
        parts -= len(rows) < len(written)
    assert parts == 0  # each step with a part was counted


def test_all_steps_are_there_where_they_fit(tmp_path):
    folder = make(tmp_path / "run", 1)
    shown, recorded, parts = read_samples(folder / "rollouts", "", [], SAMPLE_BYTES)
    assert [step for step, _ in shown] == [0, 20, 39] and (recorded, parts) == (3, 0)
    assert all(len(rows) == 12 for _, rows in shown)
    for step in range(200, 400):
        jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", [rollout("y" * 30_000)] * 16)
    page = write_report(folder)
    assert page.stat().st_size < 2 * SAMPLE_BYTES
    text = " ".join(check(page).text.split())
    assert "of 203 recorded steps, evenly apart" in text


@pytest.mark.parametrize("seed", [time.time_ns() + k for k in range(4)])
def test_what_is_left_out_is_said_and_nothing_else(tmp_path, seed):
    """Steps that are left out, and steps of which a part is shown, are two different things."""
    rng = random.Random(seed)
    folder = make(tmp_path / "run", 1)
    assert left_out(read_run_folder(folder)) == ""
    cut = rng.sample([0, 20, 39], rng.randint(1, 3))
    for step in cut:
        rows = [rollout("few")] * rng.randint(SAMPLE_ROWS + 1, SAMPLE_ROWS + 90)
        jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", rows)
    text = left_out(read_run_folder(folder))
    assert "a part of the responses" in text and "recorded steps" not in text, (seed, text)
    for step in range(200, 400):  # more steps than there is room for, each short enough
        jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", [rollout("y" * 5_000)] * 4)
    for step in cut:
        jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", [rollout("few")])
    text = left_out(read_run_folder(folder))
    assert "recorded steps, evenly apart" in text, (seed, text)


@pytest.mark.parametrize("row, grade", [
    ({"right": True, "reward": 0.0}, "right"), ({"right": False, "reward": 1.0}, "wrong"),
    ({"right": None, "reward": 1.0}, "unjudged"), ({"reward": 0.5}, "right"),
    ({"reward": 0.0}, "wrong"), ({"reward": None}, "unjudged"), ({}, "wrong"),
    ({"right": "yes", "reward": 1.0}, "unjudged"), ({"reward": "x"}, "wrong"),
])  # fmt: skip
def test_grades_of_old_and_new_rows(row, grade):
    assert verdict(row) == grade


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.text(max_size=30), st.lists(
    st.tuples(st.integers(-3, 35), st.integers(-3, 35), st.sampled_from("ab")).map(list) | ANY,
    max_size=8,
) | ANY)  # fmt: skip
def test_marks_fit_the_text_and_never_overlap(text, marks):
    found = spans({"response": text, "marks": marks})
    at = 0
    for a, b, group in found:
        assert at <= a < b <= len(text) and isinstance(group, str)
        assert [a, b, group] in marks
        at = b


@given(st.integers(0, 3 * LONGEST_SAMPLE), st.lists(st.integers(0, 3 * LONGEST_SAMPLE), max_size=9))
def test_marks_stay_on_their_words_where_a_middle_is_left_out(length, places):
    text = "".join(chr(97 + i % 26) for i in range(length))
    marks = [(a, a + 2, "g") for a in sorted(set(places)) if a + 2 <= length]
    marks = [m for i, m in enumerate(marks) if not i or m[0] >= marks[i - 1][1]]
    head, tail, hidden, kept = shortened(text, marks)
    assert len(head) + len(tail) + hidden == length and text.startswith(head)
    assert text.endswith(tail) and len(head + tail) <= LONGEST_SAMPLE
    short = head + tail
    for a, b, _ in kept:
        assert short[a:b] in {text[x:y] for x, y, _ in marks}
        assert b <= len(head) or a >= len(head)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e5)), min_size=1, max_size=30))
def test_what_was_spent_before_a_step_is_the_sum_before_it(drawn):
    rows = [
        {"step": 3 + t, "tokens": a, "tokens_discarded": b, "time_rollout": b, "time_train": a}
        for t, (a, b) in enumerate(drawn)
    ]
    found = spent(Run("r", Path("r"), metrics=rows))
    assert found["steps"] == list(range(3, 4 + len(rows)))
    if sum(a + b for a, b in drawn) <= 0:
        assert found["tokens"] is None
        return
    for key in ("tokens", "seconds"):
        total = [sum(a + b for a, b in drawn[:t]) for t in range(len(drawn) + 1)]
        assert found[key] == pytest.approx(total, rel=1e-8)


@given(st.lists(st.fixed_dictionaries({"tokens": ANY, "tokens_discarded": ANY}), max_size=9))
def test_odd_costs_leave_an_axis_that_rises_or_none(rows):
    found = spent(Run("r", Path("r"), metrics=[{"step": i, **row} for i, row in enumerate(rows)]))
    assert found["seconds"] is None
    if found["tokens"] is not None:
        assert len(found["tokens"]) == len(found["steps"]) == len(rows) + 1
        assert found["tokens"] == sorted(found["tokens"])


@pytest.mark.parametrize("steps", [1, 7, COLUMNS, COLUMNS + 1, 2000])
def test_a_map_has_every_response_once(steps):
    rng = random.Random(steps)
    rows = [
        {"step": t, "response_len_hist": {"width": 4, "counts": [rng.randint(0, 5) for _ in
                                                                 range(12)]}}
        for t in range(steps)
    ]  # fmt: skip
    chart = length_map(Run("r", Path("r"), metrics=rows), 0, "t", "siri")
    if chart is None:
        assert not any(sum(row["response_len_hist"]["counts"]) for row in rows)
        return
    heat = chart.heat
    assert heat is not None and len(heat.shares) == min(steps, COLUMNS)
    assert heat.edges[0] == 0 and heat.edges[-1] == steps
    columns: list[list[int]] = [[0] * 12 for _ in heat.shares]
    for row in rows:
        column = columns[row["step"] * len(columns) // steps]
        for i, n in enumerate(row["response_len_hist"]["counts"]):
            column[i] += n
    for counts, shares in zip(columns, heat.shares, strict=True):
        whole = sum(counts) or 1
        assert list(shares) == pytest.approx([n / whole for n in counts])


@given(st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=1, max_size=6))
def test_shades_cover_what_holds_something_and_nothing_else(shares):
    heat = Heat(list(range(len(shares) + 1)), 2.0, shares, "siri")
    covered: set[tuple[int, int]] = set()
    for level, boxes in heat.cells():
        assert 1 <= level <= LEVELS
        for left, right, low, high in boxes:
            assert right == left + 1
            cells = {(int(left), row) for row in range(int(low / 2), int(high / 2))}
            assert cells and not cells & covered
            covered |= cells
    held = {(i, row) for i, column in enumerate(shares) for row, s in enumerate(column) if s > 1e-9}
    assert held <= covered | {c for c in held if shares[c[0]][c[1]] < 1e-6}


RESPONSE_KEYS = ["cap", "question", "right", "response", "prompt", "tokens", "truncated", "reward",
                 "answer", "gold"]  # fmt: skip
METRIC_KEYS = ["tokens", "time_train", "cap", "phase", "step"]


@settings(max_examples=60, deadline=None)
@given(
    hist=ANY,
    marks=ANY,
    more=st.dictionaries(st.sampled_from(RESPONSE_KEYS), ANY | st.just(HOSTILE), max_size=6),
    metric=st.dictionaries(st.sampled_from(METRIC_KEYS), ANY),
)
def test_any_values_make_a_page(tmp_path_factory, hist, marks, more, metric):
    folder = tmp_path_factory.mktemp("run")
    histograms = [hist, {"width": 2, "counts": hist}, {"width": hist, "counts": [1]}]
    rows = [{"step": t, "response_len_hist": one} for t, one in enumerate(histograms)]
    jsonl(folder / "metrics.jsonl", [{**rows[0], **metric}, *rows[1:]])
    jsonl(folder / "rollouts" / "step_000001.jsonl", [{**rollout("wait"), "marks": marks, **more}])
    page = check(write_report(folder))
    assert not {"b", "u", "i"} & {tag for tag, attrs in page.tags if tag != "b"}


def test_hostile_words_in_every_field_stay_words(tmp_path):
    folder = make_demo(tmp_path / "demo")
    row = {key: HOSTILE for key in ("prompt", "response", "answer", "gold", "question")}
    bad = [[0, 5, HOSTILE], [5, 9, "<b>"], [-1, 3, "x"], [3, 1, "y"], [0, 10**9, "z"], "q", None]
    jsonl(folder / "siri" / "rollouts" / "step_000000.jsonl",
          [{**row, "marks": bad, "cap": "<i>", "right": "<i>", "tokens": 1e308 * 10}])  # fmt: skip
    page = check(write_report(folder))
    found = page.blocks[0]
    assert found["prompts"][0] == HOSTILE.replace("\x00", "\ufffd").replace(
        "\ud800", "\ufffd").replace("\u202e", "\ufffd")  # fmt: skip
    assert all(len(name) <= 40 for name in found["groups"])
    assert found["rows"][0]["grade"] == "unjudged" and "tokens" not in found["rows"][0]
