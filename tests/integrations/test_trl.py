"""Stock TRL against TRL with our head, advantages, loss and cap; a real trainer, real rollouts."""

from __future__ import annotations

import inspect

import pytest
import torch

from siri_train.data.demo_task.questions import questions
from siri_train.model.demo_model import START_FOLDER
from siri_train.rewards import ExactVerifier
from siri_train.schedule import LengthSchedule

trl = pytest.importorskip("trl", reason="TRL 1.16 is not installed (make test-peers)")
datasets = pytest.importorskip("datasets", reason="TRL's GRPOTrainer needs datasets")

import trl.trainer.utils as trl_utils  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from siri_kernels.integrations.trl import FusedHead, fused_lm_head  # noqa: E402
from siri_train.integrations.trl import (  # noqa: E402
    SiriGRPOTrainer,
    SiriLengthCallback,
    length_capped_reward,
)

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]


def recording(base):
    """``base`` that keeps every loss and every log-prob tensor of its training steps."""

    class Recording(base):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            self.losses.append(loss.item())
            return loss

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            self.logprobs.append(out[0].detach().clone())
            return out

    Recording.losses, Recording.logprobs = [], []
    return Recording


def trainer_of(base, folder, reward=None, schedule=None, model=None, **options):
    tokenizer = AutoTokenizer.from_pretrained(START_FOLDER)
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(START_FOLDER)
    rows = questions(32, seed=3)
    data = datasets.Dataset.from_dict(
        {"prompt": [q.prompt for q in rows], "answer": [q.answer for q in rows]}
    )
    settings = {
        "max_completion_length": 24, "num_generations": 4, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "num_iterations": 2, "learning_rate": 2e-4,
        "max_steps": 20, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "seed": 7,
        "lr_scheduler_type": "constant", "disable_tqdm": True, "temperature": 0.9,
    }  # fmt: skip
    args = trl.GRPOConfig(output_dir=str(folder), **{**settings, **options})
    extra = {} if schedule is None else {"length_schedule": schedule}
    if reward is None:
        reward = length_capped_reward(
            tokenizer.eos_token_id, verifier=ExactVerifier(), think="optional"
        )
    return base(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        **extra,
    )


def noisy_reward(completion_ids, **_):
    """Different in every group, and only of the ids: both trainers get the same."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def run(base, folder, fused, **options):
    torch.manual_seed(0)
    trainer = trainer_of(recording(base), folder, reward=noisy_reward, **options)
    if fused:
        with fused_lm_head() as head:
            trainer.train()
        assert head.calls >= len(trainer.logprobs) > 0 and head.rows > 0
    else:
        trainer.train()
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    return trainer, norms


@pytest.mark.parametrize(
    ("loss_type", "level"), [*((name, "token") for name in LOSSES), ("luspo", "sequence")]
)
def test_twenty_steps_equal_stock_trl(tmp_path, loss_type, level):
    """Two updates a rollout, so that ratios leave 1; two micro-batches an update."""
    options = {"loss_type": loss_type, "epsilon_high": 1.1 if loss_type == "cispo" else 0.05}
    options |= {"epsilon": 0.05, "importance_sampling_level": level}
    stock, want = run(trl.GRPOTrainer, tmp_path / "stock", False, **options)
    ours, got = run(SiriGRPOTrainer, tmp_path / "ours", True, **options)
    assert len(want) == 20 and len(stock.losses) == 40
    assert max(map(abs, stock.losses)) > 1e-3 and min(want) > 1e-4
    assert ours.losses == pytest.approx(stock.losses, rel=1e-3, abs=2e-6)
    assert got == pytest.approx(want, rel=2e-3)
    for a, b in zip(ours.logprobs, stock.logprobs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    logged = [row for row in stock.state.log_history if "loss" in row]
    mine = [row for row in ours.state.log_history if "loss" in row]
    for name in ("entropy", "clip_ratio/region_mean", "cispo_clip_ratio"):
        if name in logged[0]:
            theirs = [row[name] for row in logged]
            assert [row[name] for row in mine] == pytest.approx(theirs, abs=2e-3)
    clipped = {"dapo": "clip_ratio/region_mean", "cispo": "cispo_clip_ratio"}.get(loss_type)
    if clipped is not None:
        assert max(row[clipped] for row in logged) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.1},
        {"beta": 0.1, "use_bias_correction_kl": True},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"importance_sampling_level": "sequence", "beta": 0.1},  # TRL's default corrects the KL
        {"importance_sampling_level": "sequence", "beta": 0.1, "loss_type": "grpo"},
        {"importance_sampling_level": "sequence", "beta": 0.1, "use_bias_correction_kl": False},
        {"delta": 1.5, "scale_rewards": "batch"},
        {"off_policy_mask_threshold": 0.001, "scale_rewards": "none"},
        {"entropy_coef": 0.01},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_equal_stock_trl(tmp_path, options):
    options = {"max_steps": 6, **options}
    stock, want = run(trl.GRPOTrainer, tmp_path / "stock", False, **options)
    ours, got = run(SiriGRPOTrainer, tmp_path / "ours", True, **options)
    assert ours.losses == pytest.approx(stock.losses, rel=1e-3, abs=2e-6)
    assert got == pytest.approx(want, rel=2e-3)


@pytest.mark.parametrize("base", [trl.GRPOTrainer, SiriGRPOTrainer])
def test_caps_are_followed_exactly(tmp_path, base):
    schedule = LengthSchedule("cosine", 16, 6, 6)
    lengths = []

    def reward(completion_ids, **_):
        lengths.append(max(len(ids) for ids in completion_ids))
        return [float(len(ids) % 2) for ids in completion_ids]

    options = {"max_steps": 7, "num_iterations": 1, "generation_kwargs": {"min_new_tokens": 16}}
    options["max_completion_length"] = 16
    if base is SiriGRPOTrainer:
        trainer = trainer_of(base, tmp_path, reward, schedule, **options)
        callback = trainer.length_callback
    else:
        trainer = trainer_of(base, tmp_path, reward, **options)
        callback = SiriLengthCallback(schedule).bind(trainer)
    trainer.train()
    caps = [schedule(step) for step in range(7)]
    assert len(set(caps)) > 3 and callback.caps == caps
    assert lengths == caps
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["siri/cap"] for row in rows] == caps


def test_reward_by_end_token_not_by_length():
    reward = length_capped_reward([7, 9], verifier=ExactVerifier(), think="optional")
    logged = {}
    got = reward(
        completions=["\\boxed{4}", "\\boxed{4}", "\\boxed{5}", [{"content": "\\boxed{4}"}]],
        completion_ids=[[1, 2, 7], [1, 2, 3], [1, 2, 9], [9]],
        answer=["4"] * 4,
        log_metric=logged.__setitem__,
    )
    # The second was truncated after its box: graded, as in the paper, unless "zero" is set.
    assert got == [1.0, 1.0, 0.0, 1.0]
    assert logged == {
        "siri/truncated": 0.25,
        "siri/truncated_correct": 1.0,
        "siri/correct": 0.75,
    }
    strict = length_capped_reward(
        [7, 9], verifier=ExactVerifier(), think="optional", truncated="zero"
    )
    assert strict(completions=["\\boxed{4}"], completion_ids=[[1]], answer=["4"]) == [0.0]
    with pytest.raises(ValueError, match="answer_column: got 'answer'.*gold"):
        reward(completions=["x"], completion_ids=[[7]], gold=["4"])
    with pytest.raises(ValueError, match="end_token_ids"):
        length_capped_reward([], verifier=ExactVerifier())


def test_a_reward_that_reads_the_cap_is_refused_without_one():
    """When it is made, before anything is sampled."""
    options = {"verifier": ExactVerifier(), "think": "none", "options": {"buffer": 8}}
    with pytest.raises(ValueError, match="length: missing; the reward 'overlong' takes the step's"):
        length_capped_reward([7], function="overlong", **options)
    length = SiriLengthCallback(LengthSchedule("cosine", 16, 8, 4))
    length.caps.append(12)
    reward = length_capped_reward([7], function="overlong", length=length, **options)
    ids = [[1] * 3 + [7], [1] * 7 + [7], [1] * 12]
    got = reward(completions=["\\boxed{4}"] * 3, completion_ids=ids, answer=["4", "5", "4"])
    assert got == [1.0, -1.5, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dr_grpo"}, "loss_type: got 'dr_grpo' with a cap that moves"),
        ({"max_completion_length": 15}, "max_completion_length: got 15; takes at least.*16"),
        ({"mask_truncated_completions": True}, "mask_truncated_completions: got True"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation"),
        ({"delta": 1.1}, "delta must be at least"),
        ({"use_adaptive_entropy": True}, "use_adaptive_entropy.*its controller"),
    ],
)
def test_refuses_what_would_be_wrong(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(
            SiriGRPOTrainer, tmp_path, schedule=LengthSchedule("cosine", 16, 8, 4), **options
        )


def test_a_moving_cap_with_dr_grpo_is_refused_on_any_trainer(tmp_path):
    """The stock trainer too: the callback refuses when it is bound, before the first step."""
    schedule = LengthSchedule("cosine", 16, 8, 4)
    stock = trainer_of(trl.GRPOTrainer, tmp_path, loss_type="dr_grpo")
    with pytest.raises(ValueError, match="'dr_grpo' with a cap that moves.*dapo"):
        SiriLengthCallback(schedule).bind(stock)
    assert stock.max_completion_length == 24  # untouched
    SiriLengthCallback(LengthSchedule("cosine", 16, 16, 4)).bind(stock)  # it does not move


def test_dr_grpo_with_a_constant_cap_is_taken(tmp_path):
    schedule = LengthSchedule("constant", 16, 16, 4)
    trainer_of(SiriGRPOTrainer, tmp_path, schedule=schedule, loss_type="dr_grpo")


def test_unbound_callback_says_so():
    with pytest.raises(RuntimeError, match="bind"):
        SiriLengthCallback(LengthSchedule("cosine", 16, 8, 4)).on_step_begin(None, None, None)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_head_equals_trls_kernel(softcap, scale, bias):
    theirs = trl_utils._ChunkedLogProbFunction
    results = []
    hidden, weight = torch.randn(9, 16), torch.randn(37, 16)
    offset, targets = torch.randn(37) if bias else None, torch.randint(0, 37, (9,))
    upstream = torch.randn(2, 9)
    for head in (theirs, FusedHead(tail=0.0)):
        inputs = [x.clone().requires_grad_() for x in (hidden, weight, offset) if x is not None]
        b = inputs[2] if bias else None
        logps, entropy, *rest = head.apply(
            inputs[0], inputs[1], b, targets, 0.8, 256, softcap, scale, ("log_probs", "entropy")
        )
        assert len(rest) == 3
        grads = torch.autograd.grad((logps, entropy), inputs, list(upstream))
        results.append((logps, entropy, *grads))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 10.0])
@pytest.mark.parametrize("width", [64, 256])
def test_in_bfloat16_it_is_nearer_to_float64_than_trls(softcap, width):
    """TRL's kernel rounds logits to 16 bits, so that in TRL's default dtype the two differ."""
    hidden = torch.randn(40, width).bfloat16()
    weight = (torch.randn(4000, width) / width**0.5 * 2).bfloat16()
    targets = torch.randint(0, 4000, (40,))
    logits = hidden.double() @ weight.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = (logits / 0.9).log_softmax(-1)
    exact = logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    errors = []
    for head in (FusedHead(), trl_utils._ChunkedLogProbFunction):
        call = (hidden, weight, None, targets, 0.9, 256, softcap, 1.0, ("log_probs", "entropy"))
        got = head.apply(*call)
        errors.append(
            [float((a.double() - b).abs().max()) for a, b in zip(got, exact, strict=False)]
        )
    ours, theirs = errors
    assert max(ours) < 2e-5 and min(theirs) > 2e-3, errors


def test_block_puts_trls_kernel_back_and_takes_one_at_a_time():
    before = trl_utils._ChunkedLogProbFunction
    with pytest.raises(RuntimeError, match="open already"), fused_lm_head(), fused_lm_head():
        pass
    assert trl_utils._ChunkedLogProbFunction is before


@pytest.mark.parametrize("change", ["parameters", "values", "seam", "gone"])
def test_a_changed_contract_fails_loudly(monkeypatch, change):
    original = trl_utils._ChunkedLogProbFunction

    class Other(original):
        @staticmethod
        def forward(ctx, hidden, weight, targets):
            return None

    class Natural(original):
        @classmethod
        def apply(cls, hidden, weight, bias, targets, temperature, *rest):
            return original.apply(hidden, weight, bias, targets, 1.0, *rest)

    if change == "seam":
        monkeypatch.setattr(trl_utils, "add_fused_lm_head", lambda model: None)
    elif change == "gone":
        monkeypatch.delattr(trl_utils, "_ChunkedLogProbFunction")
    else:
        other = Other if change == "parameters" else Natural
        monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", other)
    with pytest.raises(RuntimeError, match="another kernel contract"), fused_lm_head():
        pass


def test_outputs_that_ours_does_not_give_are_refused():
    call = (torch.randn(2, 4), torch.randn(5, 4), None, torch.tensor([1, 2]), 1.0, 256)
    with pytest.raises(NotImplementedError, match="is_top1"):
        FusedHead().apply(*call, None, 1.0, ("log_probs", "is_top1"))
    with pytest.raises(ValueError, match="logit_scale"):
        FusedHead().apply(*call, None, 0.0, ("log_probs",))


def test_every_model_input_of_trl_is_passed_on():
    from siri_train.integrations.trl import _MODEL_INPUTS

    signature = inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies)
    names = set(signature.parameters) - {
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
        "compute_entropy", "compute_aux_loss",
    }  # fmt: skip
    assert names == set(_MODEL_INPUTS)


@pytest.mark.parametrize("options", [{}, {"screen": "int8"}, {"screen": "auto", "logprob_tol": 1}])
def test_a_screen_reaches_every_call_of_the_head(monkeypatch, options):
    import siri_kernels.integrations.trl as module

    seen, exact = [], module.linear_logprob

    def watch(*tensors, screen, logprob_tol, **rest):
        seen.append((screen, logprob_tol))
        return exact(*tensors, **rest)

    monkeypatch.setattr(module, "linear_logprob", watch)
    hidden, weight, targets = torch.randn(9, 16), torch.randn(37, 16), torch.randint(0, 37, (9,))
    call = (hidden, weight, None, targets, 0.8, 256, None, 1.0, ("log_probs", "entropy"))
    with fused_lm_head(**options) as head:
        assert seen.pop() == (None, 1e-4), "the comparison with TRL's kernel is exact"
        got = trl_utils._ChunkedLogProbFunction.apply(*call)
        assert seen == [(options.get("screen"), options.get("logprob_tol", 1e-4))]
        assert head.calls == 1
    for a, b in zip(got[:2], FusedHead().apply(*call)[:2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"screen": "int4"}, ValueError, "screen must be None, 'int8', 'fp8', 'auto'; got 'int4'"),
        ({"screen": "int8", "logprob_tol": 0}, ValueError, "logprob_tol must be"),
        ({"screen": "auto", "logprob_tol": "x"}, TypeError, "logprob_tol must be"),
    ],
)
def test_a_wrong_screen_is_refused_before_anything_is_replaced(options, error, message):
    before = trl_utils._ChunkedLogProbFunction
    with pytest.raises(error, match=f"fused_lm_head: {message}"), fused_lm_head(**options):
        pass
    assert trl_utils._ChunkedLogProbFunction is before
