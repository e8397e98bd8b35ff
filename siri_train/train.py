"""The method in six steps: rollout, reward, advantage, log-prob, loss, update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from siri_kernels import group_advantages, policy_loss
from siri_train import distributed
from siri_train.config.loss import LossConfig
from siri_train.config.run import RunConfig, TrainConfig
from siri_train.model.no_dropout import set_rl_mode
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy
from siri_train.trainer.lock import run_lock
from siri_train.trainer.memory_check import out_of_memory_named
from siri_train.trainer.optimizer import set_learning_rate, step_if_finite
from siri_train.trainer.phase_switches import switch_metrics
from siri_train.trainer.reference_model import Reference
from siri_train.trainer.run import Run
from siri_train.trainer.signals import stop_request
from siri_train.trainer.update import (
    StatsOfStep,
    UpdateStats,
    backward,
    mini_batches,
    needing_gradient,
    own_micro_batches,
    samples_of,
    score,
)


def train(config: RunConfig, resume: str = "auto") -> Path:
    """Train with SIRI (arXiv 2509.25176) and return the run's folder.

    Args:
        config: a validated configuration.
        resume: ``auto`` continues the newest checkpoint of the run's folder if there is one,
            ``never`` starts anew, anything else is a checkpoint folder to continue from.

    Raises:
        ConfigError: something the configuration names is missing or impossible, or another process
            writes into the run's folder; raised before any work is done.
        Stopped: a signal (see :func:`siri_train.trainer.signals.stop_request`); a checkpoint holds
            everything done.
        EngineError: sampling failed; the newest checkpoint is good.
    """
    with (
        stop_request() as stop,
        distributed.session(config.device, config.distributed.timeout_minutes),
        run_lock(config.run_dir),
        Run.open(config, resume, stop) as run,
        run.rollouts as rollouts,
    ):
        temperature, device = config.rollout.temperature, run.policy.device
        for step in run.steps():
            # 1. Rollout: G responses to each question, none longer than the cap of this step.
            batch = rollouts(step)

            # 2. Reward: 1 if the answer in the response, truncated at the cap, is right, else 0.
            rewards = rollouts.grade(batch)

            # 3. Advantage: relative to the other responses to the same question (GRPO).
            phase = run.schedule.phase(step)
            scale = config.loss.own(phase).advantage_scale
            advantages = group_advantages(
                rewards, config.rollout.group_size, **config.advantage.options(scale)
            ).advantages

            # 4. to 6. Log-prob, loss, update: below. Truncated responses take part, unless
            # loss.overlong_filter takes them out.
            started = time.perf_counter()
            objective = config.loss.at(phase)
            samples = samples_of(batch.pairs, advantages)
            selected = run.select_steps(batch, samples)  # advantage.sas: not all of their tokens
            set_learning_rate(run.optimizer, step, config.train)
            with out_of_memory_named(config, device, f"the update of step {step}"):
                if objective.old_logprobs == "recompute":
                    needed = needing_gradient(samples, objective)
                    score(run.policy, needed, config.train.token_budget, temperature)
                stats = update(
                    run.policy, run.optimizer, samples, config.train, objective,
                    temperature=temperature, constant_length=config.schedule.max_len,
                    seed=run.seed(step), reference=run.reference,
                )  # fmt: skip
            stats.extra |= selected | switch_metrics(config.loss, phase, batch)
            rollouts.wait()  # asynchronous: the next batch is sampled from the weights until here
            probed = run.sync_engine(step)
            run.finish_step(batch, stats, time.perf_counter() - started, probed)
        run.finish()
    return config.run_dir


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    config: TrainConfig,
    objective: LossConfig,
    *,
    temperature: float,
    constant_length: int,
    seed: int,
    reference: Reference | None = None,
) -> UpdateStats:
    """Train on one step's responses, in ``train.mini_batches`` updates.

    Args:
        policy: the model.
        optimizer: over its parameters.
        samples: with old log-probs and advantages, the same on every rank.
        config: the recipe's section ``train``.
        objective: the recipe's section ``loss``.
        temperature: of the sampling distribution.
        constant_length: see :func:`siri_train.trainer.update.mini_batches`.
        seed: of the shuffle.
        reference: the model of the KL term; needed where ``loss.kl_coef`` is not 0.
    """
    recomputed = objective.old_logprobs == "recompute"
    stats = StatsOfStep(objective, config.mini_batches)
    set_rl_mode(policy.model)
    for mini_batch in mini_batches(
        samples, config.mini_batches, objective, constant_length=constant_length, seed=seed
    ):
        optimizer.zero_grad(set_to_none=True)
        for batch in own_micro_batches(policy, mini_batch.samples, config.token_budget):
            # 4. Log-prob: of every response token, by the reference and by the policy.
            ref_logprobs = reference.token_logprobs(batch, temperature) if reference else None
            logprobs, entropy = policy.token_logprobs(
                batch, temperature=temperature, tail=config.tail
            )

            # 5. Loss: the ratio to the old log-probs, clipped, times the advantage (and others).
            loss, metrics = policy_loss(
                logprobs, batch.old_logprobs, batch.advantages, batch.cu_seqlens,
                entropy=entropy, ref_logprobs=ref_logprobs,
                rollout_logprobs=batch.rollout_logprobs if recomputed else None,
                denominator=mini_batch.denominator, **objective.options(),
            )  # fmt: skip
            backward(loss, batch)
            stats.add(loss, metrics, batch)

        # 6. Update: one optimiser step with the gradient of all micro-batches of all ranks.
        stats.updated(step_if_finite(optimizer, config.grad_clip))
    optimizer.zero_grad(set_to_none=True)
    return stats.over_all_ranks()
