"""The method, one step after the other: rollout, reward, advantage, log-prob, loss, update."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from siri_kernels import group_advantages
from siri_train import distributed
from siri_train.config import RunConfig
from siri_train.monitor.metrics import step_metrics
from siri_train.optimizer import learning_rate
from siri_train.packing import Sample
from siri_train.rehearsal import out_of_memory_named
from siri_train.rewards import Response, length_capping_reward
from siri_train.rollout import SamplingParams
from siri_train.run import Run
from siri_train.step import live, score, update


def train(config: RunConfig, resume: str = "auto") -> Path:
    """Train with SIRI (arXiv 2509.25176) and return the run's folder.

    Args:
        config: a validated configuration.
        resume: ``auto`` continues the newest checkpoint of the run's folder if there is one,
            ``never`` starts anew, anything else is a checkpoint folder to continue from.

    Raises:
        ConfigError: something the configuration names is missing or impossible; raised before
            any work is done.
    """
    with (
        distributed.session(config.device, config.distributed.timeout_minutes),
        Run.open(config, resume) as run,
    ):
        policy, schedule = run.policy, run.schedule
        for step in range(run.start_step, config.train.steps):
            cap = schedule(step)
            seed = config.seed * 1_000_003 + step  # a resumed run draws what this one would have
            questions = run.sampler(step)

            # Rollout: G responses to each question, none longer than the cap of this step.
            started = time.perf_counter()
            groups = run.engine.generate(
                [question.prompt_ids for question in questions],
                SamplingParams(
                    max_tokens=cap,
                    n=config.rollout.group_size,
                    temperature=config.rollout.temperature,
                    top_p=config.rollout.top_p,
                    top_k=config.rollout.top_k,
                    stop_token_ids=policy.eos_ids,
                    seed=seed,
                ),
            )
            pairs = [(q, c) for q, group in zip(questions, groups, strict=True) for c in group]
            completions = [completion for _, completion in pairs]
            time_rollout = time.perf_counter() - started

            # Reward: 1 if finished within the cap and right, else 0 (SIRI section 3.1).
            texts = policy.decode(completions)
            grades = distributed.spread(
                lambda part: length_capping_reward(
                    [Response(text, completion.finish_reason) for text, (_, completion) in part],
                    [question.answer for _, (question, _) in part],
                    verifier=run.verifier,
                    think=config.reward.think,
                ),
                list(zip(texts, pairs, strict=True)),
            )

            # Advantage: relative to the other responses to the same question (GRPO).
            rewards = torch.tensor([grade.reward for grade in grades], dtype=torch.float32)
            advantages = group_advantages(
                rewards,
                config.rollout.group_size,
                baseline=config.advantage.baseline,
                scale=config.advantage.scale,
                eps=config.advantage.eps,
            )

            # Log-prob, clipped loss, update. Truncated responses take part with their reward of 0.
            started = time.perf_counter()
            run.engine.sleep()
            samples = [
                Sample(
                    question.prompt_ids,
                    completion.token_ids,
                    completion.logprobs,
                    advantage,
                    rollout_logprobs=completion.logprobs,
                )
                for (question, completion), advantage in zip(
                    pairs, advantages.advantages.tolist(), strict=True
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
                    seed=seed,
                )
            run.engine.sync()
            probed = run.probe.after_sync(seed)
            time_train = time.perf_counter() - started

            run.record(
                step_metrics(
                    step=step,
                    schedule=schedule,
                    completions=completions,
                    grades=grades,
                    group_size=config.rollout.group_size,
                    stats=stats,
                    lr=learning_rate(step, config.train),
                    backtrack_per_1k=run.backtracking(texts, completions),
                    time_rollout=time_rollout,
                    time_train=time_train,
                    probe_logprob_diff=probed,
                )
            )
            run.dump_rollouts(step, pairs, texts, grades)
            run.after_step(step + 1)  # evaluation, checkpoint, siri-low / siri-high
        run.finish()
    return config.run_dir
