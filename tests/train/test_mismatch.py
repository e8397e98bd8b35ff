"""Sampler against trainer: the metrics and the correction are those of policy_loss, by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from siri_kernels import policy_loss
from siri_kernels.policy_loss.types import RolloutCorrection
from siri_train.config.base import ConfigError
from siri_train.config.loss import LossConfig
from siri_train.config.recipe import parse_config
from siri_train.config.run import TrainConfig
from siri_train.model.packing import Sample, micro_batches
from siri_train.model.policy import Policy
from siri_train.rollout.transformers_engine import TransformersEngine
from siri_train.train import train, update
from siri_train.trainer.update import score
from tests.train.test_step import samples

CORRECTIONS = {
    "tis": RolloutCorrection("truncate", "token", high=2.0),
    "mis": RolloutCorrection("mask", "sequence", high=3.0),
    "icepop": RolloutCorrection("mask", "token", high=5.0, low=0.5),
    "{mode: truncate, level: sequence, high: 1.5, low: 0.5}": RolloutCorrection(
        "truncate", "sequence", high=1.5, low=0.5
    ),
    "{mode: reject, level: geometric, high: 1.2, low: 0.8}": RolloutCorrection(
        "reject", "geometric", high=1.2, low=0.8
    ),
}


def loss_config(correction: str | None) -> LossConfig:
    wanted = [] if correction is None else [f"loss.rollout_correction={correction}"]
    return parse_config({}, ["loss.old_logprobs=recompute", *wanted]).loss


def mismatched(policy: Policy, apart: float) -> list[Sample]:
    """Samples whose sampler was another policy, as they are after ``score``."""
    batch = samples(24, seed=3)
    score(policy, batch, 1024, 1.0)
    draw = torch.Generator().manual_seed(0)
    for s in batch:
        noise = apart * torch.randn(len(s.response_ids), generator=draw)
        s.rollout_logprobs = [min(a + b, 0.0) for a, b in zip(s.old_logprobs, noise, strict=True)]
    return batch


def by_hand(policy: Policy, batch: list[Sample], correction: RolloutCorrection | None) -> Any:
    """Loss, metrics and gradient of one call of policy_loss over the whole step in one row."""
    model = copy.deepcopy(policy.model).train()
    own = Policy(model, policy.tokenizer, policy.eos_ids, None)
    used = [s for s in batch if s.advantage != 0]
    (row,) = micro_batches(used, 100_000, policy.device)
    ordered = [used[i] for i in row.order]

    def flat(name: str) -> Tensor:
        return torch.tensor([v for s in ordered for v in getattr(s, name)])

    logprobs, entropy = own.token_logprobs(row)
    result = policy_loss(
        logprobs,
        flat("old_logprobs"),
        torch.tensor([s.advantage for s in ordered]),
        row.cu_seqlens,
        denominator=float(sum(len(s.response_ids) for s in batch)),
        rollout_logprobs=flat("rollout_logprobs"),
        rollout_correction=correction,
        entropy=entropy,
    )
    result.loss.backward()
    largest = (flat("old_logprobs") - flat("rollout_logprobs")).max().exp()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return float(result.loss.detach()), result.metrics, gradient, float(largest)


@pytest.mark.parametrize("correction", [None, *CORRECTIONS])
@pytest.mark.parametrize("budget", [100_000, 40])
def test_numbers_are_those_of_policy_loss(
    policy: Policy, correction: str | None, budget: int
) -> None:
    batch = mismatched(policy, 0.6)
    known = None if correction is None else CORRECTIONS[correction]
    loss, metrics, gradient, largest = by_hand(policy, batch, known)
    before = torch.cat([p.detach().flatten() for p in policy.model.parameters()]).clone()
    stats = update(
        policy, torch.optim.SGD(policy.model.parameters(), lr=1.0), batch,
        TrainConfig(mini_batches=1, token_budget=budget, grad_clip=1e9), loss_config(correction),
        temperature=1.0, constant_length=24, seed=0,
    )  # fmt: skip
    after = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    assert (before - after - gradient).norm() < 1e-4 * gradient.norm()
    assert stats.loss == pytest.approx(loss, abs=1e-6)
    assert stats.rollout_kl == pytest.approx(float(metrics["rollout_kl"]), rel=1e-4)
    assert stats.means["rollout_weight_mean"] == pytest.approx(
        float(metrics["rollout_weight_mean"]), rel=1e-4
    )
    assert stats.rollout_ratio_max == pytest.approx(largest, rel=1e-4)
    if known is not None:  # and they are not those without a correction
        plain = by_hand(policy, batch, None)[2]
        assert (gradient - plain).norm() > 1e-2 * plain.norm()


def test_a_log_prob_that_was_not_reported_weighs_one(policy: Policy) -> None:
    batch = mismatched(policy, 0.0)
    batch[0].rollout_logprobs = [float("nan")] * len(batch[0].response_ids)
    stats = update(
        policy, torch.optim.SGD(policy.model.parameters(), lr=0.0), batch,
        TrainConfig(mini_batches=1), loss_config("tis"),
        temperature=1.0, constant_length=24, seed=0,
    )  # fmt: skip
    assert stats.means["rollout_weight_mean"] == pytest.approx(1.0)
    assert stats.rollout_ratio_max == pytest.approx(1.0)
    assert stats.rollout_kl == pytest.approx(0.0, abs=1e-9)


@pytest.mark.costly
@pytest.mark.parametrize("old", ["rollout", "recompute"])
def test_the_mismatch_is_logged_each_step(
    tiny: Any, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that says 0.1 nats more than the trainer: KL exp(-.1) - 1 + .1 and ratio exp(-.1);
    the same whether the old log-probs are the sampler's or computed anew."""
    real = TransformersEngine.generate

    def off(*args: Any, **kwargs: Any) -> Any:
        groups = real(*args, **kwargs)
        for c in (c for group in groups for c in group):
            c.logprobs = [value + 0.1 for value in c.logprobs]
        return groups

    monkeypatch.setattr(TransformersEngine, "generate", off)
    correction = ["loss.rollout_correction=tis"] if old == "recompute" else []
    run = train(
        tiny(
            f"loss.old_logprobs={old}", "rollout.probe.every=0", "train.steps=3",
            "loss.skip_zero_advantage=false", *correction,
        )
    )  # fmt: skip
    ratio = torch.tensor(-0.1).exp().item()
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        assert row["rollout_kl"] == pytest.approx(ratio - 1 + 0.1, rel=1e-2)
        assert row["rollout_ratio_max"] == pytest.approx(ratio, rel=1e-3)
        weight = row["rollout_weight_mean"]
        assert weight is None if old == "rollout" else weight == pytest.approx(ratio, rel=1e-3)
        assert row["probe_logprob_diff"] is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["loss.rollout_correction=tis"], "loss.old_logprobs=recompute"),
        (["loss.rollout_correction=tss"], "got 'tss'; takes tis, mis, icepop"),
        (["loss.rollout_correction={mode: cut}"], "truncate, mask, reject"),
        (["loss.rollout_correction={high: 1, low: 2}"], "low (2.0) must not exceed high (1.0)"),
        (["loss.rollout_correction={hgh: 1}"], "loss.rollout_correction.high"),
    ],
)
def test_what_cannot_be_corrected_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({}, overrides)
    assert expected in str(caught.value)


def test_a_named_correction_is_written_out_and_read_again() -> None:
    loss = loss_config("mis")
    assert loss.rollout_correction is not None
    assert loss.rollout_correction.build() == CORRECTIONS["mis"]
    assert LossConfig.model_validate(loss.model_dump(mode="json")) == loss
