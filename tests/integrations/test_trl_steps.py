"""What a run of TRL may change on its way, and what it logs: ours beside stock TRL."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainerCallback

from siri_train.schedule import LengthSchedule

trl = pytest.importorskip("trl", reason="TRL 1.16 is not installed (make test-peers)")
pytest.importorskip("datasets", reason="TRL's GRPOTrainer needs datasets")

from siri_kernels.integrations.trl import fused_lm_head  # noqa: E402
from siri_train.integrations.trl import SiriGRPOTrainer  # noqa: E402

from .test_trl import noisy_reward, recording, trainer_of  # noqa: E402

SHORT = {"max_steps": 4, "max_completion_length": 8}


def run(base, folder, callback=None, **options):
    """A recorded run of 4 steps; ours within ``fused_lm_head``."""
    torch.manual_seed(0)
    schedule = options.pop("schedule", None)
    trainer = trainer_of(recording(base), folder, noisy_reward, schedule, **{**SHORT, **options})
    if callback is not None:
        trainer.add_callback(callback(trainer))
    if base is SiriGRPOTrainer:
        with fused_lm_head():
            trainer.train()
    else:
        trainer.train()
    return trainer, [row for row in trainer.state.log_history if "loss" in row]


def both(tmp_path, callback=None, **options):
    """The two runs, their losses compared; returns what each logged."""
    stock, theirs = run(trl.GRPOTrainer, tmp_path / "stock", callback, **options)
    ours, mine = run(SiriGRPOTrainer, tmp_path / "ours", callback, **options)
    assert max(map(abs, stock.losses)) > 1e-4
    assert ours.losses == pytest.approx(stock.losses, rel=1e-3, abs=2e-6)
    for row, other in zip(mine, theirs, strict=True):
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=5e-3)
    return mine, theirs


def annealing(names, values, where="trainer"):
    """A callback that sets attributes of the trainer (or arguments) at each step."""

    class Annealing(TrainerCallback):
        def __init__(self, trainer):
            self.trainer = trainer

        def on_step_begin(self, args, state, control, **kwargs):
            place = self.trainer if where == "trainer" else args
            for name in names:
                setattr(place, name, values[state.global_step % len(values)])

    return Annealing


# name of TRL's attribute or argument -> options of the run, values of its steps
ANNEALED = {
    "beta": ({"beta": 0.2}, [0.2, 0.1, 0.05]),
    "epsilon_low": ({}, [0.2, 0.02, 0.001]),
    "epsilon_high": ({}, [0.2, 0.02, 0.001]),
    "loss_type": ({}, ["dapo", "cispo", "dr_grpo", "sapo"]),
    "importance_sampling_level": ({"loss_type": "grpo"}, ["token", "sequence"]),
    "scale_rewards": ({}, ["group", "batch", "none"]),
    "entropy_coef": ({"entropy_coef": 0.1}, [0.1, 0.01, 0.001]),
    "off_policy_mask_threshold": ({"off_policy_mask_threshold": 9.0}, [9.0, 1e-4]),
}


@pytest.mark.parametrize("name", ANNEALED)
def test_annealed_attributes_are_followed_as_by_trl(tmp_path, name):
    options, values = ANNEALED[name]
    both(tmp_path, annealing([name], values), **{"learning_rate": 2e-3, **options})


@pytest.mark.parametrize("name", ["delta", "use_bias_correction_kl"])
def test_annealed_arguments_that_trl_reads_at_each_step(tmp_path, name):
    values = {"delta": [None, 1.21], "use_bias_correction_kl": [True, False]}[name]
    options = {"beta": 0.2} if name == "use_bias_correction_kl" else {}
    both(tmp_path, annealing([name], values, "args"), learning_rate=2e-3, **options)


@pytest.mark.parametrize(
    ("argument", "attributes"),
    [
        ("beta", ["beta"]),
        ("epsilon", ["epsilon_low", "epsilon_high"]),
        ("epsilon_high", ["epsilon_high"]),
        ("loss_type", ["loss_type"]),
    ],
)
def test_annealed_arguments_that_trl_copies_act_as_the_attributes_do(
    tmp_path, argument, attributes
):
    options, values = ANNEALED[attributes[0]]
    options = {**options, "learning_rate": 2e-3}
    one, _ = run(SiriGRPOTrainer, tmp_path / "a", annealing([argument], values, "args"), **options)
    two, _ = run(SiriGRPOTrainer, tmp_path / "b", annealing(attributes, values), **options)
    still, _ = run(SiriGRPOTrainer, tmp_path / "c", **options)
    assert one.losses == two.losses != still.losses


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loss_type", "ppo", "loss_type must be one of"),
        ("loss_type", "dr_grpo", "'dr_grpo' with a cap that moves"),
        ("top_entropy_quantile", 0.5, "top_entropy_quantile: got 0.5.*set top_entropy_quantile"),
        ("beta", 0.1, "beta: got 0.1, raised from 0.*start with a small beta"),
    ],
)
def test_a_change_that_is_not_taken_is_refused_when_it_is_made(tmp_path, name, value, message):
    schedule = LengthSchedule("cosine", 8, 4, 4)
    with pytest.raises(ValueError, match=message):
        run(SiriGRPOTrainer, tmp_path, annealing([name], [value]), schedule=schedule)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("trainer", "temperature", 0.5),
        ("args", "temperature", 0.5),
        ("args", "top_p", 0.9),
        ("args", "num_iterations", 3),
        ("args", "max_completion_length", 4),
    ],
)
def test_what_trl_has_built_in_cannot_change_during_a_run(tmp_path, where, name, value):
    """TRL samples and scores with the value that it began with: nothing would follow."""
    message = f"{name}: got {value} .*during the run, it was .*build another trainer"
    with pytest.raises(ValueError, match=message):
        run(SiriGRPOTrainer, tmp_path, annealing([name], [value], where))


def test_the_advice_on_beta_helps(tmp_path):
    both(tmp_path, annealing(["beta"], [1e-6, 0.1]), beta=1e-6)


METRICS = {
    "token": {"entropy_coef": 0.01, "learning_rate": 2e-3, "epsilon": 0.02},
    "sequence": {
        "importance_sampling_level": "sequence", "epsilon": 0.002, "learning_rate": 2e-3,
        "loss_type": "grpo", "entropy_coef": 0.01,
    },
    "sequence-kl": {"importance_sampling_level": "sequence", "epsilon": 0.002, "beta": 0.1},
    "delta": {"delta": 1.25, "learning_rate": 2e-3},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.05, "learning_rate": 2e-3},
    "cispo-sequence": {
        "loss_type": "cispo", "epsilon_high": 1.001, "importance_sampling_level": "sequence",
        "learning_rate": 2e-3,
    },
    "sapo": {"loss_type": "sapo", "entropy_coef": 0.01},
    "vespo": {"loss_type": "vespo", "learning_rate": 2e-3},
    "luspo": {"loss_type": "luspo", "entropy_coef": 0.01},
    "bnpo": {"loss_type": "bnpo", "entropy_coef": 0.01},
    "dr_grpo": {"loss_type": "dr_grpo", "entropy_coef": 0.01},
}  # fmt: skip
# These describe the run, not the loss.
TIMES = ("step_time", "epoch", "learning_rate", "grad_norm", "loss", "num_tokens")


@pytest.mark.parametrize("form", METRICS)
def test_every_metric_of_trl_is_logged_with_its_value(tmp_path, form):
    mine, theirs = both(tmp_path, **METRICS[form])
    for row, other in zip(mine, theirs, strict=True):
        assert set(other) <= set(row)
        assert {name.split("/")[0] for name in set(row) - set(other)} == {"siri"}
        for name in set(other) - set(TIMES):
            assert row[name] == pytest.approx(other[name], rel=2e-3, abs=2e-3, nan_ok=True), name
    if "clip_ratio/region_mean" in theirs[0] and form not in ("luspo", "bnpo", "dr_grpo"):
        assert max(row["clip_ratio/region_mean"] for row in theirs) > 0
        assert max(row["clip_ratio/high_max"] for row in theirs) > 0


def moe():
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, num_experts=4,
            num_experts_per_tok=2, head_dim=8,
        )
    )  # fmt: skip


@pytest.mark.parametrize("coefficient", [None, 0.0, 0.5])
@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
def test_the_auxiliary_loss_of_a_mixture_of_experts(tmp_path, coefficient, loss_type):
    """None is the model's own coefficient, which is TRL's default."""
    rows = []
    for base in (trl.GRPOTrainer, SiriGRPOTrainer):
        options = {"model": moe(), "loss_type": loss_type, "learning_rate": 2e-3}
        rows.append(
            run(base, tmp_path / base.__name__, router_aux_loss_coef=coefficient, **options)
        )
    (stock, theirs), (ours, mine) = rows
    assert ours.losses == pytest.approx(stock.losses, rel=1e-3, abs=2e-6)
    for row, other in zip(mine, theirs, strict=True):
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=5e-3)
        assert ("aux_loss" in other) == (coefficient != 0.0) == ("aux_loss" in row)
        if coefficient != 0.0:
            assert row["aux_loss"] == pytest.approx(other["aux_loss"], rel=1e-3)
