"""One optimiser step: mini-batches, micro-batches, exact denominators."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from siri_kernels import PolicyLoss, policy_loss, take_backward_stats
from siri_train import distributed
from siri_train.config.loss import LossConfig
from siri_train.config.run import TrainConfig
from siri_train.model.no_dropout import set_rl_mode
from siri_train.model.packing import MicroBatch, Sample, micro_batches
from siri_train.model.policy import Policy
from siri_train.trainer.optimizer import step_if_finite
from siri_train.trainer.reference_model import Reference


@dataclass
class UpdateStats:
    """Statistics of one step's updates; means are over the tokens that went through the model.

    ``None`` where nothing went through (every advantage was zero). ``extra`` has the metrics that
    only some losses have: ``ref_kl``, ``off_policy_frac``.
    """

    loss: float = 0.0
    grad_norm: float | None = None
    trained_tokens: int = 0
    skipped_updates: int = 0
    means: dict[str, float] = field(default_factory=dict)
    ratio_max: float | None = None
    rollout_kl: float | None = None
    rollout_ratio_max: float | None = None
    extra: dict[str, float | None] = field(default_factory=dict)
    dense_row_frac: float | None = None
    tail_mass_max: float | None = None


@torch.no_grad()
def score(policy: Policy, samples: Sequence[Sample], token_budget: int, temperature: float) -> None:
    """Overwrite every sample's ``old_logprobs`` with the trainer's own log-probs.

    Args:
        samples: the same on every rank, which share the work.
    """
    scored: list[tuple[int, list[float]]] = []
    policy.model.eval()  # no dropout: a sampler has none
    for batch in _batches(policy, samples, token_budget):
        logprobs, _ = policy.token_logprobs(batch, temperature=temperature)
        if batch.counts:
            pieces = logprobs.cpu().split(batch.cu_seqlens.diff().tolist())
            scored += [(i, p.tolist()) for i, p in zip(batch.order, pieces, strict=True)]
    for part in distributed.gather(scored):
        for index, values in part:
            samples[index].old_logprobs = values


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
    reference: Reference | None = None,
) -> UpdateStats:
    """Update the policy on one step's responses.

    The samples are shuffled and cut into ``train.mini_batches`` optimiser updates of equal size.
    Denominators are counted over the whole mini-batch, of all ranks, before it is cut into rows, so
    the gradient does not depend on how that is cut; none reads the moving cap (``token-sum-norm``
    divides by ``constant_length``, the schedule's ``max_len``).

    Args:
        samples: the step's responses with old log-probs and advantages, the same on every rank.
        train, loss: the recipe's sections.
        temperature: of the sampling distribution.
        constant_length: see above.
        seed: of the shuffle.
        reference: the model of the KL term; needed where ``loss.kl_coef`` is not 0.
    """
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    cuts = [len(order) * n // train.mini_batches for n in range(train.mini_batches + 1)]
    stats = UpdateStats()
    sums = _Sums()
    grad_norms: list[float] = []
    take_backward_stats()  # forget what others did before
    set_rl_mode(policy.model)
    for start, end in itertools.pairwise(cuts):
        mini = [samples[i] for i in order[start:end]]
        denominator = _denominator(mini, loss.aggregation, constant_length)
        mini = live(mini, loss)
        if not mini:
            continue
        optimizer.zero_grad(set_to_none=True)
        for batch in _batches(policy, mini, train.token_budget):
            result = backward(
                policy,
                batch,
                train,
                loss,
                temperature=temperature,
                denominator=denominator,
                reference=reference,
            )
            if batch.counts:
                sums.add(result, batch, first=not grad_norms and not stats.skipped_updates)
        norm = step_if_finite(optimizer, train.grad_clip)
        if norm is None:
            stats.skipped_updates += 1
        else:
            grad_norms.append(norm)
    optimizer.zero_grad(set_to_none=True)
    if grad_norms:
        stats.grad_norm = sum(grad_norms) / len(grad_norms)
    sums.over_all_ranks(stats, train.mini_batches)
    stats.extra = {name: stats.means.get(name) for name in _extra_metrics(loss)}
    return stats


def live(samples: Sequence[Sample], loss: LossConfig) -> list[Sample]:
    """The samples that can have a gradient.

    Those whose advantage is exactly zero (groups all right or all wrong) have none, unless the
    loss has an entropy or a KL term. They stay in the denominators.
    """
    if not loss.skip_zero_advantage or loss.entropy_coef != 0 or loss.kl_coef != 0:
        return list(samples)
    return [s for s in samples if s.advantage != 0]


def backward(
    policy: Policy,
    batch: MicroBatch,
    train: TrainConfig,
    loss: LossConfig,
    *,
    temperature: float,
    denominator: float,
    reference: Reference | None = None,
) -> PolicyLoss:
    """Add one row's part of an update's gradient.

    Args:
        batch: the row.
        train, loss: the recipe's sections.
        temperature: of the sampling distribution.
        denominator: counted over all rows of the update, of all ranks.
        reference: the model of the KL term; needed where ``loss.kl_coef`` is not 0.

    Returns:
        The row's loss and metrics.
    """
    ref_logprobs = None if reference is None else reference.token_logprobs(batch, temperature)
    logprobs, entropy = policy.token_logprobs(batch, temperature=temperature, tail=train.tail)
    # Old log-probs that are the sampler's own say nothing about how far it is from the trainer.
    recomputed = loss.old_logprobs == "recompute"
    result = policy_loss(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        batch.cu_seqlens,
        **loss.options(),
        denominator=denominator,
        rollout_logprobs=batch.rollout_logprobs if recomputed else None,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
    )
    # FSDP averages gradients over the ranks; the denominator already counts all of them.
    weight = distributed.world_size() if batch.counts else 0
    (result.loss * weight).backward()
    return result


def _extra_metrics(loss: LossConfig) -> list[str]:
    """The metrics that this loss has and others have not."""
    names = ["ref_kl"] if loss.kl_coef != 0 else []
    return names + ["off_policy_frac"] * (loss.off_policy_threshold is not None)


def _batches(policy: Policy, samples: Sequence[Sample], token_budget: int) -> Iterator[MicroBatch]:
    return micro_batches(
        samples,
        token_budget,
        policy.device,
        rank=distributed.rank(),
        ranks=distributed.world_size(),
    )


class _Sums:
    """Token-weighted sums of a step's metrics, kept on the device until the step is over."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.largest: dict[str, Tensor] = {}

    def add(self, result: PolicyLoss, batch: MicroBatch, first: bool) -> None:
        """Count a row in; ``first``: no update has been made yet in this step."""
        metrics, tokens = result.metrics, batch.tokens
        self._at_least("ratio_max", metrics["ratio_max"])
        values: dict[str, Tensor | float] = {
            k: v * tokens for k, v in metrics.items() if k not in ("ratio_max", "tokens")
        }
        values |= {"loss": result.loss.detach(), "tokens": tokens}
        # The mismatch between sampler and trainer, before any update. Where the old log-probs were
        # computed anew, policy_loss compares them with the sampler's. Where they are the sampler's,
        # it is what the policy differs from them by while it still is the one that sampled.
        if "rollout_kl" in metrics:
            assert batch.rollout_logprobs is not None
            apart = (batch.old_logprobs - batch.rollout_logprobs).nan_to_num(0.0)
            self._at_least("rollout_ratio_max", apart.max().exp())
            values |= {"drift": values.pop("rollout_kl"), "drift_tokens": tokens}
        elif first:
            self._at_least("rollout_ratio_max", metrics["ratio_max"])
            values |= {"drift": values["approx_kl"], "drift_tokens": tokens}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _at_least(self, name: str, value: Tensor) -> None:
        known = self.largest.get(name)
        self.largest[name] = value if known is None else torch.maximum(known, value)

    def over_all_ranks(self, stats: UpdateStats, mini_batches: int) -> None:
        """Fill in ``stats``; every rank gets the same."""
        head = take_backward_stats()
        mine = {name: float(value) for name, value in self.sums.items()}
        rows = mine.get("tokens", 0.0)
        if head is not None and rows:
            mine["dense_rows"] = float(head.dense_row_frac) * rows
            mine["head_rows"] = rows
        largest = {name: float(value) for name, value in self.largest.items()}
        tail = None if head is None or not rows else float(head.tail_mass_max)
        everyone = distributed.gather((mine, largest, tail))
        sums: dict[str, float] = {}
        for part, _, _ in everyone:
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        tokens = sums.pop("tokens", 0.0)
        if not tokens:
            return
        stats.trained_tokens = int(tokens)
        stats.loss = sums.pop("loss") / mini_batches
        if head_rows := sums.pop("head_rows", 0.0):
            stats.dense_row_frac = sums.pop("dense_rows") / head_rows
            stats.tail_mass_max = max(t for _, _, t in everyone if t is not None)
        stats.ratio_max = max(r["ratio_max"] for _, r, _ in everyone if r)
        if compared := sums.pop("drift_tokens", 0.0):
            stats.rollout_kl = sums.pop("drift") / compared
            name = "rollout_ratio_max"
            stats.rollout_ratio_max = max(r[name] for _, r, _ in everyone if name in r)
        stats.means = {name: value / tokens for name, value in sums.items()}


def _denominator(samples: Sequence[Sample], aggregation: str, constant_length: int) -> float:
    """What the loss of one optimiser update divides by, counted over all of its samples."""
    if aggregation == "token-mean":
        return float(sum(len(s.response_ids) for s in samples))
    if aggregation == "token-sum-norm":
        return float(len(samples) * constant_length)
    return float(len(samples))
