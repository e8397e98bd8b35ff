"""Every contender that can run here gives the log-probs; the others say why not."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from bench.device import Cpu
from bench.peers import HEAD, SCALAR, found
from bench.peers.advantages import ADVANTAGES
from bench.peers.base import Missing, Where
from bench.peers.losses import LOSSES
from bench.peers.pytorch import logprobs
from bench.rows.elementwise import AdvantageCase, LossCase
from bench.rows.head import HeadCase

HERE = Where(torch.device("cpu"), triton=False)
# Inductor takes half a minute of a loaded core; `python -m bench` runs it.
COMPILED = {"torch.compile", "cut-cross-entropy, torch.compile", "Liger"}
# Their import changes the process they are in (unsloth-zoo replaces triton.jit).
INTRUSIVE = {"unsloth-zoo"}


def without(makes, names):
    return {name: make for name, make in makes.items() if name not in names}


def test_head_contenders_are_right_or_named():
    hidden, weight = torch.randn(9, 16), torch.randn(50, 16)
    targets = torch.randint(50, (9,))
    want = logprobs(hidden.double(), weight.double(), targets)
    here, missing = found(without(HEAD, COMPILED | INTRUSIVE), HERE)
    assert {"ours", "ours, tail=0", "eager", "Liger scaled CE"} <= set(here)
    for name, contender in here.items():
        got = contender.call(hidden, weight, targets)
        assert torch.allclose(got.double(), want, atol=1e-5), name
        assert contender.settings
    assert all(missing.values()) and {"verl, Triton", "eager, chunks"} <= set(missing)
    scalar, _ = found(without(SCALAR, COMPILED), HERE)
    for name, contender in scalar.items():
        got = contender.call(hidden, weight, targets).sum()
        assert torch.allclose(got.double(), want.sum(), rtol=1e-5), name


def test_missing_ones_carry_the_import_error(monkeypatch):
    def absent(where):
        raise ImportError("No module named 'nothing'")

    def unsuited(where):
        raise Missing("needs a GPU")

    here, missing = found({"a": absent, "b": unsuited}, HERE)
    assert here == {}
    assert missing == {"a": "ImportError: No module named 'nothing'", "b": "needs a GPU"}


@pytest.mark.parametrize("case", [LossCase(600), LossCase(500, ragged=True), AdvantageCase(6, 4)])
def test_losses_and_advantages_are_right_or_named(case, monkeypatch):
    for makes in (LOSSES, ADVANTAGES):
        for name in COMPILED & set(makes):
            monkeypatch.delitem(makes, name)
    work = case.build(HERE, Cpu(), None)
    assert {"ours", "eager"} <= set(work.steps)
    for name in work.steps:
        _, wrong = work.check(name)
        assert wrong is None, f"{name}: {wrong}"
    if os.environ.get("SIRI_PEERS"):
        assert {"TRL", "verl"} <= set(work.steps), work.missing


def test_lengths():
    for case in (LossCase(2**15), LossCase(2**15, ragged=True), LossCase(700, ragged=True)):
        lengths = case.lengths()
        assert int(lengths.sum()) == case.tokens and int(lengths.min()) > 0
    assert LossCase(2**15, ragged=True).lengths().float().std() > 100


@pytest.mark.parametrize(
    "case",
    [
        HeadCase(40, 16, 300),
        HeadCase(40, 16, 300, mode="forward"),
        HeadCase(40, 16, 300, mode="frozen", masked=0.5),
        HeadCase(40, 16, 300, softmax="uniform", masked=0.3),
        HeadCase(40, 16, 300, group="scalar"),
    ],
    ids=lambda case: case.name,
)
def test_head_rows(case, monkeypatch):
    for makes in (HEAD, SCALAR):
        for name in (COMPILED | INTRUSIVE) & set(makes):
            monkeypatch.delitem(makes, name)
    work = case.build(HERE, Cpu(), None)
    parts = {"forward": 1, "frozen": 2, "both": 3}[case.mode]
    for name, step in work.steps.items():
        errors, wrong = work.check(name)
        assert wrong is None, f"{name}: {wrong}"
        results = step()
        assert len(errors) == len(results) == parts
        assert work.check_result(name, results) is None
    counted = round(work.flops / (2 * parts * 16 * 300))
    assert (counted < 40) == bool(case.masked)


def test_a_wrong_contender_is_seen(monkeypatch):
    right = HEAD["eager"](HERE)

    def off(hidden, weight, targets):
        return right.call(hidden, weight, targets) * 1.1

    monkeypatch.setitem(HEAD, "eager, chunks", lambda where: replace(right, call=off))
    for name in (COMPILED | INTRUSIVE) & set(HEAD):
        monkeypatch.delitem(HEAD, name)
    work = HeadCase(40, 16, 300).build(HERE, Cpu(), None)
    assert "from float64" in work.check("eager, chunks")[1]
    wrong = [1.5 * x for x in work.steps["eager"]()]
    assert "at full size logprobs is 5.0e-01" in work.check_result("eager", wrong)
