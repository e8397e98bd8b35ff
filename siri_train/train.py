"""The method, one step after the other: rollout, reward, advantage, log-prob, loss, update."""

from __future__ import annotations

import time
from pathlib import Path

from siri_kernels import group_advantages
from siri_train import distributed
from siri_train.config.run import RunConfig
from siri_train.model.packing import Sample
from siri_train.trainer.lock import run_lock
from siri_train.trainer.memory_check import out_of_memory_named
from siri_train.trainer.metrics import step_metrics
from siri_train.trainer.optimizer import learning_rate
from siri_train.trainer.prefetch import Rollouts
from siri_train.trainer.run import Run
from siri_train.trainer.signals import stop_request
from siri_train.trainer.update import live, score, update


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
        Rollouts(run, stop) as rollouts,
    ):
        policy = run.policy
        for step in range(run.start_step, config.train.steps):
            # Rollout: G responses to each question, none longer than the cap of this step.
            # Reward: 1 if the answer in the response, cut at the cap, is right, else 0 (SIRI 3.1).
            batch = rollouts(step)

            # Advantage: relative to the other responses to the same question (GRPO).
            advantages = group_advantages(
                batch.rewards,
                config.rollout.group_size,
                baseline=config.advantage.baseline,
                scale=config.advantage.scale,
                eps=config.advantage.eps,
            )

            # Log-prob, clipped loss, update. Truncated responses take part, most with reward 0.
            started = time.perf_counter()
            samples = [
                Sample(
                    question.prompt_ids,
                    completion.token_ids,
                    completion.logprobs,
                    advantage,
                    rollout_logprobs=completion.logprobs,
                )
                for (question, completion), advantage in zip(
                    batch.pairs, advantages.advantages.tolist(), strict=True
                )
            ]
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(step, config.train)
            with out_of_memory_named(config, policy.device, f"the update of step {step}"):
                if config.loss.old_logprobs == "recompute":
                    needed = live(samples, config.loss)
                    score(policy, needed, config.train.token_budget, config.rollout.temperature)
                stats = update(
                    policy,
                    run.optimizer,
                    samples,
                    config.train,
                    config.loss,
                    temperature=config.rollout.temperature,
                    constant_length=config.schedule.max_len,
                    seed=run.seed(step),
                    reference=run.reference,
                )
            rollouts.wait()  # a batch that is being sampled ahead, from the weights until here
            run.engine.sync()
            probed = run.probe.after_sync(run.seed(step))
            time_train = time.perf_counter() - started

            run.record(
                step_metrics(
                    step=step,
                    schedule=run.schedule,
                    batch=batch,
                    stats=stats,
                    lr=learning_rate(step, config.train),
                    backtrack_per_1k=run.backtracking(batch),
                    time_train=time_train,
                    probe_logprob_diff=probed,
                ),
                batch.alarms(),
            )
            run.dump_rollouts(batch)
            run.after_step(step + 1, rollouts.state())  # evaluation, checkpoint, siri-low / -high
        run.finish()
    return config.run_dir
