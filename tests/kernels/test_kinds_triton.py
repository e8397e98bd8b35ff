"""Kinds of input that other files meet with PyTorch, with the Triton kernels."""

from __future__ import annotations

import pytest
import torch

from siri_kernels.linear_logprob import top_entries

from . import test_default_dtype_and_device as defaults
from . import test_degenerate_losses as degenerate
from .interpreter import direct
from .masked_ids import check, check_all_but_one
from .test_huge_rewards import check as check_rewards

pytestmark = direct


@pytest.mark.parametrize(
    "vocabulary, softcap, shift, per_row",
    [(70, 1.0, 0.0, False), (300, 30.0, -300.0, True), (513, 5.0, 3.0, True)],
)
def test_masked_ids_stay_impossible_under_a_softcap(vocabulary, softcap, shift, per_row):
    check(vocabulary, vocabulary, softcap, shift, "triton", per_row=per_row)


def test_masked_ids_with_lists(monkeypatch):
    monkeypatch.setattr(top_entries, "LEAST_VOCABULARY", 1024)
    check(1, 1100, 5.0, 0.0, "triton", tail=1e-2)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_all_but_one_masked(softcap):
    check_all_but_one("triton", softcap)


@pytest.mark.draw(2)
@pytest.mark.parametrize(
    "kind, empty", [("float", True), ("float32", False), ("int64", True), ("on the cpu", False)]
)
def test_a_denominator_of_zero(kind, empty, monkeypatch):
    degenerate.test_a_denominator_of_zero("triton", kind, empty, monkeypatch)


@pytest.mark.parametrize("objective", ["cispo", "clip"])
def test_token_weights_stay_per_token_under_sequence_ratios(objective):
    degenerate.test_token_weights_stay_per_token_under_sequence_ratios("triton", objective)


@pytest.mark.draw(4)
@pytest.mark.parametrize("exponent", [0, 19, 30, 38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_rewards(exponent, dtype):
    check_rewards(exponent, dtype, "triton", seed=exponent, few=True)


def test_offsets_of_rewards():
    for offset in (1.0, 1e3, -1e4):
        check_rewards(-3, torch.float64, "triton", seed=7, offset=offset, few=True)


def test_defaults_change_nothing(monkeypatch):
    monkeypatch.setattr(defaults, "AGGREGATIONS", ("seq-mean-token-mean",))
    monkeypatch.setattr(defaults, "OBJECTIVES", ("sapo",))
    defaults.test_defaults_change_nothing(defaults.loss_calls, "triton")
