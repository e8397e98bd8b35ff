"""LogprobHead.wrap on tiny models of many families: their own logits are the oracle."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from siri_kernels import LogprobHead

V = 61
SMALL = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
# model type -> options beside SMALL; tied or not is each family's default unless given
FAMILIES = {
    "qwen2": {"tie_word_embeddings": False},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": MOE,
    "llama": {},
    "mistral": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": None},
    "gemma3_text softcap": {"head_dim": 8, "final_logit_softcapping": 5.0},
    "phi": {},  # its head has a bias
    "phi3": {},
    "gpt2": GPT2,  # tied
    "gpt_neox": {},  # embed_out
    "gptj": {**GPT2, "rotary_dim": 4},  # another bias
    "opt": {"word_embed_proj_dim": 8, "ffn_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "falcon_h1": {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "head_dim": 8,
                  "mamba_d_head": 8, "mamba_d_state": 8},
    "mamba": {"state_size": 4},
    "recurrent_gemma": {"logits_soft_cap": 4.0, "lru_width": 16, "attention_window_size": 16,
                        "block_types": ["recurrent", "attention"]},
    "smollm3": {},
    "olmo2": {},
}  # fmt: skip


def make(family: str, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split()[0], **{**SMALL, **FAMILIES[family], **more})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # biases too
        nn.init.normal_(parameter, std=0.3)
    return model


def batch():
    ids = torch.randint(3, V, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    targets = torch.full_like(ids, -100)
    targets[:, 2:6] = ids[:, 3:7]
    targets[1, 4:] = -100
    return {"input_ids": ids, "attention_mask": mask}, targets


def expected(model, inputs, targets, temperature):
    """Log-probs and entropy from the model's own logits, eager."""
    logp = (model(**inputs).logits.float() / temperature).log_softmax(-1)
    picked = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    entropy = -(logp.exp() * logp).sum(-1)
    keep = targets != -100
    return picked * keep, entropy * keep


def no_logits(output):
    """Every tensor of an output, none of which is as wide as the vocabulary."""
    tensors = [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
    assert len(tensors) >= 3 and all(x.shape[-1] != V for x in tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_are_those_of_the_models_logits(family):
    model = make(family)
    state, parameters = model.state_dict(), dict(model.named_parameters())
    inputs, targets = batch()
    before, generated = model(**inputs).logits, model.generate(
        inputs["input_ids"][:1], max_new_tokens=3, do_sample=False
    )  # fmt: skip
    results = []
    wanted = expected(model, inputs, targets, 0.7)
    up = torch.randn(2, *targets.shape)
    for compute in ("logits", "targets"):
        model.zero_grad()
        if compute == "targets":
            assert LogprobHead.wrap(model) is model
            out = model(**inputs, targets=targets, temperature=0.7)
            no_logits(out)
            assert out.base.last_hidden_state.shape[:2] == targets.shape
            wanted = out[:2]
        (wanted[0] * up[0] + wanted[1] * up[1]).sum().backward()
        results.append([*wanted, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 5
    assert results[0][0].abs().max() > 1  # not a flat distribution: caps and factors show
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4)
    # All else is as it was.
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(**inputs).logits, before)
    again = model.generate(inputs["input_ids"][:1], max_new_tokens=3, do_sample=False)
    assert torch.equal(again, generated)


@pytest.mark.parametrize("family", ["qwen2", "qwen2 tied"])
def test_saved_copied_and_pickled(family, tmp_path):
    model = LogprobHead.wrap(make(family))
    inputs, targets = batch()
    want = model(**inputs, targets=targets).logprobs
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["Qwen2ForCausalLM"]
    torch.testing.assert_close(expected(loaded.eval(), inputs, targets, 1.0)[0], want)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and isinstance(other, transformers.Qwen2ForCausalLM)
        assert (other.lm_head.weight is other.model.embed_tokens.weight) == ("tied" in family)
        assert torch.equal(other(**inputs, targets=targets).logprobs, want)
        with torch.no_grad():
            other.lm_head.weight.mul_(2)  # its own, not the first one's
        assert torch.equal(model(**inputs, targets=targets).logprobs, want)
    assert LogprobHead.wrap(model) is model and type(model).__mro__[2] is not type(model)


def test_arguments_by_position_and_the_signature_stay():
    model, stock = LogprobHead.wrap(make("gpt2")), make("gpt2")
    inputs, targets = batch()
    ids, mask = inputs.values()
    got = model(ids, None, mask, targets=targets)  # GPT-2's second is past_key_values
    assert torch.equal(got.logprobs, model(**inputs, targets=targets).logprobs)
    theirs, ours = (inspect.signature(m.forward).parameters for m in (stock, model))
    assert [n for n in ours if n in theirs] == list(theirs)
    assert set(ours) - set(theirs) == {
        *("targets", "temperature", "tail", "ignore_index", "backend", "screen", "logprob_tol")
    }


def test_bfloat16_and_autocast():
    inputs, targets = batch()
    for family in ("qwen2", "gemma2", "mamba"):
        exact = expected(make(family), inputs, targets, 1.0)[0]
        half = LogprobHead.wrap(make(family).bfloat16())(**inputs, targets=targets)
        model = LogprobHead.wrap(make(family))
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(**inputs, targets=targets)
        for out in (half, cast):
            assert out.logprobs.dtype == torch.float32
            torch.testing.assert_close(out.logprobs, exact, rtol=0.1, atol=0.2)


def test_a_temperature_per_token_under_a_factor():
    model = make("granite")
    inputs, targets = batch()
    temperature = torch.rand(targets.shape) + 0.5
    want = expected(model, inputs, targets, temperature[..., None])
    out = LogprobHead.wrap(model)(**inputs, targets=targets, temperature=temperature)
    torch.testing.assert_close(out[:2], want, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    inputs, targets = batch()
    for on in (False, True):
        model = LogprobHead.wrap(make("llama")).train()
        if on:
            model.gradient_checkpointing_enable()
        model(**inputs, targets=targets).logprobs.sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_training_mode_and_random_state_are_untouched_by_the_test_run():
    model = make("gpt2").train()
    model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    LogprobHead.wrap(model)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def tiny(kind, **options):
    config = AutoConfig.for_model(kind, **{**SMALL, **options})
    return AutoModelForCausalLM.from_config(config)


class Doubled(transformers.LlamaForCausalLM):
    """Changes its logits in a way that its configuration does not tell."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


class Shifted(transformers.LlamaForCausalLM):
    """Something stands between the base model and the head."""

    def forward(self, input_ids, **kwargs):
        hidden = self.model(input_ids).last_hidden_state
        logits = self.lm_head(hidden + 1)
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


def hooked(model):
    model.lm_head.register_forward_hook(lambda *args: None)
    return model


def replaced(model):
    model.forward = model.forward
    return model


class Lora(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.weight = base, base.weight


def lora(model):
    model.set_output_embeddings(Lora(model.lm_head))
    return model


def quantised(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    return model


def on_meta():
    with torch.device("meta"):
        return tiny("llama")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Doubled(tiny("llama").config), "changes its logits behind the head"),
        (lambda: Shifted(tiny("llama").config), "gets something else than its base model's"),
        (lambda: tiny("bert", is_decoder=True), "gets something else"),
        (lambda: hooked(tiny("llama")), "its head has hooks"),
        (lambda: replaced(tiny("llama")), "replaced on the instance.*before"),
        (lambda: lora(tiny("llama")), "its head is Lora, not an nn.Linear"),
        (lambda: quantised(tiny("llama")), "torch.int8; quantised"),
        (on_meta, "meta device; load them first"),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=V, d_model=16, d_ff=16, num_layers=1, num_heads=2)
            ),
            "encoder-decoder",
        ),
    ],
)
def test_models_that_cannot_be_wrapped_say_why_and_stay_as_they_are(build, message):
    model = build()
    kind, head = type(model), model.get_output_embeddings()
    with pytest.raises(ValueError, match=f"LogprobHead.wrap: .*{message}"):
        LogprobHead.wrap(model)
    assert type(model) is kind and model.get_output_embeddings() is head
    assert not any(m._forward_hooks for m in model.modules() if m is not head)


@pytest.mark.parametrize("what", [nn.Linear(3, 4), "model", nn.Sequential(nn.Linear(3, 4))])
def test_what_is_no_causal_lm_is_refused(what):
    with pytest.raises(TypeError, match="causal LM of transformers; got"):
        LogprobHead.wrap(what)


def test_calls_that_would_be_misread_are_refused():
    model = LogprobHead.wrap(make("qwen2"))
    inputs, targets = batch()
    with pytest.raises(TypeError, match="targets are missing.*temperature"):
        model(**inputs, temperature=0.5)
    with pytest.raises(TypeError, match="labels is not taken together with targets"):
        model(**inputs, targets=targets, labels=targets)
    with pytest.raises(TypeError, match="'temprature' is not an option"):
        model(**inputs, targets=targets, temprature=0.5)
    with pytest.raises(TypeError, match="'softcap' is not an option"):
        model(**inputs, targets=targets, softcap=5.0)
    with pytest.raises(ValueError, match="targets must have shape"):
        model(**inputs, targets=targets[:, 1:])
    for bad in (True, None, "1", 0.0, float("nan")):
        with pytest.raises((TypeError, ValueError), match="temperature must be a finite number"):
            model(**inputs, targets=targets, temperature=bad)
    for bad in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match="temperature must be a number or a float32"):
            model(**inputs, targets=targets, temperature=torch.tensor(0.6, dtype=bad))


def test_a_resized_model_asks_to_be_wrapped_again():
    model = LogprobHead.wrap(make("qwen2"))
    inputs, targets = batch()
    model.resize_token_embeddings(V + 3)
    with pytest.raises(RuntimeError, match="wrap it again"):
        model(**inputs, targets=targets)
    model = LogprobHead.wrap(model)
    want = expected(model, inputs, targets, 1.0)[0]
    torch.testing.assert_close(model(**inputs, targets=targets).logprobs, want)


@pytest.mark.costly
def test_compiled_it_gives_the_same():
    torch._dynamo.reset()
    model = LogprobHead.wrap(make("qwen2"))
    inputs, targets = batch()
    want = model(**inputs, targets=targets).logprobs
    got = torch.compile(model, backend="aot_eager")(**inputs, targets=targets).logprobs
    torch.testing.assert_close(got, want)
    torch._dynamo.reset()
