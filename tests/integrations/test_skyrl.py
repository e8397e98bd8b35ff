"""SkyRL 0.4.0: real registries and losses, from the installed package."""

from __future__ import annotations

import asyncio
import inspect
import typing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typing_extensions

from siri_kernels.integrations import skyrl
from siri_train.integrations.skyrl import CappedGenerator
from siri_train.schedule import LengthSchedule

pytest.importorskip("skyrl", reason="SkyRL is not installed (make test-peers)")


@pytest.fixture(scope="module")
def theirs():
    """SkyRL asks for Python 3.12; of it, only pydantic's rule on TypedDict matters here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typing, "TypedDict", typing_extensions.TypedDict)
        import skyrl.backends.skyrl_train.utils.ppo_utils as ppo_utils
    return ppo_utils


@pytest.fixture
def config(theirs):
    made = theirs.AlgorithmConfig()
    made.eps_clip_low, made.eps_clip_high = 0.1, 0.3
    return made


def batch(rows=6, length=9):
    old = -torch.rand(rows, length, dtype=torch.float64) * 3
    mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1))).double()
    new = (old + 0.4 * torch.randn_like(old)).requires_grad_()
    advantages = torch.randn(rows, 1, dtype=torch.float64) * mask
    return new, old, advantages, mask, old + 0.4 * torch.randn_like(old)


def test_signatures_are_skyrls(theirs):
    for ours, other in (
        (skyrl.siri_policy_loss, theirs.ppo_policy_loss),
        (skyrl.siri_grpo_advantage, theirs.compute_grpo_outcome_advantage),
    ):
        names = list(inspect.signature(ours).parameters)
        assert names[:-1] == list(inspect.signature(other).parameters)[:-1]


@pytest.mark.parametrize("tis", [None, "token", "sequence"])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "seq_mean_token_sum_norm"])
def test_equals_skyrls_loss(theirs, config, tis, reduction):
    new, old, advantages, mask, rollout = batch()
    config.off_policy_correction.tis_ratio_type = tis
    config.off_policy_correction.token_tis_ratio_clip_high = 1.2
    config.off_policy_correction.sequence_tis_ratio_clip_high = 1.5
    scaled = theirs.apply_loss_reduction_to_advantages_minibatch(advantages, mask, reduction, 3, 20)
    got, metrics = skyrl.siri_policy_loss(new, old, scaled, config, mask, rollout)
    want, reported = theirs.ppo_policy_loss(new, old, scaled, config, mask, rollout)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    for a, b in zip(torch.autograd.grad(got, new), torch.autograd.grad(want, new), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert want.abs() > 1e-3
    assert metrics["clip_ratio"] == pytest.approx(reported["clip_ratio"], abs=1e-6)
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize("by_std", [True, False])
def test_equals_skyrls_advantages(theirs, by_std):
    rewards = torch.zeros(8, 5)
    rewards[:, -1] = torch.tensor([1.0, 0, 1, 0, 0, 3, 3, 2])
    mask = (torch.arange(5) < torch.randint(1, 6, (8, 1))).float()
    index = np.array(["b", "a", "b", "a", "b", "c", "c", "a"], dtype=object)
    call = {"token_level_rewards": rewards, "response_mask": mask, "index": index}
    call |= {"values": None, "grpo_norm_by_std": by_std, "gamma": 1.0, "lambd": 1.0}
    got, returns = skyrl.siri_grpo_advantage(**call, config=None)
    want, _ = theirs.compute_grpo_outcome_advantage(**call, config=None)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert got is returns and not got[5:7].any() and got.abs().max() > 0.3


def test_registers_once_and_skyrl_finds_them(theirs):
    registries = (theirs.PolicyLossRegistry, theirs.AdvantageEstimatorRegistry)
    try:
        skyrl.register()
        skyrl.register()
        assert theirs.PolicyLossRegistry.get("siri") is skyrl.siri_policy_loss
        assert theirs.AdvantageEstimatorRegistry.get("siri_grpo") is skyrl.siri_grpo_advantage
        got, _ = theirs.compute_advantages_and_returns(
            token_level_rewards=torch.tensor([[1.0], [0.0]]), response_mask=torch.ones(2, 1),
            index=np.array(["a", "a"]), adv_estimator="siri_grpo", config=theirs.AlgorithmConfig(),
        )  # fmt: skip
        assert got[0].item() == pytest.approx(0.7071, abs=1e-3)
    finally:
        for registry, name in zip(registries, ("siri", "siri_grpo"), strict=True):
            if name in registry.list_available():
                registry.unregister(name)


@pytest.mark.parametrize("name", skyrl._UNKNOWN_CORRECTIONS)
def test_filters_are_refused(config, name):
    setattr(config.off_policy_correction, name, 0.5)
    new, old, advantages, mask, rollout = batch()
    with pytest.raises(ValueError, match=f"off_policy_correction.{name}"):
        skyrl.siri_policy_loss(new, old, advantages, config, mask, rollout)


def generator(**changes):
    options = {"zero_reward_on_non_stop": True, "apply_overlong_filtering": False, "max_turns": 1}
    options |= {"sampling_params": SimpleNamespace(max_generate_length=16), **changes}

    class Generator:
        generator_cfg = SimpleNamespace(**options)
        seen: list = []

        async def generate(self, input_batch, disable_tqdm=False):
            self.seen.append(input_batch["sampling_params"])
            return "output"

    return Generator()


def ask(capped, step, phase="train", sampling=True):
    about = SimpleNamespace(global_step=step, training_phase=phase)
    params = {"temperature": 0.9, "max_tokens": 16} if sampling else None
    batch = {"prompts": [], "sampling_params": params, "batch_metadata": about}
    assert asyncio.run(capped.generate(batch)) == "output"


def test_the_cap_of_each_step():
    inner = generator()
    capped = CappedGenerator(inner, LengthSchedule("cosine", 16, 8, 4))
    for step in (1, 2, 3, 4, 5):
        ask(capped, step)
    ask(capped, 3, "eval")
    assert [row["max_tokens"] for row in inner.seen] == [16, 12, 8, 12, 16, 16]
    assert capped.caps == [16, 12, 8, 12, 16] and inner.seen[1]["temperature"] == 0.9
    assert capped.generator_cfg is inner.generator_cfg
    with pytest.raises(ValueError, match="sampling_params: got none"):
        ask(capped, 1, sampling=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_params": SimpleNamespace(max_generate_length=15)}, "got 15.*16"),
        ({"apply_overlong_filtering": True}, "apply_overlong_filtering"),
        ({"max_turns": 2}, "max_turns: got 2"),
    ],
)
def test_capped_generator_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        CappedGenerator(generator(**changes), LengthSchedule("cosine", 16, 8, 4))


def test_the_fields_it_reads_are_skyrls(theirs):
    from skyrl.train.config.config import GeneratorConfig

    made = GeneratorConfig()
    for name in ("zero_reward_on_non_stop", "apply_overlong_filtering", "max_turns"):
        assert hasattr(made, name)
    assert made.sampling_params.max_generate_length > 0
