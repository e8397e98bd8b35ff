"""The README says what was measured, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.reports.readme import BLOCK, filled, pages

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_quoted_tables_are_the_measured_ones() -> None:
    assert len(BLOCK.findall(README)) == 3
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert filled(text) == text, f"{page.name}: run python -m bench.reports.readme"


def test_first_screen_has_the_table_and_the_two_commands() -> None:
    screen = "\n".join(README.splitlines()[:45])
    for wanted in ("siri-low", "siri-high", "make demo", "make test", "linear_logprob("):
        assert wanted in screen


def test_the_ten_line_example_runs_and_trains() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2)
    )  # fmt: skip
    lengths = torch.randint(3, 12, (16,))
    mask = torch.arange(15)[None] < lengths[:, None] + 3
    mask[:, :3] = False  # the prompt
    scope = {
        "model": model,
        "input_ids": torch.randint(0, 97, (16, 15)),
        "response_mask": mask,
        "rewards": torch.randint(0, 2, (16,)).float(),
        "old_logprobs": torch.randn(int(lengths.sum())) - 4,
    }
    scope["rewards"][:2] = torch.tensor([0.0, 1.0])
    exec(code, scope)
    result = scope["loss"]
    assert isinstance(result.loss, torch.Tensor) and result.loss.isfinite()
    assert result.metrics["tokens"] == lengths.sum()
    assert model.lm_head.weight.grad is not None and model.lm_head.weight.grad.norm() > 0
    assert SimpleNamespace(**result.metrics).clip_frac_high >= 0
