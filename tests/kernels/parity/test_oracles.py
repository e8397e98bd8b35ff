"""``policy_loss`` against the peers' formulas as restated in ``oracles``: runs everywhere."""

from __future__ import annotations

import pytest
import torch

from siri_kernels.policy_loss import RolloutCorrection

from . import oracles
from .peers import Compare, gradients, ours, padded

ITEMS, CAP = 77.0, 40
TRL = {
    "grpo": {"aggregation": "seq-mean-token-mean", "denominator": 6},
    "bnpo": {"aggregation": "token-mean"},
    "dapo": {"aggregation": "token-mean", "denominator": ITEMS},
    "dr_grpo": {"aggregation": "token-sum-norm", "denominator": 6 * CAP},
    "luspo": {"aggregation": "seq-mean-token-sum", "denominator": 6},
    "cispo": {"objective": "cispo", "cispo_bounds": "trl", "denominator": ITEMS},
    "sapo": {"objective": "sapo", "aggregation": "seq-mean-token-mean", "denominator": 6},
}
VERL = {
    "vanilla": {"dual_clip": 3.0},
    "gspo": {"ratio": "sequence"},
    "cispo": {"objective": "cispo"},
    "sapo": {"objective": "sapo"},
}


@pytest.fixture(scope="module")
def compare():
    compare = Compare("oracles")
    yield compare
    print(f"\n{compare}")


def check(compare, batch, want, tolerance=1e-9, **options):
    got = ours(batch, **options)
    compare(got[:3], (want, *gradients(want, batch)), tolerance)


@pytest.mark.parametrize("loss_type", TRL)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("empty_row", [False, True])
def test_trl(compare, loss_type, level, empty_row):
    batch = padded(spread=0.9, empty_row=empty_row)
    high = 1.5 if loss_type == "cispo" else 0.28
    options = {"ratio": level, "clip_high": high, **TRL[loss_type]}
    check(compare, batch, oracles.trl(batch, loss_type, level=level, high=high), **options)
    if loss_type not in ("cispo", "sapo"):
        want = oracles.trl(batch, loss_type, level=level, delta=1.5)
        check(compare, batch, want, delta=1.5, **options)
    want = oracles.trl(batch, loss_type, level=level, high=high, threshold=0.05)
    check(compare, batch, want, off_policy_threshold=0.05, **options)
    want = oracles.trl(batch, loss_type, level=level, high=high, beta=0.3)
    check(compare, batch, want, ref=True, kl_coef=0.3, **options)
    if level == "token":
        want = oracles.trl(batch, loss_type, high=high, beta=0.3, corrected=True)
        check(compare, batch, want, ref=True, kl_coef=0.3, kl_unbiased=True, **options)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rollout_corrections(compare, mode, level):
    batch = padded()
    batch.rollout[0, 0] = float("nan")
    weights = oracles.rollout_weights(batch, mode, level, 0.8, 1.3)
    correction = RolloutCorrection(mode, level, high=1.3, low=0.8)
    for loss_type in ("grpo", "dapo", "sapo"):
        want = oracles.trl(batch, loss_type, weights=weights)
        options = {"rollout": True, "rollout_correction": correction}
        check(compare, batch, want, **options, **TRL[loss_type])


@pytest.mark.parametrize("name", VERL)
@pytest.mark.parametrize(
    "mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
)
@pytest.mark.parametrize("empty_row", [False, True])
def test_verl(compare, name, mode, empty_row):
    batch = padded(spread=0.9, empty_row=empty_row)
    options = {"aggregation": mode}
    if mode == "seq-mean-token-sum-norm":
        rows = int((batch.mask.sum(1) > 0).sum())
        options = {"aggregation": "seq-mean-token-sum", "denominator": rows * 50}
    want = oracles.verl(batch, name, mode)
    check(compare, batch, want, 1e-7, **options, **VERL[name])  # verl adds 1e-8 to counts


def test_verl_geo_mean_and_k3(compare):
    batch = padded(empty_row=True)
    want = oracles.verl(batch, "geo_mean", low=0.4, high=0.4)
    options = {"aggregation": "seq-mean-token-mean", "denominator": batch.rows}
    options |= {"objective": "gmpo", "clip_low": 0.4, "clip_high": 0.4}
    check(compare, batch, want, 1e-7, **options)
    batch.ref = batch.logprobs.detach() + 4 * torch.randn_like(batch.ref)
    batch.advantages = torch.zeros_like(batch.advantages)
    want = (oracles.verl_k3(batch) * batch.float_mask).sum() / batch.float_mask.sum()
    check(compare, batch, want, ref=True, kl_coef=1.0, kl_limit=10.0)
