"""The supervised stage before RL, so that RL starts with rewards to tell apart."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from siri_train.config import ConfigError, RunConfig, SftConfig
from siri_train.data import embedded
from siri_train.data.gate import check_data
from siri_train.data.rows import DataError
from siri_train.data.sources import read_sources
from siri_train.data.supervised import SupervisedExample, supervised_examples
from siri_train.files import written_aside
from siri_train.model import Policy, choose_device, load_policy
from siri_train.monitor.progress import Progress
from siri_train.packing import Sample, micro_batches
from siri_train.preflight import supervised_folder

# A pool of this many batches is sorted by length before it is cut: alike rows, still shuffled.
_POOL = 8


def supervise(config: RunConfig) -> Path:
    """Run the recipe's supervised stage; returns the folder that training starts from.

    The result is an ordinary ``from_pretrained`` folder, ``RUN/sft``, written aside and renamed.

    Raises:
        ConfigError: the recipe has no ``sft`` section, its data carry no solutions, or what
            :func:`siri_train.model.load_policy` refuses.
    """
    if config.sft is None:
        raise ConfigError("sft: the recipe has no supervised stage; add a section sft")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    sft = config.sft
    policy = load_policy(config.model, choose_device(config.device))
    batches = _batches(config, sft, policy)
    folder = supervised_folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / "sft.jsonl"
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=sft.lr, betas=sft.betas, weight_decay=sft.weight_decay
    )
    progress = Progress(f"{config.name} sft", sft.steps)
    policy.model.train()
    with log.open("w", encoding="utf-8") as file:
        for step in range(sft.steps):
            lr = learning_rate(step, sft)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = supervised_step(policy, optimizer, next(batches), config.train.token_budget, sft)
            file.write(json.dumps({"step": step, "loss": loss, "lr": lr}) + "\n")
            file.flush()
            progress.update(step + 1, f"loss {loss:.3f}")
    with written_aside(folder) as aside:
        policy.save(aside)
    print(f"{config.name}: supervised start in {folder}", flush=True)
    return folder


def supervised_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[SupervisedExample],
    token_budget: int,
    config: SftConfig,
) -> float:
    """One optimiser step on the weighted mean negative log-prob of the response tokens.

    The sum of the weights is counted over the whole batch, so the gradient does not depend on how
    it is cut into micro-batches. Returns the loss.
    """
    samples = [
        # The sampler's field carries the weights: one float for every response token.
        Sample(e.prompt_ids, e.response_ids, e.weights or [1.0] * len(e.response_ids))
        for e in examples
    ]
    total = sum(sum(s.old_logprobs) for s in samples)
    optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for batch in micro_batches(samples, token_budget, policy.device):
        logprobs, _ = policy.token_logprobs(batch, tail=0.0)
        loss = -(logprobs * batch.old_logprobs).sum() / total
        loss.backward()
        value += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.grad_clip)
    optimizer.step()
    return value


def _batches(
    config: RunConfig, sft: SftConfig, policy: Policy
) -> Iterator[list[SupervisedExample]]:
    questions = [q for q in read_sources(config.data.train, "train") if q.solution]
    check_data(questions, [], config.reward)
    if not questions:
        raise ConfigError(
            "data.train: no source has solutions; set solution_field for the sft stage"
        )
    if config.data.train[0].kind == "embedded":
        examples, skipped = embedded.supervised_examples(questions, policy.tokenizer), 0
    else:
        try:
            examples, skipped = supervised_examples(
                questions,
                policy.tokenizer,
                template=config.data.template,
                system=config.data.system,
                instruction=config.data.instruction,
                max_len=sft.max_len,
                think=config.reward.think == "required",
            )
        except DataError as error:
            raise ConfigError(f"data.train: {error}") from error
    if len(examples) < sft.batch_size:
        raise ConfigError(
            f"sft.batch_size: {sft.batch_size}, but only {len(examples)} examples fit into "
            f"sft.max_len ({skipped} are longer than {sft.max_len} tokens)"
        )
    print(
        f"{config.name} sft: {len(examples)} examples, {skipped} longer ones left out", flush=True
    )
    return _shuffled(examples, sft.batch_size, config.seed)


def _shuffled(
    examples: Sequence[SupervisedExample], batch_size: int, seed: int
) -> Iterator[list[SupervisedExample]]:
    """Endless batches of like length; every epoch in another order."""
    rng = random.Random(seed)
    while True:
        order = list(examples)
        rng.shuffle(order)
        for start in range(0, len(order) - batch_size + 1, batch_size * _POOL):
            pool = sorted(
                order[start : start + batch_size * _POOL], key=lambda e: len(e.response_ids)
            )
            cut = [
                pool[i : i + batch_size] for i in range(0, len(pool) - batch_size + 1, batch_size)
            ]
            rng.shuffle(cut)
            yield from cut


def learning_rate(step: int, config: SftConfig) -> float:
    """Linear warm-up, then a cosine down to ``min_lr_ratio``."""
    warm = min(1.0, (step + 1) / max(1, config.lr_warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)
