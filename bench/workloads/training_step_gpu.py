"""The training step on a GPU: tokens/s, MFU, peak memory, share of the head.

The default is a model of Qwen2-1.5B's configuration at 8K and 16K tokens a row, with Liger and
without; ``--shape tiny --device cpu --context 256`` rehearses it on a CPU.

Weights are random. The final norm is scaled until the softmax has the entropy of a trained
reasoning model, and targets are drawn from that softmax, so that the head does realistic work.
Sequences are packed to the token budget; gradient checkpointing is on; weights are bfloat16 with
float32 masters. The estimate of ``siri-train --dry-run`` stands beside the peak.

Every case has a process of its own, because Liger changes the module of a model's class for good.
Results are written after each case; the same command continues with the cases that are left
(``--again`` measures all again).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from bench.results_io import RESULTS, environment, write
from bench.workloads.step_model import (
    MODEL_CONFIGS,
    flops,
    hidden_of,
    peak_flops,
    seconds,
    settle,
    sharpen,
    two_micro_batches,
)
from siri_kernels import linear_logprob, policy_loss, take_backward_stats
from siri_train.config.loss import LossConfig
from siri_train.config.recipe import parse_config
from siri_train.config.run import TrainConfig
from siri_train.model.attention import attention_backend, prepare
from siri_train.model.packing import micro_batches
from siri_train.model.policy import Policy, apply_liger
from siri_train.plan.memory import Sizes, estimate
from siri_train.trainer.optimizer import make_optimizer, step_if_finite


def build(model_config: str, device: torch.device, liger: bool) -> Policy:
    """A policy with random weights.

    Args:
        model_config: a name in ``MODEL_CONFIGS``.
        device: of the weights.
        liger: with Liger's kernels.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        **MODEL_CONFIGS[model_config], max_position_embeddings=65_536, tie_word_embeddings=True
    )
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=False
        )
    prepare(model)
    if liger:
        apply_liger(model, required=True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return Policy(model, None, frozenset({0}), None)


def measure(
    model_config: str, device: torch.device, context: int, liger: bool, rounds: int, entropy: float
) -> dict[str, Any]:
    """One case: two micro-batches, one sequence in the first, three in the second.

    Args:
        model_config: a name in ``MODEL_CONFIGS``.
        device: where it runs.
        context: tokens of a micro-batch.
        liger: with Liger's kernels.
        rounds: updates that are timed.
        entropy: of the softmax in nats.
    """
    policy = build(model_config, device, liger)
    samples = two_micro_batches(MODEL_CONFIGS[model_config]["vocab_size"], context)
    batches = list(micro_batches(samples, context, device))
    sharpen(policy, batches[0], entropy)
    for batch in batches:
        settle(policy, batch)
    train, loss = TrainConfig(lr=1e-6), LossConfig()
    optimizer = make_optimizer(policy.model, train)
    total = float(sum(b.tokens for b in batches))

    def update() -> None:
        for batch in batches:
            logprobs, entropy = policy.token_logprobs(batch, tail=train.tail)
            value, _ = policy_loss(
                logprobs, batch.old_logprobs, batch.advantages, batch.cu_seqlens,
                denominator=total, entropy=entropy, **loss.options(),
            )  # fmt: skip
            value.backward()
        step_if_finite(optimizer, 1.0)
        optimizer.zero_grad(set_to_none=True)

    update()  # warm-up; the optimiser's state is there from now on
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    take_backward_stats()
    step = seconds(update, device, rounds)
    stats = take_backward_stats()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    head = policy.model.get_output_embeddings().weight
    inputs = [(hidden_of(policy, b).requires_grad_(), b.targets) for b in batches]

    def head_alone() -> None:
        for hidden, targets in inputs:
            linear_logprob(hidden, head, targets).logprobs.sum().backward()

    alone = seconds(head_alone, device, rounds)
    tokens = sum(s.length for s in samples)
    limit = peak_flops(torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    rate = flops(model_config, [s.length for s in samples]) / step
    width = policy.model.config.hidden_size // policy.model.config.num_attention_heads
    expected = _estimated_bytes(policy.model.config, context, liger, device)
    return {
        "shape": model_config, "context": context, "liger": liger, "tokens": tokens,
        "seconds": step,
        "attention": attention_backend(device, torch.bfloat16, width), "entropy": entropy,
        "estimated_gib": expected / 2**30,
        "tokens_per_s": tokens / step, "tflops": rate / 1e12,
        "mfu": rate / limit if limit else None, "peak_gib": peak / 2**30,
        "head_share": alone / step,
        "dense_row_frac": float(stats.dense_row_frac) if stats is not None else None,
    }  # fmt: skip


def _estimated_bytes(model: Any, context: int, liger: bool, device: torch.device) -> int:
    """The peak of an update by the estimate of ``siri-train train --dry-run``."""
    config = parse_config(
        {
            "model": {"dtype": "bfloat16", "gradient_checkpointing": True,
                      "liger": "on" if liger else "off"},
            "data": {"max_prompt_len": context // 32},
            "schedule": {"max_len": context // 2, "min_len": context // 4},
            "train": {"token_budget": context},
        }
    )  # fmt: skip
    memory = estimate(config, Sizes.of(model), gpu=device.type == "cuda")
    return max(memory.totals["training"], memory.totals["optimizer"])


def table(rows: list[dict[str, Any]]) -> str:
    """The cases as Markdown, failed ones with their error."""
    lines = [
        "| context | Liger | tokens/s | TFLOP/s | MFU | peak GiB | estimated | head's share | "
        "attention |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        first = f"| {r['context']} | {'on' if r['liger'] else 'off'} |"
        if "error" in r:
            lines.append(f"{first} {r['error']} | | | | | | |")
            continue
        mfu = "" if r["mfu"] is None else f"{r['mfu']:.0%}"
        lines.append(
            f"{first} {r['tokens_per_s']:.0f} | {r['tflops']:.3g} | {mfu} | {r['peak_gib']:.1f} | "
            f"{r['estimated_gib']:.1f} | {r['head_share']:.0%} | {r['attention']} |"
        )
    return "\n".join([*lines, ""])


def in_own_process(arguments: argparse.Namespace, context: int, liger: bool) -> dict[str, Any]:
    """The result of one case, or its error.

    Args:
        arguments: of the command line.
        context: tokens of a micro-batch.
        liger: with Liger's kernels.
    """
    command = [
        sys.executable, "-m", "bench", "step-gpu", "--shape", arguments.shape,
        "--device", arguments.device, "--context", str(context),
        "--rounds", str(arguments.rounds), "--entropy", str(arguments.entropy),
        "--case", "on" if liger else "off",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        return {"context": context, "liger": liger, "error": f"over {arguments.limit} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    print(done.stderr[-4000:], file=sys.stderr, flush=True)
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return {"context": context, "liger": liger, "error": reason[:200].replace("|", "/")}


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """Where and how it was measured. Results that were written since do not change the commit."""
    keys = ("device", "cores", "torch", "python", "commit", "rounds", "entropy")
    return {key: str(result.get(key)).removesuffix("-dirty") for key in keys}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench step-gpu``."""
    parser.add_argument("--shape", choices=MODEL_CONFIGS, default="qwen2-1.5b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, nargs="+", default=[8192, 16_384])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entropy", type=float, default=0.7, help="nats")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--limit", type=float, default=500, help="seconds of a call")
    parser.add_argument("--again", action="store_true", help="measure all cases anew")
    parser.add_argument("--case", choices=["on", "off"], help="this one alone, with Liger or not")


def run(arguments: argparse.Namespace) -> int:
    """``python -m bench step-gpu``; exit code 1 if a case failed, 3 if some are left."""
    device = torch.device(arguments.device)
    if arguments.case:
        row = measure(
            arguments.shape, device, arguments.context[0], arguments.case == "on",
            arguments.rounds, arguments.entropy,
        )  # fmt: skip
        print(json.dumps(row))
        return 0

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    out = arguments.out or RESULTS / name.replace(" ", "-").lower()
    file = out / f"training_step_{arguments.shape}.json"
    here = environment() | {"rounds": arguments.rounds, "entropy": arguments.entropy}
    rows: list[dict[str, Any]] = []
    if file.is_file() and not arguments.again:
        before = json.loads(file.read_text())
        if comparable(before) == comparable(here):
            rows = [row for row in before["cases"] if "error" not in row]
    done = {(row["context"], row["liger"]) for row in rows}
    liger = (False, True) if device.type == "cuda" else (False,)
    wanted = [(c, on) for c in arguments.context for on in liger if (c, on) not in done]
    start, longest = time.monotonic(), 0.0
    while wanted and time.monotonic() - start + longest < arguments.limit:
        begun = time.monotonic()
        rows.append(in_own_process(arguments, *wanted.pop(0)))
        longest = max(longest, time.monotonic() - begun)
        rows.sort(key=lambda row: (row["context"], row["liger"]))
        write(out, f"training_step_{arguments.shape}", {**here, "cases": rows}, table(rows))
    if wanted:
        print(f"{len(wanted)} cases left: run the same command again")
        return 3
    return int(any("error" in row for row in rows))
