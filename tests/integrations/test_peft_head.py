"""PEFT around a wrapped model, its adapters on the head too: log-probs are those of its logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from siri_kernels import LogprobHead

from ..kernels.test_wrap import V, batch, expected, make

peft = pytest.importorskip("peft", reason="peft is not installed; make test-peers installs it")

LORA = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def lora(**options):
    return peft.LoraConfig(**{**LORA, **options})


# Forms of the head that are taken: model family, PEFT's configuration.
TAKEN = {
    "no adapter on it": ("qwen2", lora()),
    "all-linear": ("qwen2", lora(target_modules="all-linear")),
    "LoRA": ("qwen2", lora(target_modules=["q_proj", "lm_head"])),
    "LoRA of a softcapped head": ("gemma2", lora(target_modules=["lm_head"])),
    "LoRA of a head with bias": ("phi", lora(target_modules=["lm_head"], bias="none")),
    "LoRA with biases": ("qwen2", lora(target_modules=["lm_head"], lora_bias=True)),
    "rank-stabilised LoRA": ("granite", lora(target_modules=["lm_head"], use_rslora=True)),
    "modules_to_save": ("qwen2", lora(modules_to_save=["lm_head"])),
    "modules_to_save, softcap": ("gemma2", lora(modules_to_save=["lm_head"])),
    "modules_to_save, tied": ("qwen2 tied", lora(modules_to_save=["lm_head", "embed_tokens"])),
    "modules_to_save, bias": ("phi", lora(modules_to_save=["lm_head"])),
    "trainable tokens": ("qwen2", lora(trainable_token_indices={"lm_head": [4, 9]})),
    "trainable tokens, tied": ("qwen2 tied", lora(trainable_token_indices=[4, 9, 30])),
    "prefix tuning": ("qwen2",
                      peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
}  # fmt: skip


def adapted(family, config):
    """A PEFT model around a wrapped one, with adapters that do something."""
    more = {} if "qwen2" in family or family == "phi" else {"tie_word_embeddings": False}
    model = peft.get_peft_model(LogprobHead.wrap(make(family, **more)), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.2 * noise.to(parameter.dtype))
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", TAKEN)
def test_heads_that_are_taken_after_wrap(form):
    model = adapted(*TAKEN[form])
    inputs, targets = batch()
    up = torch.randn(2, *targets.shape)
    results = []
    for compute in (expected, lambda m, i, t, x: m(**i, targets=t, temperature=x)[:2]):
        model.zero_grad()
        out = compute(model, inputs, targets, 0.7)
        (out[0] * up[0] + out[1] * up[1]).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((out, grads))
    (want, theirs), (got, ours) = results
    torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4)
    assert set(ours) == set(theirs) and ours
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=2e-3, atol=2e-4, msg=name)
    # Without its adapters it is the model that was wrapped.
    if "prefix" not in form:
        with torch.no_grad(), model.disable_adapter():
            want = expected(model, inputs, targets, 1.0)
            torch.testing.assert_close(
                model(**inputs, targets=targets)[:2], want, rtol=2e-4, atol=2e-4
            )
    assert LogprobHead.wrap(model.get_base_model()) is model.get_base_model()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["LoRA", "modules_to_save", "trainable tokens"])
@pytest.mark.parametrize("temperature", ["number", "tensor"])
def test_a_bfloat16_model_with_adapters_in_float32(form, temperature):
    family, config = TAKEN[form]
    inputs, targets = batch()
    value = 0.7 if temperature == "number" else torch.full(targets.shape, 0.7)
    model = adapted(family, config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        got = model(**inputs, targets=targets, temperature=value)
        want = expected(model, inputs, targets, 0.7)
    torch.testing.assert_close(got[:2], want, rtol=0.05, atol=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lora_dropout_on_the_head_acts_in_training_only():
    config = lora(target_modules=["lm_head"], lora_dropout=0.9)
    model = adapted("qwen2", config)
    inputs, targets = batch()
    calm = [model(**inputs, targets=targets).logprobs for _ in range(2)]
    assert torch.equal(*calm)
    torch.testing.assert_close(calm[0], expected(model, inputs, targets, 1.0)[0])
    model.train()
    torch.manual_seed(3)
    want = expected(model, inputs, targets, 1.0)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(
        model(**inputs, targets=targets).logprobs, want, rtol=1e-4, atol=1e-4
    )
    assert (want - calm[0]).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", TAKEN)
def test_a_weight_that_is_new_in_every_call_has_no_screen(form, monkeypatch):
    """LoRA or trained tokens on the head itself: "auto" takes none, a name is refused."""
    from siri_kernels.linear_logprob.head import forms, scoring

    new = "LoRA" in form or "trainable" in form  # all-linear leaves the head out
    model, seen, exact = adapted(*TAKEN[form]), [], scoring.linear_logprob

    def watch(*tensors, screen="none", **options):
        seen.append(screen)
        return exact(*tensors, **options)

    for module in (forms, scoring):
        monkeypatch.setattr(module, "linear_logprob", watch)
    inputs, targets = batch()
    want = model(**inputs, targets=targets).logprobs
    assert torch.equal(model(**inputs, targets=targets, screen="auto").logprobs, want)
    assert seen == [None, None if new else "auto"]
    for name in ("int8", "fp8"):
        if new:
            message = f"ForCausalLM: screen='{name}'.*'auto' or None.*merge_and_unload"
            with pytest.raises(RuntimeError, match=message):
                model(**inputs, targets=targets, screen=name)
            continue
        assert torch.equal(model(**inputs, targets=targets, screen=name).logprobs, want)
        assert seen[-1] == name
    if form == "LoRA":
        model.merge_adapter()  # the weight is the head's own again
        model(**inputs, targets=targets, screen="int8")
        assert seen[-1] == "int8"


REFUSED = {
    "DoRA": lora(target_modules=["lm_head"], use_dora=True),
    "IA3": peft.IA3Config(
        target_modules=["lm_head"], feedforward_modules=[], task_type="CAUSAL_LM"
    ),
    "LoHa": peft.LoHaConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", REFUSED)
def test_other_adapters_are_refused_with_advice_that_helps(form):
    inputs, targets = batch()
    model = adapted("qwen2", REFUSED[form])
    message = r"exclude_modules=\['lm_head'\].*modules_to_save=\['lm_head'\].*merge_and_unload"
    with pytest.raises(RuntimeError, match=message):
        model(**inputs, targets=targets)
    merged = model.merge_and_unload()
    got = merged(**inputs, targets=targets)
    torch.testing.assert_close(
        got[:2], expected(merged, inputs, targets, 1.0), rtol=2e-4, atol=2e-4
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "advice", [{"exclude_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_the_other_advice_helps_too(advice):
    inputs, targets = batch()
    options = {"target_modules": ["q_proj", "lm_head"], "use_dora": True, **advice}
    if "modules_to_save" in advice:
        options["target_modules"] = ["q_proj"]
    model = adapted("qwen2", lora(**options))
    got = model(**inputs, targets=targets)
    torch.testing.assert_close(got[:2], expected(model, inputs, targets, 1.0), rtol=2e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("virtual", [1, 4])
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_virtual_tokens_ask_for_longer_targets_and_then_work(kind, virtual):
    options = {"num_virtual_tokens": virtual, "task_type": "CAUSAL_LM"}
    model = adapted("qwen2", getattr(peft, kind)(**options))
    inputs, targets = batch()
    message = rf"targets = torch.nn.functional.pad\(targets, \({virtual}, 0\), value=-100\)"
    with pytest.raises(ValueError, match=message):
        model(**inputs, targets=targets)
    longer = nn.functional.pad(targets, (virtual, 0), value=-100)
    got = model(**inputs, targets=longer, temperature=0.7)
    logp = (model(**inputs).logits[:, virtual:].float() / 0.7).log_softmax(-1)
    want = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)
    torch.testing.assert_close(got.logprobs[:, virtual:], want, rtol=2e-4, atol=2e-4)


def test_wrapping_inside_peft_says_when_to_wrap():
    model = peft.get_peft_model(make("qwen2"), lora(target_modules=["lm_head"]))
    with pytest.raises(TypeError, match="Wrap the model itself, before get_peft_model"):
        LogprobHead.wrap(model)
    with pytest.raises(ValueError, match="wrap the model before an adapter is put on its head"):
        LogprobHead.wrap(model.get_base_model())


@pytest.mark.filterwarnings("ignore")
def test_a_resized_model_under_peft_is_wrapped_again():
    model = peft.get_peft_model(LogprobHead.wrap(make("qwen2")), lora())
    inputs, targets = batch()
    model.resize_token_embeddings(V + 3)
    with pytest.raises(RuntimeError, match="the model itself where PEFT or FSDP is around it"):
        model(**inputs, targets=targets)
    LogprobHead.wrap(model.get_base_model())
    got = model(**inputs, targets=targets)
    torch.testing.assert_close(got[:2], expected(model, inputs, targets, 1.0), rtol=2e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("on_head", [True, False])
@pytest.mark.parametrize("kind", ["target_modules", "modules_to_save"])
def test_an_adapter_a_row_is_refused_where_the_head_has_some(kind, on_head):
    """PEFT gives ``adapter_names`` to layers by hooks, which scoring by weights does not run."""
    options = {"target_modules": ["q_proj"]}
    if on_head:
        options[kind] = [*options.get(kind, []), "lm_head"]
    model = adapted("qwen2", lora(**options))
    model.add_adapter("other", lora(**{**options, "r": 2}))
    inputs, targets = batch()
    names = ["default", "other", "__base__"] * len(targets)
    inputs["adapter_names"] = names[: len(targets)]
    if on_head:
        with pytest.raises(RuntimeError, match="adapter_names gives each row one of its own.*set_"):
            model(**inputs, targets=targets)
        del inputs["adapter_names"]
    got = model(**inputs, targets=targets)
    torch.testing.assert_close(got[:2], expected(model, inputs, targets, 1.0), rtol=2e-4, atol=2e-4)
