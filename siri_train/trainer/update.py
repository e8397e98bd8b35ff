"""The parts of an update: mini-batches, micro-batches, the trainer's log-probs, statistics.

:func:`siri_train.train.update` puts them together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from siri_kernels import take_backward_stats, take_forward_stats
from siri_train import distributed
from siri_train.config.loss import LossConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.model.packing import MicroBatch, Sample, micro_batches
from siri_train.model.policy import Policy
from siri_train.rollout.engine import Completion


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
    screened_frac: float | None = None
    screen_error_max: float | None = None


@dataclass(frozen=True)
class MiniBatch:
    """The responses of one optimiser update.

    Args:
        samples: those that need a gradient, at least one.
        denominator: what the loss divides by. It is computed over all counted responses of the
            mini-batch, of all ranks, so the gradient does not depend on how they are packed into
            micro-batches.
    """

    samples: list[Sample]
    denominator: float


def mini_batches(
    samples: Sequence[Sample], count: int, loss: LossConfig, *, constant_length: int, seed: int
) -> Iterator[MiniBatch]:
    """Shuffle a step's responses and split them into mini-batches of equal size.

    One in which no response needs a gradient is left out. Which responses a mini-batch has does
    not depend on ``loss.overlong_filter``: those that it takes out are missing in theirs.

    Args:
        samples: the step's responses, the same on every rank.
        count: ``train.mini_batches``.
        loss: the recipe's section.
        constant_length: what ``token-sum-norm`` divides by; it must not depend on the step.
        seed: of the shuffle.
    """
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    bounds = [len(order) * n // count for n in range(count + 1)]
    for start, end in itertools.pairwise(bounds):
        mini = counted([samples[i] for i in order[start:end]], loss)
        needed = needing_gradient(mini, loss)
        if needed:
            yield MiniBatch(needed, _denominator(mini, loss.aggregation, constant_length))


def samples_of(
    pairs: Sequence[tuple[EncodedQuestion, Completion]], advantages: Tensor
) -> list[Sample]:
    """A step's responses as the update sees them.

    Args:
        pairs: question and response.
        advantages: [B], one a response.
    """
    return [
        Sample(
            question.prompt_ids,
            completion.token_ids,
            completion.logprobs,
            advantage,
            rollout_logprobs=completion.logprobs,
            truncated=completion.truncated,
        )
        for (question, completion), advantage in zip(pairs, advantages.tolist(), strict=True)
    ]


def counted(samples: Sequence[Sample], loss: LossConfig) -> list[Sample]:
    """The samples that the loss and its denominator are about.

    Those that are truncated are not, with ``loss.overlong_filter``.
    """
    return [s for s in samples if not (loss.overlong_filter and s.truncated)]


def needing_gradient(samples: Sequence[Sample], loss: LossConfig) -> list[Sample]:
    """The samples that can have a gradient: of those that are counted.

    Those whose advantage is exactly zero (groups all right or all wrong) have none, unless the
    loss has an entropy or a KL term. They stay in the denominators.
    """
    samples = counted(samples, loss)
    if not loss.skip_zero_advantage or loss.entropy_coef != 0 or loss.kl_coef != 0:
        return samples
    return [s for s in samples if s.advantage != 0]


def own_micro_batches(
    policy: Policy, samples: Sequence[Sample], token_budget: int
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of samples that are the same on every rank.

    Args:
        policy: on whose device they are put.
        samples: of all ranks.
        token_budget: tokens of a micro-batch.
    """
    return micro_batches(
        samples,
        token_budget,
        policy.device,
        rank=distributed.rank(),
        ranks=distributed.world_size(),
    )


@torch.no_grad()
def score(policy: Policy, samples: Sequence[Sample], token_budget: int, temperature: float) -> None:
    """Overwrite every sample's ``old_logprobs`` with the trainer's own log-probs.

    Args:
        policy: the model before its first update of the step.
        samples: the same on every rank; the ranks share the work.
        token_budget: tokens of a micro-batch.
        temperature: of the sampling distribution.
    """
    scored: list[tuple[int, list[float]]] = []
    policy.model.eval()  # no dropout: a sampler has none
    for batch in own_micro_batches(policy, samples, token_budget):
        logprobs, _ = policy.token_logprobs(batch, temperature=temperature)
        if not batch.dummy:
            pieces = logprobs.cpu().split(batch.cu_seqlens.diff().tolist())
            scored += [(i, p.tolist()) for i, p in zip(batch.order, pieces, strict=True)]
    for part in distributed.gather(scored):
        for index, values in part:
            samples[index].old_logprobs = values


def backward(loss: Tensor, batch: MicroBatch) -> None:
    """Add the gradient of a micro-batch's loss to that of the update.

    Args:
        loss: 0-d, divided by the denominator of the whole mini-batch.
        batch: the micro-batch; a dummy adds zero.
    """
    # FSDP averages gradients over the ranks; the denominator already includes all ranks.
    weight = 0 if batch.dummy else distributed.world_size()
    (loss * weight).backward()


class StatsOfStep:
    """Collects the statistics of one step's updates, on the device until the step is over.

    Args:
        loss: the recipe's section.
        mini_batches: how many the step has; the loss is their mean.
    """

    def __init__(self, loss: LossConfig, mini_batches: int) -> None:
        self.loss, self.mini_batches = loss, mini_batches
        self._sums: dict[str, Tensor | float] = {}
        self._largest: dict[str, Tensor] = {}
        self._grad_norms: list[float] = []
        self._skipped = 0
        take_backward_stats()  # drops what other calls of the head left
        take_forward_stats()

    def add(self, loss: Tensor, metrics: dict[str, Tensor], batch: MicroBatch) -> None:
        """Add a micro-batch's loss and metrics, as ``policy_loss`` returned them.

        Args:
            loss: 0-d.
            metrics: 0-d each.
            batch: the micro-batch; a dummy is ignored.
        """
        if batch.dummy:
            return
        tokens = batch.tokens
        self._maximum("ratio_max", metrics["ratio_max"])
        values: dict[str, Tensor | float] = {
            k: v * tokens for k, v in metrics.items() if k not in ("ratio_max", "tokens")
        }
        values |= {"loss": loss.detach(), "tokens": tokens}
        # The mismatch between sampler and trainer, before any update. Where the old log-probs were
        # recomputed, policy_loss compares them with the sampler's. Where they are the sampler's,
        # the first mini-batch's policy still is the one that sampled: its ratio is the mismatch.
        before_any_update = not self._grad_norms and not self._skipped
        if "rollout_kl" in metrics:
            assert batch.rollout_logprobs is not None
            difference = (batch.old_logprobs - batch.rollout_logprobs).nan_to_num(0.0)
            self._maximum("rollout_ratio_max", difference.max().exp())
            values |= {"drift": values.pop("rollout_kl"), "drift_tokens": tokens}
        elif before_any_update:
            self._maximum("rollout_ratio_max", metrics["ratio_max"])
            values |= {"drift": values["approx_kl"], "drift_tokens": tokens}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def updated(self, grad_norm: float | None) -> None:
        """Note an optimiser update.

        Args:
            grad_norm: before clipping; None where the update was skipped.
        """
        if grad_norm is None:
            self._skipped += 1
        else:
            self._grad_norms.append(grad_norm)

    def over_all_ranks(self) -> UpdateStats:
        """The statistics of all ranks, the same on every rank. Collective."""
        stats = UpdateStats(skipped_updates=self._skipped)
        if self._grad_norms:
            stats.grad_norm = sum(self._grad_norms) / len(self._grad_norms)
        self._fill(stats)
        stats.extra = {name: stats.means.get(name) for name in _extra_metrics(self.loss)}
        return stats

    def _maximum(self, name: str, value: Tensor) -> None:
        known = self._largest.get(name)
        self._largest[name] = value if known is None else torch.maximum(known, value)

    def _fill(self, stats: UpdateStats) -> None:
        head, screen = take_backward_stats(), take_forward_stats()
        mine = {name: float(value) for name, value in self._sums.items()}
        largest = {name: float(value) for name, value in self._largest.items()}
        head_tokens = mine.get("tokens", 0.0)
        if head is not None and head_tokens:
            mine["dense_tokens"] = float(head.dense_row_frac) * head_tokens
            mine["head_tokens"] = head_tokens
            largest["tail_mass_max"] = float(head.tail_mass_max)
        if screen is not None and head_tokens:
            # The share is also of the reference's passes, which have the same tokens.
            mine["screened_tokens"] = screen.screened_frac * head_tokens
            mine["screen_tokens"] = head_tokens
            largest["screen_error_max"] = max(screen.estimate_max, screen.error_max or 0.0)
        everyone = distributed.gather((mine, largest))
        sums: dict[str, float] = {}
        for part, _ in everyone:
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value

        def over_ranks(name: str) -> float | None:
            return max((values[name] for _, values in everyone if name in values), default=None)

        tokens = sums.pop("tokens", 0.0)
        if not tokens:
            return
        stats.trained_tokens = int(tokens)
        stats.loss = sums.pop("loss") / self.mini_batches
        if head_tokens := sums.pop("head_tokens", 0.0):
            stats.dense_row_frac = sums.pop("dense_tokens") / head_tokens
            stats.tail_mass_max = over_ranks("tail_mass_max")
        if screen_tokens := sums.pop("screen_tokens", 0.0):
            stats.screened_frac = sums.pop("screened_tokens") / screen_tokens
            stats.screen_error_max = over_ranks("screen_error_max")
        stats.ratio_max = over_ranks("ratio_max")
        if compared := sums.pop("drift_tokens", 0.0):
            stats.rollout_kl = sums.pop("drift") / compared
            stats.rollout_ratio_max = over_ranks("rollout_ratio_max")
        stats.means = {name: value / tokens for name, value in sums.items()}


def _extra_metrics(loss: LossConfig) -> list[str]:
    """The metrics that only this loss has."""
    names = ["ref_kl"] if loss.kl_coef != 0 else []
    return names + ["off_policy_frac"] * (loss.off_policy_threshold is not None)


def _denominator(samples: Sequence[Sample], aggregation: str, constant_length: int) -> float:
    """The denominator of the loss of one optimiser update, over all of its samples."""
    if aggregation == "token-mean":
        return float(sum(len(s.response_ids) for s in samples))
    if aggregation == "token-sum-norm":
        return float(len(samples) * constant_length)
    return float(len(samples))
