"""Findings beside alarms: none is good while an alarm of its topic goes on, or was raised."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import get_args

import pytest

from siri_train.monitor.alarms import ALARMS
from siri_train.report.verdict.raised import Kind
from siri_train.report.verdict.topics import TOPICS, agreeing
from siri_train.report.verdict.types import Finding, Status
from tests.train.report_page import jsonl
from tests.train.test_verdict import KEYS, whole
from tests.train.verdict_runs import found

SEEDS = [time.time_ns() % 10**9 + place for place in range(6)]

WITHOUT = ("non-finite-gradient", "non-finite-loss", "grad-norm-spike", "grad-norm-creep",
           "grad-norm-vanishing", "clip-saturation", "throughput-decay", "many-recomputed-tokens",
           "wait-words-gone", "reference-drift")  # fmt: skip
"""Alarms that no other finding is about: the line on alarms alone has them."""


def test_every_alarm_has_its_findings_or_none() -> None:
    """A new alarm takes a line here."""
    named = {name for names in TOPICS.values() for name in names}
    assert not named & set(WITHOUT)
    assert not {*named, *WITHOUT} - set(ALARMS)
    missing = [name for name in ALARMS if name not in named | set(WITHOUT)]
    assert not missing, f"siri_train/report/verdict/topics.py lacks {missing}"
    assert set(TOPICS) == set(KEYS) - {"state", "alarms"}


@pytest.mark.parametrize("key", list(TOPICS))
@pytest.mark.parametrize("status", get_args(Status))
@pytest.mark.parametrize("going", [True, False])
def test_each_topic_by_each_alarm(key: str, status: Status, going: bool) -> None:
    one = Finding(key, status, "Title", "Text.")
    for name in ALARMS:
        after = agreeing(one, [Kind(name, [3, 9], going)])
        if name not in TOPICS[key]:
            assert after == one, name
            continue
        assert after.status == ("bad" if going else "unclear" if status == "good" else status)
        assert f"The alarm {name} was raised 2 times, first at step 3" in after.text
        assert (name in after.title) == (going or status == "good"), name
        assert ("goes on" in after.text) == going and ("it is over" in after.text) != going
        assert after.figures["alarms"] == [name]


@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_alarms_beside_all_findings(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    folder = whole(tmp_path, seed)
    before = found(folder)[1]
    rows, state = [], {}
    for name in rng.sample(list(ALARMS), rng.randint(1, 12)):
        for since in sorted(rng.sample(range(60), rng.randint(1, 3))):
            rows.append({"step": since, "alarm": name, "state": "raised", "since": since})
            state[name] = rng.random() < 0.5
            if not state[name]:
                rows.append({"step": since + 1, "alarm": name, "state": "cleared", "since": since})
                continue
            break
    jsonl(folder / "alarms.jsonl", sorted(rows, key=lambda row: row["step"]))
    after = found(folder)[1]
    for key, one in after.items():
        mine = [name for name in state if name in TOPICS.get(key, ())]
        if any(state[name] for name in mine):
            assert one.status == "bad", (seed, key, one.title)
        elif mine:
            assert one.status != "good", (seed, key, one.title)
        elif key != "alarms":
            assert one == before[key], (seed, key)
        assert all(name in one.text for name in mine), (seed, key, one.text)
    assert after["alarms"].status == ("bad" if any(state.values()) else "unclear"), seed
    going = [name for name, now in state.items() if now]
    assert sorted(after["alarms"].figures["ongoing"]) == sorted(going), seed
