"""One optimiser step: mini-batches, micro-batches, exact denominators."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from siri_kernels import policy_loss, take_backward_stats
from siri_train.config import LossConfig, TrainConfig
from siri_train.model import Policy
from siri_train.packing import Sample, micro_batches


@dataclass
class UpdateStats:
    """Statistics of one step's updates; means are over the tokens that went through the model.

    ``None`` where nothing went through (every advantage was zero).
    """

    loss: float = 0.0
    grad_norm: float | None = None
    trained_tokens: int = 0
    skipped_updates: int = 0
    means: dict[str, float] = field(default_factory=dict)
    ratio_max: float | None = None
    rollout_kl: float | None = None
    dense_row_frac: float | None = None
    tail_mass_max: float | None = None


def make_optimizer(policy: Policy, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in policy.model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in policy.model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Constant after a linear warm-up over ``lr_warmup_steps``; ``step`` counts from 0."""
    return config.lr * min(1.0, (step + 1) / max(1, config.lr_warmup_steps))


@torch.no_grad()
def score(policy: Policy, samples: Sequence[Sample], token_budget: int, temperature: float) -> None:
    """Overwrite every sample's ``old_logprobs`` with the trainer's own log-probs."""
    for batch in micro_batches(samples, token_budget, policy.device, policy.pad_token_id):
        logprobs, _ = policy.token_logprobs(batch, temperature=temperature)
        pieces = logprobs.split(batch.cu_seqlens.diff().tolist())
        for index, piece in zip(batch.order, pieces, strict=True):
            samples[index].old_logprobs = piece.tolist()


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    train: TrainConfig,
    loss: LossConfig,
    *,
    temperature: float,
    constant_length: int,
    seed: int,
) -> UpdateStats:
    """Update the policy on one step's responses.

    The samples are shuffled and cut into ``train.mini_batches`` optimiser updates. Denominators
    are counted over the whole mini-batch before it is cut into micro-batches, so the gradient does
    not depend on how it is cut; none of them reads the moving cap (``token-sum-norm`` divides by
    ``constant_length``, the schedule's ``max_len``).

    Args:
        samples: the step's responses with old log-probs and advantages.
        train, loss: the recipe's sections.
        temperature: of the sampling distribution.
        constant_length: see above.
        seed: of the shuffle.
    """
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    size = -(-len(order) // train.mini_batches)
    stats = UpdateStats()
    sums: dict[str, float] = {}
    drift = 0.0
    first_tokens = 0
    grad_norms = []
    take_backward_stats()  # forget what others did before
    policy.model.train()
    for number, start in enumerate(range(0, len(order), size)):
        mini = [samples[i] for i in order[start : start + size]]
        denominator = _denominator(mini, loss.aggregation, constant_length)
        if loss.skip_zero_advantage and loss.entropy_coef == 0:
            # Their gradient is exactly zero; the denominator above has counted them.
            mini = [s for s in mini if s.advantage != 0]
        if not mini:
            continue
        optimizer.zero_grad(set_to_none=True)
        for batch in micro_batches(mini, train.token_budget, policy.device, policy.pad_token_id):
            logprobs, entropy = policy.token_logprobs(
                batch, temperature=temperature, tail=train.tail
            )
            result = policy_loss(
                logprobs,
                batch.old_logprobs,
                batch.advantages,
                batch.cu_seqlens,
                clip_low=loss.clip_low,
                clip_high=loss.clip_high,
                dual_clip=loss.dual_clip,
                aggregation=loss.aggregation,
                denominator=denominator,
                entropy=entropy,
                entropy_coef=loss.entropy_coef,
            )
            result.loss.backward()
            stats.loss += float(result.loss.detach()) / train.mini_batches
            stats.trained_tokens += batch.tokens
            for name, value in result.metrics.items():
                if name == "ratio_max":
                    stats.ratio_max = max(stats.ratio_max or 0.0, float(value))
                elif name != "tokens":
                    sums[name] = sums.get(name, 0.0) + float(value) * batch.tokens
            if number == 0:
                # Before the first update the trainer still is the policy that sampled: what the
                # log-probs differ by is the mismatch between sampler and trainer.
                drift += float(result.metrics["approx_kl"]) * batch.tokens
                first_tokens += batch.tokens
        parameters = [p for p in policy.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, train.grad_clip))
        if norm == norm and norm != float("inf"):
            optimizer.step()
            grad_norms.append(norm)
        else:
            stats.skipped_updates += 1
    optimizer.zero_grad(set_to_none=True)
    if grad_norms:
        stats.grad_norm = sum(grad_norms) / len(grad_norms)
    if stats.trained_tokens:
        stats.means = {name: total / stats.trained_tokens for name, total in sums.items()}
    head = take_backward_stats()
    if head is not None:
        stats.dense_row_frac = float(head.dense_row_frac)
        stats.tail_mass_max = float(head.tail_mass_max)
    if first_tokens:
        stats.rollout_kl = drift / first_tokens
    return stats


def _denominator(samples: Sequence[Sample], aggregation: str, constant_length: int) -> float:
    """What the loss of one optimiser update divides by, counted over all of its samples."""
    if aggregation == "token-mean":
        return float(sum(len(s.response_ids) for s in samples))
    if aggregation == "token-sum-norm":
        return float(len(samples) * constant_length)
    return float(len(samples))
