"""The training step beside TRL 1.16's GRPOTrainer: same model, sequences and loss, on a CPU.

Needs TRL: ``sh scripts/peers.sh .peers`` installs it, ``PYTHONPATH=.peers`` finds it.

The model is SmolLM2-135M-Instruct on GSM8K solutions (the recipe ``smollm2-135m.yaml`` has both),
or with ``--model tiny`` the demo's model of 0.1 M parameters on its questions. Both sides take one
optimiser update on the same sequences; gradients are compared first. TRL's side is its own
``training_step`` on a padded generation batch of the same tokens. Micro-batches of both sides have
about as many tokens. Our step is also measured with half of the groups degenerate, skipped and not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import Wall
from bench.measure import in_turns
from bench.memory import peak_bytes
from bench.peers import trl
from bench.results_io import RESULTS, write
from siri_train.config.loss import LossConfig
from siri_train.config.recipe import load_config
from siri_train.config.run import TrainConfig
from siri_train.data.sources import encode_questions, read_sources
from siri_train.model.demo_model import START_FOLDER
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy, load_policy
from siri_train.train import update
from siri_train.trainer.optimizer import make_optimizer

TEMPERATURE = 1.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    """A model and the size of its step.

    Args:
        label: of the model in the result.
        recipe: for model and data.
        sequences: of a step.
        rows: sequences of a micro-batch of TRL's; ours has as many tokens.
        result: name of the result's files.
    """

    label: str
    recipe: str
    sequences: int
    rows: int
    result: str


WORKLOADS = {
    "smollm2": Workload(
        "SmolLM2-135M-Instruct, float32", "recipes/smollm2-135m.yaml", 8, 4, "training_step"
    ),
    "tiny": Workload(
        "the demo's model of 0.1 M parameters, float32", "recipes/demo.yaml", 256, 64,
        "training_step_tiny",
    ),
}  # fmt: skip


def _samples_of(config: Any, count: int) -> tuple[Policy, list[Sample]]:
    """The recipe's model, and prompts with their worked solutions as responses."""
    policy = load_policy(config.model, CPU)
    read = read_sources(config.data.train[:1], "train", "data.train")
    questions = [q for q in read if q.solution][:count]
    prompts = encode_questions(questions, policy.tokenizer, config.data)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for question, prompt in zip(questions, prompts, strict=True):
        ids = policy.tokenizer(question.solution, add_special_tokens=False)["input_ids"]
        advantage = float(torch.randn((), generator=generator))
        samples.append(
            Sample(list(prompt.prompt_ids), [*ids, min(policy.eos_ids)], advantage=advantage)
        )
    return policy, samples


def _ours(
    policy: Policy, samples: list[Sample], rows: int, skip: bool = True, tail: float = 1e-2
) -> Callable[[Any], None]:
    """Our update, with an optimiser or a recorder in its place."""
    padded = max(len(s.prompt_ids) for s in samples) + max(len(s.response_ids) for s in samples)
    config = TrainConfig(mini_batches=1, token_budget=rows * padded, grad_clip=1e9, tail=tail)
    loss = LossConfig(clip_high=0.2, skip_zero_advantage=skip)

    def step(optimizer: Any) -> None:
        update(
            policy, optimizer, samples, config, loss,
            temperature=TEMPERATURE, constant_length=1, seed=0,
        )  # fmt: skip

    return step


def _theirs(
    path: str, policy: Policy, samples: list[Sample], rows: int
) -> tuple[Any, Callable[[Any], None]]:
    """TRL's trainer, and its accumulation steps over the padded generation batch."""
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    pad = policy.pad_token_id
    accumulation = len(samples) // rows
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation,
        num_generations=rows, report_to="none", save_strategy="no", loss_type="dapo",
        temperature=TEMPERATURE, epsilon=0.2, epsilon_high=0.2, disable_tqdm=True,
        max_completion_length=512,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False
        ),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["x"] * len(samples)}),
        processing_class=policy.tokenizer,
    )
    prompt, prompt_mask = _pad([s.prompt_ids for s in samples], pad, left=True)
    response, response_mask = _pad([s.response_ids for s in samples], pad, left=False)
    batch = {
        "prompt_ids": prompt, "prompt_mask": prompt_mask,
        "completion_ids": response, "completion_mask": response_mask,
        "advantages": torch.tensor([s.advantage for s in samples]),
        "old_per_token_logps": _pad([s.old_logprobs for s in samples], 0.0, left=False)[0],
        "num_items_in_batch": response_mask.sum(),
    }  # fmt: skip
    trainer._generate_and_score_completions = lambda _: dict(batch)
    trainer.current_gradient_accumulation_steps = accumulation

    def step(optimizer: Any) -> None:
        for _ in range(accumulation):
            trainer.training_step(trainer.model, {}, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1e9)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return trainer, step


def _pad(rows: list[Any], value: float, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    kind = torch.float32 if isinstance(value, float) else torch.long
    padded = torch.full((len(rows), width), value, dtype=kind)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        padded[number, place] = torch.tensor(list(row), dtype=kind)
        mask[number, place] = 1
    return padded, mask


class _Recorder:
    """Stands for an optimiser: keeps the gradients of one update by name."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.named = dict(model.named_parameters())
        self.param_groups = [{"params": list(self.named.values())}]
        self.gradients: dict[str, Tensor] = {}

    def step(self) -> None:
        self.gradients = {n: p.grad for n, p in self.named.items() if p.grad is not None}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.named.values():
            parameter.grad = None


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative distance of two gradients, all weights together."""
    assert a.keys() == b.keys()
    difference = sum(float((a[n] - b[n]).double().norm() ** 2) for n in b)
    return float((difference / sum(float(g.double().norm() ** 2) for g in b.values())) ** 0.5)


def compare(work: Workload, rounds: int) -> tuple[dict[str, Any], str]:
    """The result for the JSON, and the table.

    Args:
        work: what is measured.
        rounds: of times in turns.

    Raises:
        SystemExit: the gradients differ; no times are reported.
    """
    config = load_config(work.recipe)
    count = work.sequences
    policy, samples = _samples_of(config, count)
    embedded = config.model.path == "embedded"
    path = str(START_FOLDER) if embedded else config.model.path
    from siri_train.trainer.update import score

    score(policy, samples, 4096, TEMPERATURE)  # on-policy: ratios are 1, as in TRL's first update
    trainer, trl_step = _theirs(path, policy, samples, work.rows)
    models = {"TRL 1.16": trainer.model, "ours": policy.model}
    steps = {"TRL 1.16": trl_step, "ours": _ours(policy, samples, work.rows)}

    # Correctness first, and the peak memory in the same pass.
    recorders = {name: _Recorder(model) for name, model in models.items()}
    peaks = {}
    for name, step in steps.items():
        peaks[name] = peak_bytes(partial(step, recorders[name]))
    weights = sum(p.numel() * 4 for p in policy.model.parameters())
    exact = _Recorder(policy.model)
    _ours(policy, samples, work.rows, tail=0.0)(exact)
    want = recorders["TRL 1.16"].gradients
    bounded, error = (_apart(r.gradients, want) for r in (recorders["ours"], exact))
    if not error < 1e-3 or not bounded < 2e-2:
        raise SystemExit(f"gradients differ by {error:.1e} ({bounded:.1e}): no times reported")
    for recorder in (*recorders.values(), exact):
        recorder.zero_grad()
        recorder.gradients.clear()
    half = [
        Sample(s.prompt_ids, s.response_ids, s.old_logprobs, s.advantage * (i * 2 // count))
        for i, s in enumerate(samples)
    ]
    steps["ours, half of the groups degenerate"] = _ours(policy, half, work.rows)
    steps["the same, not skipped"] = _ours(policy, half, work.rows, skip=False)
    train = TrainConfig(lr=1e-30, weight_decay=0.0)  # no round changes the model
    optimizers = {name: make_optimizer(models.get(name, policy.model), train) for name in models}
    calls = {
        name: partial(step, optimizers.get(name, optimizers["ours"]))
        for name, step in steps.items()
    }
    turns = in_turns(calls, Wall(CPU), float("inf"), rounds, rounds)
    times = {name: turn["wall"] for name, turn in turns.items()}

    tokens = sum(s.length for s in samples)
    padded = count * (max(len(s.prompt_ids) for s in samples)
                      + max(len(s.response_ids) for s in samples))  # fmt: skip
    median = {name: statistics.median(values) for name, values in times.items()}
    measured = {
        "model": work.label, "threads": torch.get_num_threads(),
        "sequences": count, "tokens": tokens, "padded_tokens": padded,
        "response_lengths": sorted(len(s.response_ids) for s in samples),
        "seconds": times, "tokens_per_s": {n: tokens / t for n, t in median.items()},
        "peak_bytes_with_gradients": peaks, "gradient_bytes": weights,
        "gradient_difference_exact": error, "gradient_difference": bounded,
    }  # fmt: skip
    base = median["TRL 1.16"]
    lines = [
        f"| one update, V {policy.model.config.vocab_size} | seconds | tokens/s | speed "
        "| peak beyond weights | of it not gradients |",
        "|---|---|---|---|---|---|",
    ]
    for name, value in median.items():
        peak = peaks.get(name)
        memory = f"{peak / 2**20:.0f} MiB | {(peak - weights) / 2**20:.0f} MiB" if peak else " | "
        lines.append(
            f"| {name} | {value:.3g} | {tokens / value:.0f} | {base / value:.2f} | {memory} |"
        )
    note = (
        f"{count} sequences, {tokens} tokens ({padded} when padded as TRL pads them), "
        f"{torch.get_num_threads()} threads, median of {rounds}. Gradients "
        f"differ by {bounded:.1e} (tail 1e-2), {error:.1e} (tail 0)."
    )
    return measured, "\n".join([*lines, "", note, ""])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench step``."""
    parser.add_argument("--model", choices=WORKLOADS, default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench step``: write the JSON and the table.

    Raises:
        SystemExit: TRL is not installed, or gradients differ.
    """
    trl.require("step")
    torch.set_num_threads(arguments.threads)
    work = WORKLOADS[arguments.model]
    measured, table = compare(work, arguments.rounds)
    write(arguments.out, work.result, measured, table)
