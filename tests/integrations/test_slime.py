"""slime is not on the package index: its contract, written down again from its source."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from siri_kernels.integrations.slime import group_rewards, siri_loss
from siri_train.integrations.slime import generate_rollout

LENGTHS = [7, 1, 12, 4]


def arguments(**changes):
    """Defaults of slime's command line at 624b824, but for --calculate-per-token-loss."""
    values = {
        "calculate_per_token_loss": True, "eps_clip": 0.2, "eps_clip_high": 0.28,
        "eps_clip_c": None, "use_kl_loss": False, "kl_loss_coef": 0.0, "kl_loss_type": "k1",
        "use_unbiased_kl": False,
        "entropy_coef": 0.0, "use_tis": False, "tis_clip": 2.0, "tis_clip_low": 0.0,
        "use_rollout_logprobs": False, "use_opsm": False, "get_mismatch_metrics": False,
        "custom_tis_function_path": None, "custom_pg_loss_reducer_function_path": None,
        "rollout_top_p": 1.0, "grpo_std_normalization": True, "rollout_max_response_len": 64,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def slime(monkeypatch):
    """The two functions of slime that ``siri_loss`` calls; "logits" hold log-probs and entropy."""
    for name in ("slime", "slime.backends", "slime.backends.megatron_utils", "slime.rollout"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    loss = ModuleType("slime.backends.megatron_utils.loss")

    def get_log_probs_and_entropy(
        logits, *, args, unconcat_tokens, total_lengths, response_lengths, with_entropy=False
    ):
        assert with_entropy and len(unconcat_tokens) == len(total_lengths)
        logprobs, entropy = logits[0].unbind(-1)
        return None, {
            "log_probs": list(logprobs.split(response_lengths)),
            "entropy": list(entropy.split(response_lengths)),
        }

    loss.get_log_probs_and_entropy = get_log_probs_and_entropy
    loss.get_rollout_top_p_logprob_kwargs = lambda args, batch: {}
    monkeypatch.setitem(sys.modules, loss.__name__, loss)
    rollout = ModuleType("slime.rollout.sglang_rollout")
    monkeypatch.setitem(sys.modules, rollout.__name__, rollout)
    sys.modules["slime.rollout"].sglang_rollout = rollout
    return rollout


def batch():
    total = sum(LENGTHS)
    old = -torch.rand(total, dtype=torch.float64) * 3
    logits = torch.stack([old + 0.4 * torch.randn_like(old), torch.rand_like(old)], -1)[None]
    values = {
        "log_probs": old,
        "rollout_log_probs": old + 0.5 * torch.randn_like(old),
        "ref_log_probs": old + 0.5 * torch.randn_like(old),
        "loss_masks": (torch.rand(total) < 0.8).int(),
        "advantages": torch.randn(4, dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS)),
    }
    data = {name: list(value.split(LENGTHS)) for name, value in values.items()}
    data |= {"response_lengths": LENGTHS, "total_lengths": LENGTHS, "unconcat_tokens": [None] * 4}
    return data, logits.requires_grad_()


def policy_loss_function(args, batch, logits):
    """slime's, of one rank, for what ``siri_loss`` takes; the reducer is its ``sum_of_token``."""
    logprobs, entropy = logits[0].unbind(-1)
    old, rollout, ref, mask, advantages = (
        torch.cat(batch[name])
        for name in ("log_probs", "rollout_log_probs", "ref_log_probs", "loss_masks", "advantages")
    )
    ratio = (logprobs - old).exp()
    pg = torch.maximum(
        -ratio * advantages, -ratio.clamp(1 - args.eps_clip, 1 + args.eps_clip_high) * advantages
    )
    if args.eps_clip_c is not None:
        pg = torch.where(advantages < 0, torch.min(-args.eps_clip_c * advantages, pg), pg)
    if args.use_tis:
        pg = pg * (old - rollout).exp().clamp(args.tis_clip_low, args.tis_clip)
    loss = pg - args.entropy_coef * entropy
    if args.use_kl_loss:
        d = logprobs - ref
        kl = {"k1": d, "k2": d**2 / 2}.get(args.kl_loss_type, (-d).exp() - 1 + d)
        kl = kl * ratio if args.use_unbiased_kl else kl
        loss = loss + args.kl_loss_coef * (
            kl.clamp(-10, 10) if args.kl_loss_type == "low_var_kl" else kl
        )
    return (loss * mask).sum()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eps_clip": 0.05, "eps_clip_high": 0.1, "eps_clip_c": 1.3},
        {"use_tis": True, "tis_clip_low": 0.7, "tis_clip": 1.2},
        {"entropy_coef": 0.02},
        *(
            {"use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": kind}
            for kind in ("k1", "k2", "k3", "low_var_kl")
        ),
        {"use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": "k3", "use_unbiased_kl": True},
    ],
)
def test_equals_slimes_policy_loss(slime, changes):
    data, logits = batch()
    args = arguments(**changes)
    got, log = siri_loss(args, data, logits, lambda x: x.sum())
    want = policy_loss_function(args, data, logits)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, logits), torch.autograd.grad(want, logits), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert want.abs() > 1e-3
    mask = torch.cat(data["loss_masks"])
    logprobs, entropy = logits[0].unbind(-1)
    assert log["entropy_loss"].item() == pytest.approx((entropy * mask).sum().item(), rel=1e-5)
    kl = ((torch.cat(data["log_probs"]) - logprobs) * mask).sum().item()
    assert log["ppo_kl"].item() == pytest.approx(kl, rel=1e-5, abs=1e-6)
    assert all(value.dim() == 0 and not value.requires_grad for value in log.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calculate_per_token_loss": False}, "calculate_per_token_loss: siri_loss takes True"),
        ({"use_opsm": True}, "use_opsm: got True"),
        ({"custom_tis_function_path": "a.b"}, "custom_tis_function_path: got 'a.b'"),
        ({"use_tis": True, "use_rollout_logprobs": True}, "use_tis: got True"),
        ({"use_unbiased_kl": True, "kl_loss_type": "low_var_kl"}, "use_unbiased_kl"),
    ],
)
def test_refuses(slime, changes, message):
    data, logits = batch()
    with pytest.raises(ValueError, match=message):
        siri_loss(arguments(**changes), data, logits, lambda x: x.sum())


def test_a_rank_with_a_part_of_the_tokens_is_refused(slime):
    data, logits = batch()
    data["loss_masks"][0] = torch.ones(9)
    with pytest.raises(ValueError, match="context_parallel_size"):
        siri_loss(arguments(), data, logits, lambda x: x.sum())


def sample(group, reward):
    return SimpleNamespace(group_index=group, get_reward_value=lambda args: reward)


def test_groups_of_unequal_size_keep_to_themselves():
    """slime's own code takes the whole batch as one group here."""
    samples = [[sample(3, 1.0), sample(3, 0.0)], sample(8, 5.0), sample(8, 5.0), sample(3, 0.0)]
    raw, advantages = group_rewards(arguments(), samples)
    assert raw == [1.0, 0.0, 5.0, 5.0, 0.0]
    three = torch.tensor([1.0, 0.0, 0.0])
    want = ((three - three.mean()) / (three.std() + 1e-6)).tolist()
    assert advantages == pytest.approx([want[0], want[1], 0, 0, want[2]], abs=1e-6)
    _, centred = group_rewards(arguments(grpo_std_normalization=False), samples)
    assert centred == pytest.approx([2 / 3, -1 / 3, 0, 0, -1 / 3], abs=1e-6)
    with pytest.raises(ValueError, match="group_index: got None for sample 1"):
        group_rewards(arguments(), [sample(0, 1.0), sample(None, 0.0)])


def test_the_cap_of_each_rollout(slime):
    state = SimpleNamespace(sampling_params={"max_new_tokens": 64})
    seen = []

    def theirs(args, rollout_id, data_source, evaluation=False):
        seen.append((rollout_id, evaluation, state.sampling_params["max_new_tokens"]))
        return data_source

    slime.GenerateState, slime.generate_rollout = lambda args: state, theirs
    schedule = {"shape": "cosine", "max_len": 64, "min_len": 32, "cycle": 8}
    args = arguments(siri_schedule=schedule)
    for step in (0, 2, 4, 7):
        assert generate_rollout(args, step, "data") == "data"
    assert [(step, cap) for step, _, cap in seen] == [(0, 64), (2, 48), (4, 32), (7, 59)]
    generate_rollout(args, 4, "data", evaluation=True)
    assert seen[-1] == (4, True, 59)  # left as it was: slime's evaluation has its own length
    with pytest.raises(ValueError, match="siri_schedule: missing"):
        generate_rollout(arguments(), 0, "data")
    with pytest.raises(ValueError, match="rollout_max_response_len: got 63"):
        generate_rollout(arguments(siri_schedule=schedule, rollout_max_response_len=63), 0, "data")
