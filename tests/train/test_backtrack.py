from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_train.monitor.backtrack import GROUPS, BacktrackCounter


@pytest.mark.parametrize(
    "text, backtrack, alternatives, deduction",
    [
        ("", 0, 0, 0),
        ("Wait, that is wrong. WAIT! wait", 3, 0, 0),
        ("waiting await waiter wait_for", 0, 0, 0),
        ("Hold on. hold\n  on, household onset", 2, 0, 0),
        ("Alternatively, so compute it. Also resolve, computed.", 0, 1, 2),
        ("<wait>(wait)wait-wait.wait", 5, 0, 0),
        ("等wait等 ", 0, 0, 0),  # a word character of any script is part of the word
    ],
)
def test_counts(text, backtrack, alternatives, deduction):
    counts = BacktrackCounter().counts(text)
    assert counts == {
        "backtrack": backtrack,
        "alternatives": alternatives,
        "deduction": deduction,
    }


def test_per_1k_is_pooled_over_tokens():
    rates = BacktrackCounter().per_1k(["wait wait", "hold on", "none"], [10, 10, 480])
    assert rates == {"backtrack_per_1k": 6.0, "alternatives_per_1k": 0.0, "deduction_per_1k": 0.0}


def test_no_tokens_is_nan():
    assert all(math.isnan(rate) for rate in BacktrackCounter().per_1k([], []).values())
    assert math.isnan(BacktrackCounter().per_1k([""], [0])["backtrack_per_1k"])


def test_own_groups():
    counter = BacktrackCounter({"check": ["check", "check again"], "c++": ["c++"]})
    assert counter.counts("check again, check; C++ code") == {"check": 2, "c++": 1}


def test_default_groups_are_the_papers():
    assert GROUPS["backtrack"] == ("wait", "hold on")


@given(st.lists(st.sampled_from(["Wait", "hold on", "x", "ok."]), max_size=30))
def test_counting_agrees_with_a_plain_loop(words):
    text = "; ".join(words)
    assert BacktrackCounter().counts(text)["backtrack"] == sum(
        w in ("Wait", "hold on") for w in words
    )


def test_refusals():
    counter = BacktrackCounter()
    with pytest.raises(ValueError, match="token_counts: got 1 counts for 2 texts"):
        counter.per_1k(["a", "b"], [1])
    with pytest.raises(ValueError, match="token_counts: got -1"):
        counter.per_1k(["a"], [-1])
    with pytest.raises(ValueError, match=r"groups\['x'\]"):
        BacktrackCounter({"x": [" "]})
    with pytest.raises(ValueError, match=r"groups\['x'\]"):
        BacktrackCounter({"x": "wait"})
