"""TRL 1.16's ``GRPOTrainer._compute_loss``, from the installed package, against ours.

The method runs on a stand-in for the trainer that has its options and hands it the log-probs.
Without TRL the tests skip, in ``make test-peers`` they fail; docs/losses.md says which options
reproduce what.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from siri_kernels import group_advantages
from siri_kernels.policy_loss import RolloutCorrection

from .peers import Compare, gradients, ours, padded

trl = pytest.importorskip("trl", reason="TRL 1.16 is not installed")
pytest.importorskip("datasets", reason="TRL's GRPOTrainer needs datasets")
grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
GRPOTrainer = grpo_trainer.GRPOTrainer

CAP = 40  # max_completion_length
ITEMS = 77.0  # num_items_in_batch: of more than this batch


@pytest.fixture(scope="module")
def compare():
    compare = Compare(f"TRL {trl.__version__}")
    yield compare
    print(f"\n{compare}")


def theirs(batch, loss_type="grpo", weights=None, entropy_coef=None, **changes):
    arguments = {
        "delta": None,
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "steps_per_generation": 1,
    }
    arguments.update({k: changes.pop(k) for k in list(changes) if k in arguments})
    options = {
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "importance_sampling_level": "token",
        "off_policy_mask_threshold": None,
        **changes,
    }
    trainer = SimpleNamespace(
        **options,
        args=SimpleNamespace(**arguments),
        loss_type=loss_type,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=weights is not None,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=CAP,
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=False,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
        ),
        use_adaptive_entropy=False,
        entropy_coef=entropy_coef,
        _entropy_bonus_enabled=entropy_coef is not None,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logprobs, batch.entropy, None),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
    )
    tokens = torch.zeros_like(batch.old, dtype=torch.int64)
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": tokens[:, :1] + 1,
        "completion_ids": tokens,
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.ref,
        "num_items_in_batch": torch.tensor(ITEMS).double(),
        "importance_sampling_ratio": weights,
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return (loss, *gradients(loss, batch)), trainer._metrics["train"]


def aggregated(batch, loss_type):
    """Options of ours for one of TRL's loss types; its means are over all rows, empty ones too."""
    return {
        "grpo": {"aggregation": "seq-mean-token-mean", "denominator": batch.rows},
        "sapo": {"aggregation": "seq-mean-token-mean", "denominator": batch.rows},
        "luspo": {"aggregation": "seq-mean-token-sum", "denominator": batch.rows},
        "bnpo": {"aggregation": "token-mean"},
        "dapo": {"aggregation": "token-mean", "denominator": ITEMS},
        "cispo": {"aggregation": "token-mean", "denominator": ITEMS},
        "dr_grpo": {"aggregation": "token-sum-norm", "denominator": batch.rows * CAP},
    }[loss_type]


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("empty_row", [False, True])
def test_clipped(compare, loss_type, level, delta, empty_row):
    batch = padded(spread=0.9, empty_row=empty_row)
    want, metrics = theirs(batch, loss_type, delta=delta, importance_sampling_level=level)
    got = ours(batch, ratio=level, delta=delta, **aggregated(batch, loss_type))
    compare(got[:3], want)
    if level == "token":  # TRL's mean at sequence level is over sequences
        low, high = got[3]["clip_frac_low"], got[3]["clip_frac_high"]
        assert low.item() == pytest.approx(metrics["clip_ratio/low_mean"][0])
        assert high.item() == pytest.approx(metrics["clip_ratio/high_mean"][0])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_cispo(compare, level):
    batch = padded(spread=0.9)
    want, _ = theirs(batch, "cispo", epsilon_high=1.5, importance_sampling_level=level)
    options = {"objective": "cispo", "cispo_bounds": "trl", "clip_high": 1.5, "ratio": level}
    compare(ours(batch, **options, **aggregated(batch, "cispo"))[:3], want)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_sapo(compare, level):
    batch = padded(spread=0.9)
    # TRL makes its temperatures tensors of the default dtype, which rounds 1.05.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        want, _ = theirs(batch, "sapo", importance_sampling_level=level)
    finally:
        torch.set_default_dtype(before)
    got = ours(batch, objective="sapo", ratio=level, **aggregated(batch, "sapo"))
    compare(got[:3], want)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize("corrected", [False, True])
def test_kl(compare, loss_type, corrected):
    batch = padded()
    want, metrics = theirs(batch, loss_type, beta=0.3, use_bias_correction_kl=corrected)
    options = {"kl_coef": 0.3, "kl_unbiased": corrected, **aggregated(batch, loss_type)}
    got = ours(batch, ref=True, **options)
    compare(got[:3], want)
    assert got[3]["ref_kl"].item() == pytest.approx(metrics["kl"][0])


def test_entropy_bonus(compare):
    """TRL's bonus is a mean over this batch's tokens, whatever the loss type: ours with bnpo."""
    batch = padded()
    want, metrics = theirs(batch, "bnpo", entropy_coef=0.07)
    got = ours(batch, entropy=True, entropy_coef=0.07, **aggregated(batch, "bnpo"))
    compare(got[:3], want)
    assert got[3]["entropy"].item() == pytest.approx(metrics["entropy"][0])


@pytest.mark.parametrize("threshold", [-0.05, 0.05, 0.2])
def test_off_policy_sequence_mask(compare, threshold):
    batch = padded()
    want, _ = theirs(batch, "grpo", off_policy_mask_threshold=threshold)
    got = ours(batch, off_policy_threshold=threshold, **aggregated(batch, "grpo"))
    compare(got[:3], want)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
def test_vllm_correction(compare, mode, level, loss_type):
    """The weights as in ``_generate_and_score_completions``; NaN where vLLM reported nothing."""
    batch = padded()
    batch.rollout[0, 0] = batch.rollout[2, 3] = float("nan")
    low, high = 0.8, 1.3
    gap = ((batch.old - batch.rollout) * batch.float_mask).nan_to_num(nan=0.0)
    if level == "sequence":
        gap = gap.sum(-1, keepdim=True)
    weights = gap.exp()
    if mode == "truncate":
        weights = weights.clamp(low, high)
    else:
        weights = weights.masked_fill((weights < low) | (weights > high), 0.0)
    want, _ = theirs(batch, loss_type, weights=weights, beta=0.1, epsilon_high=1.5)
    options = {"objective": "cispo", "cispo_bounds": "trl"} if loss_type == "cispo" else {}
    got = ours(
        batch,
        rollout=True,
        ref=True,
        kl_coef=0.1,
        clip_high=1.5,
        rollout_correction=RolloutCorrection(mode, level, high, low),
        **options,
        **aggregated(batch, loss_type),
    )
    compare(got[:3], want)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("unscored", [0.0, 0.2])
def test_advantages(compare, scale, unscored):
    """As in ``_generate_and_score_completions``, which is one method with everything else."""
    from trl.trainer.utils import nanstd

    rewards = torch.randn(32)
    rewards[torch.rand(32) < unscored] = float("nan")
    grouped = rewards.view(-1, 8)
    want = rewards - grouped.nanmean(1).repeat_interleave(8)
    std = nanstd(grouped, dim=1).repeat_interleave(8) if scale == "group" else nanstd(rewards)
    if scale != "none":
        want = want / (std + 1e-4)
    names = {"group": "group_std", "batch": "batch_std", "none": "none"}
    got = group_advantages(rewards, 8, eps=1e-4, scale=names[scale])
    compare((got.advantages,), (want.nan_to_num(nan=0.0),), 2e-6)
