"""The update: one gradient however the step is split, and no computation without effect."""

from __future__ import annotations

import copy
import itertools
import random

import pytest
import torch

from siri_train.config.loss import LossConfig
from siri_train.config.run import TrainConfig
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy
from siri_train.train import update
from siri_train.trainer.optimizer import make_optimizer
from siri_train.trainer.update import score


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [
        Sample(
            [1, *(rng.randrange(10, 37) for _ in range(rng.randrange(2, 8))), 3],
            [rng.randrange(4, 37) for _ in range(rng.randrange(1, 12))],
            advantage=rng.choice([-1.2, -0.3, 0.0, 0.7, 1.5]),
        )
        for _ in range(count)
    ]


def gradient(policy: Policy, batch: list[Sample], loss: LossConfig, budget: int) -> torch.Tensor:
    """What one update would change, as one vector (SGD with step 1 and no clipping)."""
    trial = copy.deepcopy(policy.model)
    own = Policy(trial, policy.tokenizer, policy.eos_ids, None)
    before = torch.cat([p.detach().flatten() for p in trial.parameters()]).clone()
    optimizer = torch.optim.SGD(trial.parameters(), lr=1.0)
    config = TrainConfig(mini_batches=1, token_budget=budget, grad_clip=1e9)
    update(own, optimizer, batch, config, loss, temperature=1.0, constant_length=24, seed=0)
    return torch.cat([p.detach().flatten() for p in trial.parameters()]) - before


@pytest.mark.parametrize(
    "aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum-norm"]
)
@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
def test_gradient_does_not_depend_on_how_the_step_is_split(
    policy: Policy, aggregation: str, entropy_coef: float
) -> None:
    batch = samples(24)
    score(policy, batch, 1024, 1.0)
    loss = LossConfig(aggregation=aggregation, entropy_coef=entropy_coef)
    whole = gradient(policy, batch, loss, budget=4096)
    assert whole.norm() > 1e-3
    for budget in (24, 60, 200):
        split = gradient(policy, batch, loss, budget)
        assert (split - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("mini_batches", [1, 2, 5])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "token-sum-norm"])
def test_updates_are_those_of_the_formulas_written_out(
    policy: Policy, aggregation: str, mini_batches: int
) -> None:
    """Sequence by sequence in float64, from logits: every mini-batch has its own denominator, over
    all of its sequences, and starts from the weights that the one before left."""
    batch = samples(24, seed=3)
    score(policy, batch, 1024, 0.8)
    model = copy.deepcopy(policy.model).double()
    order = list(range(24))
    random.Random(7).shuffle(order)
    bounds = [24 * n // mini_batches for n in range(mini_batches + 1)]
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    clipped = 0
    for first, last in itertools.pairwise(bounds):
        mini = [batch[i] for i in order[first:last]]
        tokens = sum(len(s.response_ids) for s in mini)
        total = torch.zeros((), dtype=torch.float64)
        for s in mini:
            ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
            logits = model(input_ids=ids).logits[0, len(s.prompt_ids) - 1 : -1] / 0.8
            taken = logits.log_softmax(-1).gather(1, torch.tensor(s.response_ids)[:, None])[:, 0]
            ratio = (taken - torch.tensor(s.old_logprobs, dtype=torch.float64)).exp()
            inside = ratio.clamp(0.8, 1.28)
            clipped += int((inside * s.advantage < ratio * s.advantage).sum())
            surrogate = torch.minimum(ratio * s.advantage, inside * s.advantage)
            if aggregation == "token-mean":
                total = total - surrogate.sum() / tokens
            elif aggregation == "seq-mean-token-mean":
                total = total - surrogate.mean() / len(mini)
            else:
                total = total - surrogate.sum() / (len(mini) * 24)
        gradients = torch.autograd.grad(total, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.7 * g
    want = torch.cat([p.detach().flatten() for p in model.parameters()])

    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.7)
    config = TrainConfig(mini_batches=mini_batches, token_budget=60, grad_clip=1e9, tail=0.0)
    loss = LossConfig(aggregation=aggregation)
    update(policy, optimizer, batch, config, loss, temperature=0.8, constant_length=24, seed=7)
    got = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    assert (clipped > 0) == (mini_batches > 1)  # with one update the clip can never act
    assert (got - want).norm() < 1e-5 * (want - start).norm()


def test_zero_advantage_sequences_cost_nothing_and_stay_in_denominators(policy: Policy) -> None:
    batch = samples(24)
    score(policy, batch, 1024, 1.0)
    skipped = gradient(policy, batch, LossConfig(), 4096)
    computed = gradient(policy, batch, LossConfig(skip_zero_advantage=False), 4096)
    assert (skipped - computed).norm() < 1e-5 * computed.norm()
    needed = [s for s in batch if s.advantage != 0]
    alone = gradient(policy, needed, LossConfig(), 4096)
    share = sum(len(s.response_ids) for s in needed) / sum(len(s.response_ids) for s in batch)
    torch.testing.assert_close(skipped, alone * share, atol=1e-6, rtol=1e-3)


def test_an_entropy_term_takes_all_sequences(policy: Policy) -> None:
    batch = samples(24)
    score(policy, batch, 1024, 1.0)
    every = sum(len(s.response_ids) for s in batch)
    needed = sum(len(s.response_ids) for s in batch if s.advantage)
    for loss, want in ((LossConfig(), needed), (LossConfig(entropy_coef=0.01), every)):
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
        stats = update(
            policy, optimizer, batch, TrainConfig(mini_batches=3, token_budget=200), loss,
            temperature=1.0, constant_length=24, seed=0,
        )  # fmt: skip
        assert stats.trained_tokens == want
    assert needed < every


def test_scoring_replaces_what_the_sampler_said(policy: Policy) -> None:
    batch = samples(9, seed=2)
    for s in batch:
        s.old_logprobs = [-50.0] * len(s.response_ids)
    score(policy, batch, 60, 0.7)
    for s in batch:
        logits = policy.model(input_ids=torch.tensor([[*s.prompt_ids, *s.response_ids]])).logits[0]
        logps = (logits[len(s.prompt_ids) - 1 : -1].double() / 0.7).log_softmax(-1)
        want = logps.gather(1, torch.tensor(s.response_ids)[:, None])[:, 0]
        assert list(s.old_logprobs) == pytest.approx(want.tolist(), abs=1e-5)


def test_first_update_is_on_policy_and_reports_no_drift(policy: Policy) -> None:
    batch = samples(16)
    score(policy, batch, 256, 1.0)
    config = TrainConfig(mini_batches=2, token_budget=1024, lr=1e-2)
    stats = update(
        policy, make_optimizer(policy.model, config), batch, config, LossConfig(),
        temperature=1.0, constant_length=24, seed=0,
    )  # fmt: skip
    assert abs(stats.rollout_kl or 0.0) < 1e-5
    assert stats.ratio_max is not None and stats.ratio_max > 1.0  # the second update is off-policy
    assert stats.grad_norm is not None and stats.grad_norm > 0
    assert stats.trained_tokens == sum(len(s.response_ids) for s in batch if s.advantage != 0)


def test_update_raises_the_probability_of_rewarded_responses(policy: Policy) -> None:
    batch = samples(16)
    score(policy, batch, 1024, 1.0)
    before = [sum(s.old_logprobs) for s in batch]
    config = TrainConfig(mini_batches=1, token_budget=1024, lr=3e-3)
    optimizer = make_optimizer(policy.model, config)
    for _ in range(5):
        update(
            policy,
            optimizer,
            batch,
            config,
            LossConfig(),
            temperature=1.0,
            constant_length=24,
            seed=0,
        )
    score(policy, batch, 1024, 1.0)
    moved = [
        (sum(s.old_logprobs) - old) * s.advantage
        for s, old in zip(batch, before, strict=True)
        if s.advantage
    ]
    assert sum(moved) > 0


def test_no_signal_changes_nothing(policy: Policy) -> None:
    batch = [Sample(s.prompt_ids, s.response_ids) for s in samples(8)]
    score(policy, batch, 1024, 1.0)
    before = copy.deepcopy(policy.model.state_dict())
    config = TrainConfig(mini_batches=2, token_budget=1024, lr=1.0)
    stats = update(
        policy, make_optimizer(policy.model, config), batch, config, LossConfig(),
        temperature=1.0, constant_length=24, seed=0,
    )  # fmt: skip
    assert stats.grad_norm is None and stats.trained_tokens == 0 and stats.loss == 0
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def test_infinite_gradient_skips_the_update(policy: Policy) -> None:
    batch = samples(8)
    score(policy, batch, 1024, 1.0)
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("inf")
    before = policy.model.model.layers[0].mlp.up_proj.weight.clone()
    config = TrainConfig(mini_batches=1, token_budget=1024)
    stats = update(
        policy, make_optimizer(policy.model, config), batch, config, LossConfig(),
        temperature=1.0, constant_length=24, seed=0,
    )  # fmt: skip
    assert stats.skipped_updates == 1 and stats.grad_norm is None
    assert torch.equal(policy.model.model.layers[0].mlp.up_proj.weight, before)
