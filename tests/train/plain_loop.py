"""The oracle: the training loop without any scheduling of rollouts, from top to bottom."""

from __future__ import annotations

import copy
from typing import Any

import torch

from siri_kernels import group_advantages
from siri_train.config.run import RunConfig
from siri_train.data.sources import QuestionSampler
from siri_train.model.packing import Sample
from siri_train.model.policy import load_policy
from siri_train.rewards import Response, grade_responses
from siri_train.rollout import SamplingParams, TransformersEngine
from siri_train.train import update
from siri_train.trainer.optimizer import learning_rate, make_optimizer
from siri_train.trainer.preflight import preflight
from siri_train.trainer.update import score
from siri_train.trainer.verifier import build_verifier


def plain_train(config: RunConfig, behind: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train as ``siri_train.train.train`` must.

    Args:
        config: of the run; its folder is not touched.
        behind: by how many updates the weights that sample are older than those that are trained.

    Returns:
        For each step what a metrics row says of rewards, lengths and loss; and the last weights.
    """
    torch.set_num_threads(config.threads or 1)
    checked = preflight(config)
    policy = load_policy(config.model, torch.device("cpu"), checked.start)
    optimizer = make_optimizer(policy.model, config.train)
    sampler = QuestionSampler(checked.train_questions, config.rollout.prompts, config.seed)
    schedule, verifier, size = (
        config.schedule.build(),
        build_verifier(config.reward),
        (config.rollout.group_size),
    )
    history = [copy.deepcopy(policy.model)]
    rows = []
    for step in range(config.train.steps):
        seed = config.seed * 1_000_003 + step
        questions = sampler(step)
        sampling = history[max(0, len(history) - 1 - behind)]
        engine = TransformersEngine(sampling, policy.pad_token_id, config.rollout.batch_rows)
        params = SamplingParams(
            max_tokens=schedule(step), n=size, temperature=config.rollout.temperature,
            stop_token_ids=policy.eos_ids, seed=seed,
        )  # fmt: skip
        groups = engine.generate([q.prompt_ids for q in questions], params)
        pairs = [(q, c) for q, group in zip(questions, groups, strict=True) for c in group]
        texts = policy.decode([c.token_ids for _, c in pairs])
        grades = grade_responses(
            [Response(text, c.finish_reason) for text, (_, c) in zip(texts, pairs, strict=True)],
            [q.answer for q, _ in pairs], verifier=verifier, think=config.reward.think,
        )  # fmt: skip
        rewards = torch.tensor([grade.reward for grade in grades])
        advantages = group_advantages(rewards, size, eps=config.advantage.eps).advantages
        samples = [
            Sample(q.prompt_ids, c.token_ids, c.logprobs, a, rollout_logprobs=c.logprobs)
            for (q, c), a in zip(pairs, advantages.tolist(), strict=True)
        ]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.train)
        if config.loss.old_logprobs == "recompute":
            score(policy, samples, config.train.token_budget, config.rollout.temperature)
        stats = update(
            policy, optimizer, samples, config.train, config.loss,
            temperature=config.rollout.temperature, constant_length=config.schedule.max_len,
            seed=seed,
        )  # fmt: skip
        history = [*history[-1:], copy.deepcopy(policy.model)]
        rows.append({
            "cap": schedule(step), "reward_mean": float(rewards.double().mean()),
            "tokens": sum(len(c.token_ids) for _, c in pairs), "loss": stats.loss,
            "truncated_frac": sum(c.truncated for _, c in pairs) / len(pairs),
            "grad_norm": stats.grad_norm, "rollout_kl": stats.rollout_kl,
        })  # fmt: skip
    return rows, {name: p.detach().clone() for name, p in policy.model.named_parameters()}
