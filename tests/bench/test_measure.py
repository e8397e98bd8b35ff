"""A row: correctness first, everyone named, nobody timed who is wrong."""

from __future__ import annotations

import pytest
import torch

from bench.device import Cpu, rates
from bench.measure import Work, distance, in_turns, measure


def made(**changes):
    log = []
    steps = {
        "ours": lambda: log.append("ours"),
        "peer": lambda: log.append("peer"),
        "wrong": lambda: log.append("wrong"),
        "broken": lambda: 1 / 0,
    }
    errors = {"logprobs": distance(torch.ones(3), torch.ones(3))}

    def check(name):
        return errors, "logprobs is 3e-1 from float64" if name == "wrong" else None

    work = Work(
        steps=steps, check=check, yardsticks={"product": lambda: log.append("product")},
        flops=4e9, bytes=1e6, returned=0, missing={"absent": "ImportError: no"}, **changes,
    )  # fmt: skip
    return work, log


LIMITS = {"product_flop_per_s": 1e9, "copy_bytes_per_s": 1e9}


def test_wrong_contenders_have_no_time_and_broken_ones_a_reason():
    work, log = made(settings={"ours": "defaults"})
    row = measure(work, Cpu(), LIMITS, seconds=0.0)
    assert "wrong" not in log
    assert "3e-1" in row["contenders"]["wrong"]["wrong"]
    assert "seconds_cold" not in row["contenders"]["wrong"]
    assert row["missing"] == {
        "absent": "ImportError: no", "broken": "ZeroDivisionError: division by zero",
    }  # fmt: skip
    timed = row["contenders"]["peer"]["seconds_process"]
    assert len(timed["all"]) == 3 and timed["p20"] <= timed["median"] <= timed["p80"]
    assert row["limit_seconds"] == 4.0 and row["yardsticks"]["product"]["seconds_cold"]


def test_our_own_failure_is_not_hidden():
    work, _ = made()
    work.steps["ours, tail=0"] = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        measure(work, Cpu(), LIMITS, seconds=0.0)


def test_contenders_take_turns_each_round_begins_with_another_and_has_its_own_order():
    log = []
    steps = {name: lambda n=name: log.append(n) for name in "abc"}
    times = in_turns(steps, Cpu(), seconds=0.0, least=12)
    assert all(len(t["cold"]) == len(t["process"]) == 12 for t in times.values())
    rounds = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert [turn[0] for turn in rounds] == list("abc" * 4)
    assert all(sorted(turn) == list("abc") for turn in rounds)
    before = {"".join(log)[i - 1] for i in range(1, len(log)) if log[i] == "a"}
    assert before >= {"b", "c"}, "not after the same one each time"


def test_errors_are_relative_and_signed():
    exact = torch.tensor([2.0, -2.0], dtype=torch.float64)
    got = distance(torch.tensor([1.8, -1.8]), exact)
    assert got["bias"] == pytest.approx(-0.1) and got["max"] == pytest.approx(0.1)
    assert got["relative"] == got["rms"] == pytest.approx(0.1)
    assert not distance(torch.full((2,), torch.nan), exact)["relative"] <= 1e9


def test_rates_are_those_of_this_machine():
    device = Cpu()
    device.sizes = {"copy": 2**24, "product": 512}
    found = rates(device)
    assert 1e8 < found["copy_bytes_per_s"] < 1e13 and 1e8 < found["product_flop_per_s"] < 1e13


def test_peak_memory_counts_what_operators_allocate():
    x = torch.randn(2**20)
    peak = Cpu().peak(lambda: (x + 1) * 2)
    assert 2 * x.nbytes <= peak < 2.1 * x.nbytes
