"""Shared by the training-step benches: model configurations, sequences, FLOP counts.

Imports nothing that needs pydantic, which a bare GPU machine does not have.
"""

from __future__ import annotations

import random
import statistics
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.device import Wall
from bench.measure import in_turns
from siri_train.model.attention import packed_forward
from siri_train.model.packing import MicroBatch, Sample


class Scorer(Protocol):
    """A model on packed sequences, like ``siri_train.model.policy.Policy``."""

    model: Any

    def token_logprobs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of every response token."""


MODEL_CONFIGS: dict[str, dict[str, int]] = {
    "qwen2-1.5b": dict(
        vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2,
    ),
    "tiny": dict(
        vocab_size=8192, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    ),
}  # fmt: skip

# Dense bfloat16 TFLOP/s by the makers' data sheets, to turn FLOP/s into utilisation.
PEAK = {"H200": 989, "H100": 989, "A100": 312, "B200": 2250, "L40S": 362, "MI300X": 1307}


def peak_flops(device: str) -> float | None:
    """The data sheet's rate of a device whose name this is; None where it is not known."""
    return next((p * 1e12 for key, p in PEAK.items() if key in device), None)


def two_micro_batches(vocabulary: int, context: int) -> list[Sample]:
    """Two micro-batches of ``context`` tokens: one sequence in the first, three in the second."""
    rng = random.Random(0)
    prompt = context // 32
    return [
        Sample(
            [rng.randrange(vocabulary) for _ in range(prompt)],
            [rng.randrange(vocabulary) for _ in range(n)],
            [0.0] * n,
            advantage=rng.choice([-1.0, 1.0]),
        )
        for n in (context // share - prompt for share in (1, 2, 4, 4))
    ]


@torch.no_grad()
def hidden_of(policy: Scorer, batch: MicroBatch) -> Tensor:
    """[T, D]: the inputs of the head."""
    with packed_forward(batch.layout) as packed:
        hidden = policy.model.base_model(input_ids=batch.input_ids, **packed).last_hidden_state
    return hidden[0, batch.predictors]


@torch.no_grad()
def sharpen(policy: Scorer, batch: MicroBatch, entropy: float) -> None:
    """Scale the final norm until the softmax has this mean entropy.

    Args:
        policy: the model; its final norm is changed.
        batch: whose tokens are measured, 64 of them.
        entropy: in nats.
    """
    norm, head = policy.model.base_model.norm.weight, policy.model.get_output_embeddings().weight
    hidden = hidden_of(policy, batch)
    few = hidden[:: max(1, len(hidden) // 64)].float()
    low, high = 0.0, 1e4
    for _ in range(40):
        scale = (low + high) / 2
        logp = ((few * scale) @ head.float().T).log_softmax(-1)
        if -(logp.exp() * logp).sum(-1).mean() > entropy:
            low = scale
        else:
            high = scale
    norm.mul_(high)


@torch.no_grad()
def settle(policy: Scorer, batch: MicroBatch) -> None:
    """Targets drawn from the model's own softmax, and their log-probs as the old ones."""
    head = policy.model.get_output_embeddings().weight
    for start, rows in enumerate(hidden_of(policy, batch).split(1024)):
        drawn = torch.multinomial((rows @ head.T).float().softmax(-1), 1)[:, 0]
        batch.targets[start * 1024 : start * 1024 + len(drawn)] = drawn
    batch.old_logprobs.copy_(policy.token_logprobs(batch)[0])


def flops(model_config: str, lengths: list[int]) -> float:
    """Useful floating-point operations of forward and backward; recomputation is not counted."""
    s = MODEL_CONFIGS[model_config]
    width, kv = s["hidden_size"], s["num_key_value_heads"] / s["num_attention_heads"]
    layer = width * width * (2 + 2 * kv) + 3 * width * s["intermediate_size"]
    weights = s["num_hidden_layers"] * layer + s["vocab_size"] * width
    tokens, pairs = sum(lengths), sum(n * n / 2 for n in lengths)
    return 6 * weights * tokens + 12 * s["num_hidden_layers"] * width * pairs


def seconds(run: Any, device: torch.device, rounds: int) -> float:
    """Median wall time of a call.

    Args:
        run: a call without arguments.
        device: whose work is waited for.
        rounds: how many calls.
    """
    times = in_turns({"step": run}, Wall(device), float("inf"), rounds, rounds)
    return statistics.median(times["step"]["wall"])
