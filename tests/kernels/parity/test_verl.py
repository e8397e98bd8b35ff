"""verl 0.9.1's losses and estimators, from the installed package, against ours.

Without verl the tests skip, in ``make test-peers`` they fail; docs/losses.md says which options
reproduce what.
"""

from __future__ import annotations

import pytest
import torch

from siri_kernels import group_advantages
from siri_kernels.policy_loss import RolloutCorrection

from .peers import Compare, gradients, ours, padded

verl = pytest.importorskip("verl", reason="verl 0.9.1 is not installed")
algos = pytest.importorskip("verl.trainer.ppo.core_algos")
corr = pytest.importorskip("verl.trainer.ppo.rollout_corr_helper")
np = pytest.importorskip("numpy")

AGGREGATIONS = [
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
]


@pytest.fixture(scope="module")
def compare():
    compare = Compare(f"verl {verl.__version__}")
    yield compare
    print(f"\n{compare}")


def config(**options):
    from verl.workers.config import ActorConfig

    return ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_c=3.0, **options
    )


def aggregated(batch, mode, factor=50):
    """Options of ours for a mode of verl's ``agg_loss``."""
    if mode != "seq-mean-token-sum-norm":
        return {"aggregation": mode}
    rows = int((batch.mask.sum(1) > 0).sum())
    return {"aggregation": "seq-mean-token-sum", "denominator": rows * factor}


def theirs(name, batch, mode="token-mean", weights=None, **options):
    made = config(loss_scale_factor=50, **options)
    made.global_batch_info["loss_scale_factor"] = 50
    loss, metrics = algos.get_policy_loss_fn(name)(
        old_log_prob=batch.old,
        log_prob=batch.logprobs,
        advantages=batch.advantages[:, None].expand_as(batch.old),
        response_mask=batch.float_mask,
        loss_agg_mode=mode,
        config=made,
        rollout_is_weights=weights,
    )
    return (loss, gradients(loss, batch)[0]), metrics


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("empty_row", [False, True])
@pytest.mark.parametrize(
    "name, options",
    [
        ("vanilla", {"dual_clip": 3.0}),
        ("gspo", {"ratio": "sequence"}),
        ("cispo", {"objective": "cispo"}),
    ],
)
def test_losses(compare, name, options, mode, empty_row):
    batch = padded(spread=0.9, empty_row=empty_row)
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    verl_clip = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
    want, metrics = theirs(name, batch, mode, **verl_clip)
    loss, grad, _, got = ours(batch, **options, **clip, **aggregated(batch, mode))
    compare((loss, grad), want, 1e-7)  # verl adds 1e-8 to a sequence's count
    if name != "cispo":
        clipped = got["clip_frac_low"] + got["clip_frac_high"]
        assert clipped.item() == pytest.approx(metrics["actor/pg_clipfrac"], abs=1e-6)
    else:
        clipped = got["clip_frac_low"] + got["clip_frac_high"]
        assert clipped.item() == pytest.approx(metrics["actor/pg_clipfrac"], abs=1e-6)


@pytest.mark.parametrize("empty_row", [False, True])
def test_geo_mean(compare, empty_row):
    """verl's mean is over all rows, the empty ones too."""
    batch = padded(empty_row=empty_row)
    want, _ = theirs("geo_mean", batch, clip_ratio_low=0.4, clip_ratio_high=0.4)
    loss, grad, _, _ = ours(
        batch,
        objective="gmpo",
        clip_low=0.4,
        clip_high=0.4,
        aggregation="seq-mean-token-mean",
        denominator=batch.rows,
    )
    compare((loss, grad), want, 1e-7)


def test_sapo(compare):
    batch = padded()
    want, _ = theirs("sapo", batch, tau_pos=1.0, tau_neg=1.05)
    loss, grad, _, _ = ours(batch, objective="sapo", aggregation="seq-mean-token-mean")
    compare((loss, grad), want, 1e-7)


@pytest.mark.parametrize("name", ["vanilla", "gspo", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("threshold", [1.3, "0.8_1.2"])
def test_rollout_correction(compare, name, level, threshold):
    batch = padded()
    batch.logprobs.requires_grad_(False)
    weights, metrics = corr.compute_rollout_correction_weights(
        batch.old - batch.rollout, batch.float_mask, level, threshold
    )
    batch.logprobs.requires_grad_()
    correction = RolloutCorrection("truncate", level, high=1.3)
    if isinstance(threshold, str):
        correction = RolloutCorrection("mask", level, high=1.2, low=0.8)
    want, _ = theirs(name, batch, weights=weights, clip_ratio_high=0.28)
    options = {"gspo": {"ratio": "sequence"}, "cispo": {"objective": "cispo"}}.get(name, {})
    loss, grad, _, got = ours(
        batch, rollout=True, rollout_correction=correction, dual_clip=3.0, **options
    )
    if name == "gspo":  # which has no dual clip
        loss, grad, _, got = ours(batch, rollout=True, rollout_correction=correction, **options)
    compare((loss, grad), want, 1e-7)
    mean = (weights * batch.float_mask).sum() / batch.float_mask.sum()
    assert got["rollout_weight_mean"].item() == pytest.approx(mean.item())


def test_reinforce(compare):
    batch = padded()
    loss, _ = algos.compute_policy_loss_reinforce(
        batch.rollout,
        batch.logprobs,
        batch.advantages[:, None].expand_as(batch.old),
        batch.float_mask,
        "seq-mean-token-sum",
        config(),
    )
    want = loss, gradients(loss, batch)[0]
    got = ours(batch, objective="reinforce", aggregation="seq-mean-token-sum")
    compare(got[:2], want)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("spread", [0.4, 4.0])
def test_kl(compare, estimator, spread):
    """k3 is cut at 10, which happens from ref - logprobs = 2.55 on: kl_limit=10."""
    batch = padded()
    batch.ref = batch.logprobs.detach() + spread * torch.randn_like(batch.ref)
    batch.advantages = torch.zeros_like(batch.advantages)
    kl = algos.kl_penalty(batch.logprobs, batch.ref, estimator)
    loss = algos.agg_loss(kl, batch.float_mask, "token-mean")
    limit = 10.0 if estimator == "k3" else None
    got = ours(batch, ref=True, kl_coef=1.0, kl_estimator=estimator, kl_limit=limit)
    compare(got[:2], (loss, gradients(loss, batch)[0]))


@pytest.mark.parametrize("name", ["grpo", "grpo-unscaled", "grpo_vectorized", "rloo"])
@pytest.mark.parametrize("kind", ["binary", "normal"])
def test_estimators(compare, name, kind):
    index = np.array([3, 0, 0, 7, 0, 3, 9, 7, 7, 7, 0, 5])  # 9 and 5: groups of one
    rewards = torch.randn(12) if kind == "normal" else torch.randint(0, 2, (12,)).float()
    ids = torch.from_numpy(index)
    one_token = torch.ones(12, 1)
    options = {"singleton": "verl"}
    if name == "rloo":
        want, _ = algos.compute_rloo_outcome_advantage(rewards[:, None].clone(), one_token, index)
        options.update(baseline="leave_one_out", scale="none")
    elif name == "grpo_vectorized":
        want, _ = algos.compute_grpo_vectorized_outcome_advantage(
            rewards[:, None].clone(), one_token, index
        )
    else:
        scaled = name == "grpo"
        want, _ = algos.compute_grpo_outcome_advantage(
            rewards[:, None].clone(), one_token, index, norm_adv_by_std_in_grpo=scaled
        )
        options["scale"] = "group_std" if scaled else "none"
    got = group_advantages(rewards, ids, **options)
    compare((got.advantages,), (want[:, 0],), 2e-6)  # float32


def test_vectorised_rloo_gives_a_group_of_one_zero(compare):
    index = np.array([3, 0, 0, 7, 0, 3])
    rewards = torch.randn(6)
    want, _ = algos.compute_rloo_vectorized_outcome_advantage(
        rewards[:, None].clone(), torch.ones(6, 1), index
    )
    got = group_advantages(rewards, torch.from_numpy(index), baseline="leave_one_out", scale="none")
    compare((got.advantages,), (want[:, 0],), 2e-6)
