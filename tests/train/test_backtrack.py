from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_train.monitor.backtrack import BACKTRACK, GROUPS, WordCounter

KINDS = {
    "backtrack": BACKTRACK,
    "alternatives": GROUPS["alternatively"],
    "deduction": (*GROUPS["so"], *GROUPS["compute"]),
}


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
    counts = WordCounter(KINDS).counts(text)
    assert counts == {
        "backtrack": backtrack,
        "alternatives": alternatives,
        "deduction": deduction,
    }


def test_own_groups():
    counter = WordCounter({"check": ["check", "check again"], "c++": ["c++"]})
    assert counter.counts("check again, check; C++ code") == {"check": 2, "c++": 1}


def test_default_groups_are_the_papers():
    words = [word for group in GROUPS.values() for word in group]
    assert words == ["wait", "hold on", "alternatively", "so", "compute"]
    assert set(BACKTRACK) < set(words)


@given(st.lists(st.sampled_from(["Wait", "hold on", "x", "ok."]), max_size=30))
def test_counting_agrees_with_a_plain_loop(words):
    text = "; ".join(words)
    assert WordCounter(KINDS).counts(text)["backtrack"] == sum(
        w in ("Wait", "hold on") for w in words
    )


def test_refusals():
    with pytest.raises(ValueError, match=r"groups\['x'\]"):
        WordCounter({"x": [" "]})
    with pytest.raises(ValueError, match=r"groups\['x'\]"):
        WordCounter({"x": "wait"})
