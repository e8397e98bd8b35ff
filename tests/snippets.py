"""Python blocks of the documentation, and what the names in them stand for.

A block that runs in ``make test`` needs no mark. One that needs an environment of its own has
``<!-- snippet: NAME -->`` in the line above it and runs in the target that sets
``SIRI_SNIPPETS=NAME``.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_kernels import group_advantages
from siri_train.data.demo_task.questions import questions
from siri_train.model.demo_model import START_FOLDER

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:^<!-- snippet: (\S+) -->\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE
)


class Snippet(NamedTuple):
    """``where`` is PAGE:LINE of the block's first line of code."""

    where: str
    environment: str
    code: str


def snippets() -> list[Snippet]:
    """Every Python block of README.md, CONTRIBUTING.md and docs/*.md, in order."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text[: match.start(2)].count("\n") + 1
            where = f"{page.relative_to(ROOT)}:{line}"
            found.append(Snippet(where, match[1] or "default", match[2]))
        assert len(_BLOCK.findall(text)) == len(re.findall(r"^\s*```py", text, re.MULTILINE)), page
    return found


def run(snippet: Snippet, folder: Path) -> dict[str, Any]:
    """Executes a block; its names afterwards. Its line numbers are those of the page."""
    torch.manual_seed(0)
    page, line = snippet.where.split(":")
    scope: dict[str, Any] = {"__name__": "snippet", **_batch()}
    if "train_dataset=rollouts" in snippet.code:
        scope |= _for_trainer(scope, folder)
    if "import SiriGRPOTrainer" in snippet.code:
        scope |= _for_trl(folder)
    if "integrations import skyrl" in snippet.code:
        scope |= _for_skyrl()
    exec(compile("\n" * (int(line) - 1) + snippet.code, str(ROOT / page), "exec"), scope)
    return scope


def _batch() -> dict[str, Any]:
    """16 right-padded rows: a prompt of 3 tokens, a response of 2 to 11."""
    model = AutoModelForCausalLM.from_pretrained(START_FOLDER)
    lengths = torch.randint(2, 12, (16,))
    positions = torch.arange(15)[None]
    attention_mask = (positions < lengths[:, None] + 3).long()
    response_mask = attention_mask.bool() & (positions >= 3)
    input_ids = torch.randint(3, model.config.vocab_size, (16, 15))
    rewards = torch.randint(0, 2, (16,)).float()
    rewards[:2] = torch.tensor([0.0, 1.0])
    targets = torch.full_like(input_ids, -100)
    targets[:, :-1] = torch.where(response_mask, input_ids, -100)[:, 1:]
    return {
        "model": model,
        "tokenizer": AutoTokenizer.from_pretrained(START_FOLDER),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "response_mask": response_mask,
        "targets": targets,
        "rewards": rewards,
        "advantages": group_advantages(rewards, 8).advantages,
        "old_logprobs": torch.randn(int(lengths.sum())) - 4,
        "sampled_logprobs": torch.randn(16, 15) - 4,
        "optimizer": torch.optim.AdamW(model.parameters()),
    }


def _for_trainer(batch: dict[str, Any], folder: Path) -> dict[str, Any]:
    from transformers import TrainingArguments

    keys = ("input_ids", "attention_mask", "targets", "rewards")
    rows = [{key: batch[key][i] for key in keys} for i in range(16)]
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=8, max_steps=2, report_to="none", use_cpu=True,
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rollouts = [{**row, "old_logprobs": torch.randn(15) - 4} for row in rows]
    return {"trainer_args": args, "rollouts": rollouts}


def _for_trl(folder: Path) -> dict[str, Any]:
    import datasets
    from trl import GRPOConfig

    rows = questions(8, seed=3)
    dataset = datasets.Dataset.from_dict(
        {"prompt": [q.prompt for q in rows], "answer": [q.answer for q in rows]}
    )
    args = GRPOConfig(
        output_dir=str(folder), max_completion_length=24, num_generations=4, report_to="none",
        per_device_train_batch_size=4, max_steps=3, use_cpu=True, bf16=False,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, logging_steps=1,
    )  # fmt: skip
    return {"args": args, "dataset": dataset}


def _for_skyrl() -> dict[str, Any]:
    """A generator of SkyRL's form; and its import on Python 3.11, where pydantic is stricter."""
    import typing

    import typing_extensions

    own, typing.TypedDict = typing.TypedDict, typing_extensions.TypedDict
    try:
        importlib.import_module("skyrl.backends.skyrl_train.utils.ppo_utils")
    finally:
        typing.TypedDict = own
    options = SimpleNamespace(
        zero_reward_on_non_stop=True, apply_overlong_filtering=False, max_turns=1,
        sampling_params=SimpleNamespace(max_generate_length=16384),
    )  # fmt: skip
    return {"generator": SimpleNamespace(generator_cfg=options)}
