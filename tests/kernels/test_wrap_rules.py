"""The factor and the cap of a model's logits: found in any precision, followed when they change."""

from __future__ import annotations

import importlib

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from siri_kernels import LogprobHead

from .test_wrap import batch, expected, make

V = 64
SMALL = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}


def divided(logits, value):
    return logits / value


def multiplied(logits, value):
    return logits * value


def capped(logits, value):
    return value * torch.tanh(logits / value)


# family -> the name in its configuration, what it means, and what else the family needs
RULES = {
    "granite": ("logits_scaling", divided, {}),
    "cohere": ("logit_scale", multiplied, {}),
    "cohere2": ("logit_scale", multiplied, {}),
    "hyperclovax": ("logits_scaling", multiplied, {}),
    "falcon_h1": ("lm_head_multiplier", multiplied, MAMBA),
    "gemma2": ("final_logit_softcapping", capped, {}),
    "gemma3_text": ("final_logit_softcapping", capped, {}),
    "recurrent_gemma": ("logits_soft_cap", capped,
                        {"lru_width": 16, "attention_window_size": 16,
                         "block_types": ["recurrent", "attention"], "num_hidden_layers": 2}),
}  # fmt: skip
FACTORS = [family for family, rule in RULES.items() if rule[1] is not capped]
CAPS = [family for family in RULES if family not in FACTORS]


def build(family, value, dtype=torch.float32):
    name, _, more = RULES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **more, name: value})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # 1.0 overflows float16 in Falcon-H1
    nn.init.normal_(model.get_output_embeddings().weight, std=1.5)
    return model.to(dtype)


def exact(model, family, value, ids, targets):
    """Log-probs in float64 from the model's own hidden states and the family's formula."""
    hidden = model.base_model(ids).last_hidden_state.double()
    raw = hidden @ model.get_output_embeddings().weight.double().T
    logp = RULES[family][1](raw, value).log_softmax(-1)
    return logp.gather(-1, targets[..., None])[..., 0]


cases = st.one_of(
    st.tuples(st.sampled_from(FACTORS), st.floats(0.5, 2.0)),
    st.tuples(st.sampled_from(FACTORS), st.sampled_from([0.9, 0.99, 1.0, 1.01, 1.1])),
    st.tuples(st.sampled_from(CAPS), st.floats(1.5, 2000.0)),
    st.tuples(st.sampled_from(CAPS), st.sampled_from([30.0, 100.0, 300.0, 1000.0])),
)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases, st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
@torch.no_grad()
def test_factors_and_caps_are_found_in_every_precision(case, dtype):
    family, value = case
    model = build(family, value, dtype)
    ids = torch.randint(3, V, (2, 6))
    targets = torch.randint(3, V, (2, 6))
    want = exact(model, family, value, ids, targets)
    got = LogprobHead.wrap(model)(ids, targets=targets).logprobs
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-3)


def places(model, family):
    """Where the number lies that this family reads: in its configuration, or a copy of it."""
    name = RULES[family][0]
    if family in ("cohere", "cohere2"):
        return model, name
    if family == "falcon_h1":
        return model.model, name
    return model.config, name


changes = st.one_of(
    st.tuples(st.sampled_from(FACTORS), st.sampled_from([1.0, 3.0]), st.floats(0.5, 2.0)),
    st.tuples(
        st.sampled_from(["gemma2", "gemma3_text"]),
        st.sampled_from([None, 4.0]),
        st.one_of(st.none(), st.floats(1.5, 100.0)),
    ),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(changes, st.booleans())
@torch.no_grad()
def test_a_change_after_wrap_is_followed(case, again):
    family, first, then = case
    model = LogprobHead.wrap(build(family, first))
    inputs, targets = batch()
    model(**inputs, targets=targets)
    place, name = places(model, family)
    setattr(place, name, then)
    if again:
        assert LogprobHead.wrap(model) is model
    training, forwards = model.training, [vars(m).get("forward") for m in model.modules()]
    got = model(**inputs, targets=targets, temperature=0.8)
    torch.testing.assert_close(got[:2], expected(model, inputs, targets, 0.8), rtol=2e-4, atol=2e-4)
    assert model.training == training
    assert [vars(m).get("forward") for m in model.modules()] == forwards


@torch.no_grad()
def test_a_configuration_put_in_the_place_of_another_is_read():
    model = LogprobHead.wrap(build("gemma2", 4.0))
    model.config = AutoConfig.for_model("gemma2", **{**SMALL, "final_logit_softcapping": 7.0})
    inputs, targets = batch()
    got = model(**inputs, targets=targets)[:2]
    torch.testing.assert_close(got, expected(model, inputs, targets, 1.0), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["cohere", "falcon_h1"])
@torch.no_grad()
def test_a_change_that_the_model_does_not_read_changes_nothing(family):
    """They copy the factor when they are built; their configuration may say what it likes."""
    model = LogprobHead.wrap(build(family, 0.7))
    inputs, targets = batch()
    want = model(**inputs, targets=targets)[:2]
    for value in (3.0, 1.0, None, -1.0):
        setattr(model.config, RULES[family][0], value)
        torch.testing.assert_close(model(**inputs, targets=targets)[:2], want)
        torch.testing.assert_close(
            want, expected(model, inputs, targets, 1.0), rtol=2e-4, atol=2e-4
        )


@pytest.mark.costly
@torch.no_grad()
def test_compiled_it_is_one_graph_and_follows_a_change_too():
    torch._dynamo.reset()
    model = LogprobHead.wrap(build("gemma2", 4.0))
    inputs, targets = batch()
    temperature = torch.tensor(0.8)
    for cap, whole in ((4.0, True), (None, False)):
        model.config.final_logit_softcapping = cap
        want = expected(model, inputs, targets, 0.8)[0]
        compiled = torch.compile(model, backend="aot_eager", fullgraph=whole)
        got = compiled(**inputs, targets=targets, temperature=temperature).logprobs
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4)
    torch._dynamo.reset()


@torch.no_grad()
def test_a_change_that_no_rule_describes_names_it():
    model = LogprobHead.wrap(build("granite", 2.0))
    inputs, targets = batch()
    model.config.logits_scaling = -2.0
    for call in (lambda: model(**inputs, targets=targets), lambda: LogprobHead.wrap(model)):
        with pytest.raises(ValueError, match=r"config.logits_scaling 2.0 -> -2.0, it changes its"):
            call()
    model.config.logits_scaling = 0.5
    got = model(**inputs, targets=targets)[:2]
    torch.testing.assert_close(got, expected(model, inputs, targets, 1.0), rtol=2e-4, atol=2e-4)


def test_without_a_change_nothing_runs_twice(monkeypatch):
    model = LogprobHead.wrap(make("gemma2"))
    wrapping = importlib.import_module("siri_kernels.linear_logprob.head.wrap")
    monkeypatch.setattr(wrapping, "probe_again", lambda *_: pytest.fail("probed again"))
    inputs, targets = batch()
    model(**inputs, targets=targets)
    assert LogprobHead.wrap(model) is model


@torch.no_grad()
def test_a_model_that_overflows_says_so():
    model = build("granite", 2.0).half()
    model.model.embed_tokens.weight.fill_(6e4)
    model.model.embedding_multiplier = 100.0
    with pytest.raises(
        ValueError, match=r"not finite in torch.float16; check its weights, or load"
    ):
        LogprobHead.wrap(model)


# Their base_model is themselves: they name another module than they have.
TEXT_MODELS = {
    "Llama4ForCausalLM": (
        "llama4_text",
        {"intermediate_size_mlp": 32, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "MllamaForCausalLM": ("mllama_text_model", {"cross_attention_layers": []}),
}


@pytest.mark.draw(4)
@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize("tied", [False, True])
def test_text_models_that_misname_their_base(name, tied):
    torch.manual_seed(0)
    family, more = TEXT_MODELS[name]
    config = AutoConfig.for_model(family, **{**SMALL, **more, "tie_word_embeddings": tied})
    model = getattr(transformers, name)(config).eval()
    assert model.base_model is model
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs, targets = batch()
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    want = expected(model, inputs, targets, 0.7)
    got = LogprobHead.wrap(model)(**inputs, targets=targets, temperature=0.7)
    torch.testing.assert_close(got[:2], want, rtol=2e-4, atol=2e-4)
    assert got.base.last_hidden_state.shape[:2] == targets.shape


class Seeing(transformers.LlamaForCausalLM):
    """Takes images itself, and names another base model than it has."""

    base_model_prefix = "elsewhere"

    def forward(self, input_ids=None, pixel_values=None, **kwargs):
        return super().forward(input_ids, **kwargs)


def test_a_decoder_that_sees_no_images_is_no_base_model():
    with pytest.raises(ValueError, match="it has no base model"):
        LogprobHead.wrap(Seeing(make("llama").config))
