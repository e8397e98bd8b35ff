"""Rollouts on a CPU: the refilled batch of the transformers engine beside padded ``generate``.

SmolLM2-135M-Instruct answers the sums of the recipe ``smollm2-135m.yaml`` at temperature 1. Their
prompts are short, like a prompt beside a response of thousands of tokens. Besides the
end-of-sequence token, a random part of the vocabulary ends a response, the same for both sides, so
that lengths are as ragged as in training: most are short, a few reach the cap. Both sides decode
the same number of sequences at a time with float32 weights on one thread. The time is that of the
process, which other work on the machine lengthens least. Log-probs are first compared with the
trainer's own; a side whose responses pass the cap reports no time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.device import Cpu
from bench.measure import in_turns
from bench.results_io import RESULTS, write
from siri_train.config.recipe import load_config
from siri_train.data.sources import encode_questions, read_sources
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy, load_policy
from siri_train.rollout import SamplingParams, TransformersEngine
from siri_train.trainer.update import score

RECIPE = "recipes/smollm2-135m.yaml"
CPU = torch.device("cpu")


@torch.no_grad()
def _padded_generate(
    model: Any, prompts: list[list[int]], params: SamplingParams, pad: int, rows: int
) -> list[list[int]]:
    """Response ids of ``model.generate`` on batches of ``rows`` prompts, padded at the left."""
    stops = sorted(params.stop_token_ids)
    torch.manual_seed(params.seed)
    responses = []
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        width = max(map(len, part))
        ids = torch.full((len(part), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=params.temperature,
            top_k=0, top_p=1.0, max_new_tokens=params.max_tokens, eos_token_id=stops,
            pad_token_id=pad,
        )  # fmt: skip
        for row in out[:, width:].tolist():
            end = next((i for i, token in enumerate(row) if token in params.stop_token_ids), None)
            responses.append(row if end is None else row[: end + 1])
    return responses


def _check(policy: Policy, prompts: list[list[int]], params: SamplingParams, rows: int) -> float:
    """Largest difference between the engine's log-probs and the trainer's on a few responses."""
    engine = TransformersEngine(policy.model, policy.pad_token_id, rows)
    short = SamplingParams(
        max_tokens=32, n=2, stop_token_ids=params.stop_token_ids, temperature=params.temperature
    )
    groups = engine.generate(prompts, short)
    pairs = [(p, c) for p, group in zip(prompts, groups, strict=True) for c in group]
    samples = [Sample(p, c.token_ids, []) for p, c in pairs]
    score(policy, samples, 4096, params.temperature)
    return max(
        abs(a - b)
        for sample, (_, c) in zip(samples, pairs, strict=True)
        for a, b in zip(sample.old_logprobs, c.logprobs, strict=True)
    )


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Both sides in turns; the result for the JSON, and the table.

    Raises:
        SystemExit: log-probs or responses are wrong; no times are reported.
    """
    config = load_config(RECIPE)
    policy = load_policy(config.model, CPU)
    naive = AutoModelForCausalLM.from_pretrained(
        config.model.path, dtype=torch.float32, trust_remote_code=False
    )
    questions = read_sources(config.data.train[1:2], "train", "data.train")
    encoded = encode_questions(questions[: arguments.questions], policy.tokenizer, config.data)
    prompts = [list(q.prompt_ids) for q in encoded]
    ends = torch.rand(policy.model.config.vocab_size, generator=torch.Generator().manual_seed(1))
    stops = policy.eos_ids | set((ends < arguments.hazard).nonzero()[:, 0].tolist())
    params = SamplingParams(
        max_tokens=arguments.cap, n=arguments.n, stop_token_ids=frozenset(stops), seed=0
    )
    off = _check(policy, prompts[:4], params, rows=3)
    if not off < 1e-3:
        raise SystemExit(f"log-probs differ from the trainer's by {off:.1e}: no times reported")
    rows = arguments.rows
    repeated = [p for p in prompts for _ in range(params.n)]
    sides: dict[str, Any] = {
        "padded generate": lambda p: _padded_generate(
            naive, repeated, p, policy.pad_token_id, rows
        ),
        "transformers engine": lambda p: [
            c.token_ids
            for group in TransformersEngine(policy.model, policy.pad_token_id, rows).generate(
                prompts, p
            )
            for c in group
        ],
    }
    lengths: dict[str, list[int]] = {name: [] for name in sides}

    def sampled(name: str, side: Callable[[SamplingParams], list[Any]]) -> Callable[[], None]:
        numbers = itertools.count()

        def step() -> None:
            responses = side(replace(params, seed=next(numbers)))  # both sides: 0, 1, ...
            lengths[name] += [len(r) for r in responses]
            if len(responses) != len(repeated) or max(map(len, responses)) > params.max_tokens:
                raise SystemExit(f"{name}: wrong responses, no times reported")

        return step

    steps = {name: sampled(name, side) for name, side in sides.items()}
    turns = in_turns(steps, Cpu(), float("inf"), arguments.rounds, arguments.rounds)
    seconds = {name: turn["process"] for name, turn in turns.items()}
    rate = {name: sum(lengths[name]) / sum(seconds[name]) for name in sides}
    spread = {
        name: {
            "mean": statistics.mean(values),
            "p50": statistics.median(values),
            "p95": sorted(values)[int(0.95 * len(values))],
            "cut": sum(v == params.max_tokens for v in values) / len(values),
        }
        for name, values in lengths.items()
    }
    measured = {
        "model": "SmolLM2-135M-Instruct, float32", "threads": 1,
        "responses": len(repeated), "rows": rows, "cap": params.max_tokens,
        "rounds": arguments.rounds, "hazard": arguments.hazard, "processor_seconds": seconds,
        "lengths": lengths, "spread": spread, "tokens_per_s": rate, "logprob_difference": off,
    }  # fmt: skip
    base = rate["padded generate"]
    table = [
        "| sampler | tokens/s | speed | response length mean, p50, p95 | cut at the cap |",
        "|---|---|---|---|---|",
    ]
    for name in sides:
        s = spread[name]
        table.append(
            f"| {name} | {rate[name]:.1f} | {rate[name] / base:.2f} | {s['mean']:.0f}, "
            f"{s['p50']:.0f}, {s['p95']:.0f} | {s['cut']:.1%} |"
        )
    prompt = statistics.mean(map(len, prompts))
    note = (
        f"SmolLM2-135M, float32, one thread, processor time; {len(prompts)} questions "
        f"({prompt:.0f} tokens) x {params.n} responses, cap {params.max_tokens}, {rows} rows "
        f"at a time, {arguments.rounds} rounds. Log-probs within {off:.0e} of the trainer's."
    )
    return measured, "\n".join([*table, "", note, ""])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench rollout``."""
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--cap", type=int, default=192)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--hazard", type=float, default=0.012)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")
    parser.add_argument("--name", default="rollout", help="of the result's files")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench rollout``: write ``NAME.json`` and ``NAME.md``."""
    torch.set_num_threads(1)
    measured, table = measure(arguments)
    write(arguments.out, arguments.name, measured, table)
