"""The optimiser: float32 masters, resumed to the bit; bad gradients; and the rehearsal."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from siri_train import train as loop
from siri_train.config.base import ConfigError
from siri_train.config.run import TrainConfig
from siri_train.model.policy import Policy
from siri_train.train import train
from siri_train.trainer import memory_check
from siri_train.trainer import optimizer as optimizer_module
from siri_train.trainer.optimizer import MasterAdamW, learning_rate, make_optimizer, step_if_finite
from siri_train.trainer.run import Run


def small(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    return model.to(dtype)


def drive(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int) -> None:
    """Gradients that depend on the step only, the same in every dtype."""
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(number)
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=generator).bfloat16()
            p.grad = gradient.to(p.dtype)
        optimizer.step()


def test_warm_up_is_linear_and_then_constant() -> None:
    config = TrainConfig(lr=1.0, lr_warmup_steps=4)
    assert [learning_rate(t, config) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(0, TrainConfig(lr=2.0)) == 2.0


@pytest.mark.draw(3, "runs")
def test_each_step_of_a_run_takes_its_learning_rate(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    made = loop.update

    def watch(policy: Policy, optimizer: torch.optim.Optimizer, *args: Any, **options: Any) -> Any:
        taken.append({group["lr"] for group in optimizer.param_groups})
        return made(policy, optimizer, *args, **options)

    monkeypatch.setattr(loop, "update", watch)
    run = train(tiny("train.steps=3", "train.lr=0.002", "train.lr_warmup_steps=2"))
    assert taken == [{0.001}, {0.002}, {0.002}]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.001, 0.002, 0.002]


@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_gradients_are_clipped_to_a_global_norm(bound: float) -> None:
    model = small(torch.float32)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    norm = step_if_finite(torch.optim.SGD(model.parameters(), lr=1.0), bound)
    assert norm == pytest.approx(float(gradient.norm()))  # the one before
    moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    want = gradient * min(1.0, bound / norm)
    torch.testing.assert_close(moved, want, rtol=1e-4, atol=1e-6)


def test_weight_decay_is_for_matrices() -> None:
    optimizer = make_optimizer(small(torch.float32), TrainConfig(weight_decay=0.3))
    decays = [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in optimizer.param_groups]
    assert decays == [(0.3, {2}), (0.0, {1})]
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["fused"] for group in optimizer.param_groups)


def test_master_weights_follow_float32_where_bfloat16_stands_still() -> None:
    config = TrainConfig(lr=1e-6, weight_decay=0.1)
    low, high, bare = small(torch.bfloat16), small(torch.float32), small(torch.bfloat16)
    masters = make_optimizer(low, config)
    assert isinstance(masters, MasterAdamW)
    drive(low, masters, 400, 0)
    drive(high, make_optimizer(high, config), 400, 0)
    without = config.model_copy(update={"master_weights": False})
    drive(bare, make_optimizer(bare, without), 400, 0)
    moved = torch.cat([(p - q).flatten() for p, q in zip(
        high.parameters(), small(torch.float32).parameters(), strict=True
    )])  # fmt: skip
    kept = torch.cat([masters.state[p]["master"].flatten() for p in low.parameters()])
    want = torch.cat([p.detach().flatten() for p in high.parameters()])
    assert (kept - want).norm() < 1e-3 * moved.norm()  # float32 rounding of weights near 0.2
    for p, q in zip(low.parameters(), high.parameters(), strict=True):
        assert torch.equal(p, q.bfloat16()) or (p - q).abs().max() <= 2**-8 * q.abs().max()
        assert p.dtype == torch.bfloat16
    # Without them hardly a weight has moved.
    still = [
        (p == q).float().mean()
        for p, q in zip(bare.parameters(), small(torch.bfloat16).parameters(), strict=True)
    ]
    assert min(still) > 0.9


def test_masters_are_stepped_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many gradients are there in float32 at a time; the weights are the same."""
    whole, cut = small(torch.bfloat16), small(torch.bfloat16)
    drive(whole, make_optimizer(whole, TrainConfig(lr=1e-3)), 3, 0)
    sizes = []
    real = optimizer_module.adamw

    def counted(masters: list[torch.Tensor], *args: Any, **options: Any) -> None:
        sizes.append(sum(m.numel() for m in masters))
        real(masters, *args, **options)

    monkeypatch.setattr(optimizer_module, "PIECE", 150)  # of 128 + 64 and 16 + 4
    monkeypatch.setattr(optimizer_module, "adamw", counted)
    drive(cut, make_optimizer(cut, TrainConfig(lr=1e-3)), 3, 0)
    assert sizes == [128, 64, 20] * 3
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), cut.parameters(), strict=True))


def test_master_weights_resume_to_the_bit() -> None:
    config = TrainConfig(lr=1e-4)
    whole = small(torch.bfloat16)
    optimizer = make_optimizer(whole, config)
    drive(whole, optimizer, 5, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = copy.deepcopy(whole)
    drive(whole, optimizer, 5, 5)
    again = make_optimizer(resumed, config)
    again.load_state_dict(saved)
    drive(resumed, again, 5, 5)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["master"], again.state[q]["master"])
        assert again.state[q]["exp_avg"].dtype == torch.float32


@pytest.mark.costly
@pytest.mark.draw(3, "runs")
def test_a_bfloat16_run_resumes_to_the_bit(tiny: Any, tmp_path: Path) -> None:
    recipe = ("model.dtype=bfloat16", "train.lr=1e-4")
    train(tiny(*recipe, f"output={tmp_path / 'whole'}"))
    train(tiny(*recipe, f"output={tmp_path / 'cut'}", "train.steps=2"))
    train(tiny(*recipe, f"output={tmp_path / 'cut'}"))
    states = [
        torch.load(tmp_path / name / "checkpoints/step_000004/trainer_state.pt", weights_only=True)
        for name in ("whole", "cut")
    ]
    for number, state in states[0]["optimizer"]["state"].items():
        assert state["master"].dtype == torch.float32
        for key, value in state.items():
            assert torch.equal(value, states[1]["optimizer"]["state"][number][key]), key


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_changes_nothing(bad: float) -> None:
    model = small(torch.float32)
    optimizer = make_optimizer(model, TrainConfig(lr=0.1))
    drive(model, optimizer, 2, 0)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[1].bias.grad[2] = bad  # type: ignore[union-attr, index]
    assert step_if_finite(optimizer, 1.0) is None
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(v, before[1]["state"][number][k]) for k, v in state.items())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    norm = step_if_finite(optimizer, 1.0)
    count = sum(p.numel() for p in model.parameters())
    assert norm == pytest.approx(count**0.5)
    assert not torch.equal(model[0].weight, before[0]["0.weight"])


@pytest.mark.draw(3, "runs")
def test_skipped_updates_are_reported(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from siri_train import train as loop

    made = loop.step_if_finite

    def spoil(optimizer: torch.optim.Optimizer, max_norm: float) -> float | None:
        optimizer.param_groups[0]["params"][0].grad[0] = float("nan")
        return made(optimizer, max_norm)

    monkeypatch.setattr(loop, "step_if_finite", spoil)
    run = train(tiny("train.steps=1"))
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert row["skipped_updates"] == 2 and row["grad_norm"] is None
    (alarm,) = [json.loads(line) for line in (run / "alarms.jsonl").read_text().splitlines()]
    assert alarm["alarm"] == "non-finite-gradient" and alarm["value"] == 2


@pytest.mark.draw(3, "runs")
def test_the_rehearsal_is_the_longest_row_and_changes_nothing(
    tiny: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("train.token_budget=300")  # sequences of 24 + 56: three, and 60 tokens
    assert [s.length for s in memory_check.longest_samples(config)] == [80, 80, 80, 60]
    seen = []
    forward = Policy.token_logprobs

    def watch(self: Policy, batch: Any, **options: Any) -> Any:
        seen.append(batch.input_ids.numel())
        return forward(self, batch, **options)

    monkeypatch.setattr(Policy, "token_logprobs", watch)
    optimizer = make_optimizer(policy.model, config.train)
    before, state = copy.deepcopy(policy.model.state_dict()), torch.get_rng_state()
    memory_check.rehearse(policy, optimizer, config)
    assert seen == [300, 300]  # the second on top of the first one's gradients
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and not optimizer.state
    assert all(p.grad is None for p in policy.model.parameters())


@pytest.mark.draw(3, "runs")
@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["train.token_budget=1024"], "train.token_budget to 512 (it is 1024; 80, one sequence"),
        (["train.token_budget=80"], "model.gradient_checkpointing=true"),
        (
            ["train.token_budget=80", "model.gradient_checkpointing=true"],
            "distributed.compute_dtype=bfloat16",
        ),
        (
            ["train.token_budget=80", "model.gradient_checkpointing=true", "model.dtype=bfloat16"],
            "distributed.offload=true",
        ),
    ],
)
@pytest.mark.parametrize("cpu", [False, True])
def test_out_of_memory_names_the_key_before_the_first_step(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, overrides: list[str], advice: str, cpu: bool
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        if cpu:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(Policy, "token_logprobs", fail)
    config = tiny("train.rehearse=always", *overrides)
    with pytest.raises(ConfigError) as caught:
        Run.open(config)
    assert advice in str(caught.value) and "memory" in str(caught.value)
    assert not (config.run_dir / "metrics.jsonl").exists()
    # The same in the middle of a run, which does not come with a rehearsal on a CPU.
    for probe, what in ((1, "the sync probe"), (0, "the update of step 0")):
        with pytest.raises(ConfigError, match=f"{what} does not fit"):
            train(tiny("eval.at_start=false", f"rollout.probe.every={probe}", *overrides))
    # Other errors stay what they are.
    monkeypatch.setattr(Policy, "token_logprobs", lambda *_, **__: 1 + "x")  # type: ignore[operator]
    with pytest.raises(TypeError):
        Run.open(config)
