"""``siri`` and ``siri_grpo`` against verl's own ``vanilla`` and ``grpo``, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.protocol import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import ActorConfig

MODES = [
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-token-mean",
]
GLOBAL = [
    {},
    {"dp_size": 1, "batch_num_tokens": 931, "global_batch_size": 64},
    {"dp_size": 4, "batch_num_tokens": 931, "global_batch_size": 64},
]


def actor(counts=None, **options):
    options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "loss_scale_factor": 50, **options}
    made = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)
    made.global_batch_info.update(counts or {})
    made.global_batch_info["loss_scale_factor"] = options["loss_scale_factor"]
    return made


def batch(dtype=torch.float32, rows=7, length=23):
    """Ratios far past every clip on both sides, holes in the answers, an empty row."""
    mask = torch.rand(rows, length) < 0.7
    mask[2] = False
    old = -3 * torch.rand(rows, length, dtype=dtype)
    signs = 1 - 2 * (torch.arange(rows) % 2)
    return {
        "old_log_prob": old,
        "log_prob": old + 0.9 * torch.randn(rows, length, dtype=dtype),
        "advantages": signs[:, None] * torch.rand(rows, length, dtype=dtype) * mask,
        "response_mask": mask,
    }


def evaluate(name, tensors, mode, config, weights=None):
    logprobs = tensors["log_prob"].clone().requires_grad_()
    loss, metrics = core_algos.get_policy_loss_fn(name)(
        **{**tensors, "log_prob": logprobs},
        loss_agg_mode=mode,
        config=config,
        rollout_is_weights=weights,
    )
    (grad,) = torch.autograd.grad(3 * loss, logprobs)
    return loss.detach(), grad, metrics


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("counts", GLOBAL, ids=["local", "global", "ranks"])
@pytest.mark.parametrize("weighed", [None, "token", "sequence", "icepop"])
def test_equals_vanilla(mode, counts, weighed):
    if "dp_size" not in counts and mode == "token-sum":
        counts = {"dp_size": 2}
    tensors = batch(torch.float64)
    weights = None
    if weighed is not None:
        level = "token" if weighed == "icepop" else weighed
        sampled = tensors["old_log_prob"] + 0.3 * torch.randn(7, 23)
        weights, _ = compute_rollout_correction_weights(
            tensors["old_log_prob"] - sampled,
            tensors["response_mask"].double(),
            level,
            "0.7_1.4" if weighed == "icepop" else 1.5,
        )
        assert weighed != "icepop" or (weights[tensors["response_mask"]] == 0).sum() > 5
    config = actor(counts)
    want, want_grad, theirs = evaluate("vanilla", tensors, mode, config, weights)
    got, got_grad, ours = evaluate("siri", tensors, mode, config, weights)
    # verl adds 1e-8 to the tokens of a sequence's mean
    tolerance = 3e-8 if mode == "seq-mean-token-mean" else 1e-12
    assert abs(got - want) <= tolerance * abs(want)
    assert (got_grad - want_grad).abs().max() <= tolerance * want_grad.abs().max()
    assert (got_grad != 0).any() and (got_grad == 0).any()
    assert set(theirs) <= set(ours)
    if weighed != "icepop":  # where silenced tokens do not count as clipped
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=1e-6)
        assert 0.1 < theirs["actor/pg_clipfrac"] < 0.9
        assert theirs["actor/pg_clipfrac_lower"] > 0
    assert ours["actor/pg_clipfrac"] == pytest.approx(
        ours["actor/siri_clip_frac_low"] + ours["actor/siri_clip_frac_high"]
    )


def test_micro_batches_and_ranks_add_up():
    """The loss does not depend on how verl cuts a mini-batch, whatever the aggregation."""
    tensors = batch(torch.float64, rows=8)
    counts = {"batch_num_tokens": int(tensors["response_mask"].sum()), "global_batch_size": 8}
    for mode in MODES:
        whole, grad, _ = evaluate("siri", tensors, mode, actor({"dp_size": 1, **counts}))
        parts = [
            evaluate(
                "siri",
                {name: value[rows] for name, value in tensors.items()},
                mode,
                actor({"dp_size": 2, **counts}),
            )
            for rows in (slice(0, 3), slice(3, 4), slice(4, 8))
        ]
        # two ranks: verl averages over them what each multiplied by two
        assert float(sum(part[0] for part in parts)) / 2 == pytest.approx(float(whole), rel=1e-12)
        assert torch.allclose(torch.cat([part[1] for part in parts]) / 2, grad, atol=1e-15)


def test_bounds_and_dual_clip_are_verls_keys():
    tensors = batch(torch.float64)
    for options in (
        {"clip_ratio": 0.1, "clip_ratio_low": None, "clip_ratio_high": None},
        {"clip_ratio_c": 1.3},
    ):
        config = actor(**options)
        want = evaluate("vanilla", tensors, "token-mean", config)
        got = evaluate("siri", tensors, "token-mean", config)
        assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-12)
        assert torch.allclose(got[1], want[1], rtol=1e-12)
    off = evaluate("siri", tensors, "token-mean", actor(clip_ratio_c=1e9))
    assert off[2]["actor/pg_clipfrac_lower"] == 0
    assert not torch.allclose(off[1], want[1])


def test_padding_has_no_influence():
    tensors = batch()
    want = evaluate("siri", tensors, "token-mean", actor())
    hole = ~tensors["response_mask"]
    for name in ("old_log_prob", "log_prob", "advantages"):
        tensors[name] = tensors[name].masked_fill(hole, torch.nan)
    got = evaluate("siri", tensors, "token-mean", actor())
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and got[2] == want[2]


def test_nothing_to_count_is_zero_where_verl_has_nan():
    tensors = batch()
    tensors["response_mask"] = torch.zeros_like(tensors["response_mask"])
    for mode in MODES:
        loss, grad, _ = evaluate("siri", tensors, mode, actor())
        assert loss == 0 and not grad.any()
    for counts in GLOBAL[1:]:
        config = actor({**counts, "batch_num_tokens": 0})
        loss, grad, _ = evaluate("siri", tensors, "token-mean", config)
        assert loss == 0 and not grad.any()
    assert evaluate("vanilla", tensors, "token-mean", actor())[0].isnan()


@pytest.mark.parametrize(
    "mode, options, counts, error",
    [
        ("seq-mean-token-sum-norm", {"loss_scale_factor": None}, {}, "actor.loss_scale_factor"),
        ("token-mean", {}, {"dp_size": 2}, "batch_num_tokens must be given with dp_size = 2"),
        ("seq-mean-token-sum", {}, {"dp_size": 2}, "global_batch_size must be given"),
        ("mean", {}, {}, "loss_agg_mode must be token-mean, .*; got 'mean'"),
    ],
)
def test_refusals(mode, options, counts, error):
    with pytest.raises(ValueError, match=error):
        evaluate("siri", batch(), mode, actor(counts, **options))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", ["binary", "normal"])
def test_estimator_equals_grpo(scaled, kind):
    """Through verl's own ``compute_advantage``, with prompt ids as verl makes them."""
    uid = np.array(["f3", "00", "00", "a7", "00", "f3", "a7", "a7", "a7", "00"], dtype=object)
    mask = torch.arange(9) < torch.randint(1, 10, (10, 1))
    rewards = torch.randn(10) if kind == "normal" else torch.randint(0, 2, (10,)).float()
    spread = torch.zeros(10, 9)
    spread[torch.arange(10), mask.sum(1) - 1] = rewards
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": scaled})

    def advantages(name):
        data = DataProto.from_dict(
            tensors={"token_level_rewards": spread.clone(), "response_mask": mask.float()},
            non_tensors={"uid": uid},
        )
        out = compute_advantage(data, name, norm_adv_by_std_in_grpo=scaled, config=config).batch
        assert torch.equal(out["advantages"], out["returns"])
        return out["advantages"]

    got, want = advantages("siri_grpo"), advantages("grpo")
    assert got.shape == want.shape and got.dtype == want.dtype
    assert torch.allclose(got, want, atol=2e-6) and (want != 0).any()


def test_estimator_where_it_is_better():
    """A constant group, a group of one, and an answer that could not be scored."""
    uid = np.array(["a"] * 16 + ["b"] + ["c"] * 4, dtype=object)
    rewards = torch.tensor([10000.1] * 16 + [0.7] + [1.0, torch.nan, 0.0, 1.0])[:, None]
    mask = torch.ones(21, 1)
    got, _ = core_algos.get_adv_estimator_fn("siri_grpo")(rewards, mask, uid)
    want, _ = core_algos.get_adv_estimator_fn("grpo")(rewards.clone(), mask, uid)
    assert not got[:17].any() and want[:16].abs().max() > 0.1 and want[16] > 0.5
    assert want[17:].isnan().all() and got[18] == 0
    of_three, _ = core_algos.get_adv_estimator_fn("grpo")(
        torch.tensor([[1.0], [0.0], [1.0]]), torch.ones(3, 1), np.array(["c"] * 3)
    )
    assert torch.allclose(got[[17, 19, 20]], of_three, atol=1e-6)
