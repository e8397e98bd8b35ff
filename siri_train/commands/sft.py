"""The supervised stage before RL, so that RL starts with groups whose rewards differ."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siri_train.checkpoint.save_load import load_state
from siri_train.checkpoint.sft_state import Stage
from siri_train.commands.sft_batches import prepare_batches
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig, SftConfig
from siri_train.data.supervised import SupervisedExample
from siri_train.files import room_needed
from siri_train.model.folder import check_model
from siri_train.model.packing import MicroBatch, Sample, micro_batches
from siri_train.model.policy import Policy, choose_device, load_policy
from siri_train.model.same_model import require_same_model
from siri_train.monitor.progress import Progress
from siri_train.trainer.lock import run_lock
from siri_train.trainer.memory_check import out_of_memory_named
from siri_train.trainer.optimizer import MasterAdamW, all_finite, step_if_finite
from siri_train.trainer.preflight import model_config
from siri_train.trainer.signals import Stopped, StopRequest, stop_request

_SKIPPED_IN_A_ROW = 3
"""After so many steps without a finite loss and gradient the weights are taken for lost."""

_ASTRAY_IN_A_ROW = 50
"""After so many steps whose loss is far above guessing, too."""


@dataclass(frozen=True)
class SupervisedStats:
    """Statistics of one step of the supervised stage.

    Attributes:
        loss: weighted mean negative log-prob of the response tokens; may be infinite or NaN.
        grad_norm: global norm before clipping; None where the step was skipped because the loss or
            the gradient is infinite or NaN.
        tokens: response tokens.
    """

    loss: float
    grad_norm: float | None
    tokens: int


def supervise(config: RunConfig, resume: str = "auto") -> Path:
    """Run the recipe's supervised stage; returns the folder that training starts from.

    The result is an ordinary ``from_pretrained`` folder, ``RUN/sft``. Until it is complete the
    stage's checkpoints are in ``RUN/sft_stage``, every ``checkpoint.every`` steps.

    Args:
        config: a validated configuration.
        resume: ``auto`` continues a stage that is half done, with the bits of one that was never
            stopped; ``never`` refuses a folder that holds one.

    Raises:
        ConfigError: the recipe has no ``sft`` section, its data carry no solutions or none fits
            ``sft.max_len``, several ranks, what
            :func:`siri_train.model.policy.load_policy` refuses; or the weights became infinite or
            NaN, in which case no start is written; or another process writes into the run's folder.
        Stopped: SIGINT or SIGTERM; a checkpoint holds everything done.
        WriteError: the disk is full.
    """
    with stop_request() as stop, run_lock(config.run_dir), room_needed(config.run_dir):
        return _supervise(config, resume, stop)


def _supervise(config: RunConfig, resume: str, stop: StopRequest) -> Path:
    sft = config.sft
    if sft is None:
        raise ConfigError("sft: the recipe has no supervised stage; add a section sft")
    if resume not in ("auto", "never"):
        raise ConfigError(f"--resume: got {resume!r}, takes auto or never")
    ranks = os.environ.get("WORLD_SIZE", "1")
    if ranks != "1":
        raise ConfigError(
            f"sft: runs in one process, torchrun started {ranks}; run `siri-train sft` without "
            "torchrun, and `train` with it"
        )
    device = choose_device(config.device)
    stage = Stage(config)
    if stage.finished(resume):
        check_model(stage.start, "sft: the supervised start", say=False)
        print(f"{config.name} sft: all {sft.steps} steps are done ({stage.start})", flush=True)
        return stage.start
    source = stage.source()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    with stop.at_once():  # nothing to save yet
        batches, tokenizer = prepare_batches(config, sft)
    if source:
        require_same_model(source, model_config(config, None), tokenizer, config.model.path)
    # Checkpoints of adapters hold merged weights: these start from the base again.
    policy = load_policy(config.model, device, None if config.model.lora else source)
    optimizer = _optimizer(policy, config, sft)
    first = load_state(source, optimizer, policy.model) if source else 0
    rows = stage.prepare(first)
    if source:
        print(f"{config.name} sft: continues from step {first} ({source})", flush=True)
    progress = Progress(f"{config.name} sft", sft.steps, first)
    guard = _Guard(config, sft, stage, policy, rows)
    policy.model.train()
    try:
        for step in range(first, sft.steps):
            if stop:
                _end(stage, step, first, policy, optimizer, stop)
            lr = learning_rate(step, sft)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with out_of_memory_named(config, policy.device, f"step {step} of the sft stage"):
                stats = supervised_step(
                    policy, optimizer, batches(step), config.train.token_budget, sft
                )
            stage.record(
                {
                    "step": step,
                    "loss": stats.loss if math.isfinite(stats.loss) else None,
                    "lr": lr,
                    "grad_norm": stats.grad_norm,
                    "tokens": stats.tokens,
                    "skipped": stats.grad_norm is None,
                }
            )
            guard.after(step, stats)
            skipped = "  SKIPPED: loss or gradient not finite" if stats.grad_norm is None else ""
            progress.update(step + 1, f"loss {stats.loss:.3f}{skipped}")
            done, every = step + 1, config.checkpoint.every
            # Weights of a stage that diverges are not saved.
            if every and done % every == 0 and done < sft.steps and guard.good == step:
                guard.require_finite(step)
                stage.save(done, policy, optimizer)
        guard.before_the_start_is_written(batches(sft.steps - 1))
    finally:
        progress.close()
    folder = stage.finish(policy)
    print(f"{config.name}: supervised start in {folder}", flush=True)
    return folder


def _end(
    stage: Stage,
    step: int,
    first: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    stop: StopRequest,
) -> None:
    """Save and leave because a signal asked for it."""
    assert stop.signum is not None
    saved = stage.save(step, policy, optimizer) if step > first else None
    raise Stopped(
        f"{stage.config.name} sft: stopped before step {step}"
        + (f", {saved} holds everything until then" if saved else "")
        + "; run the same command again to continue",
        stop.signum,
    )


def _optimizer(policy: Policy, config: RunConfig, sft: SftConfig) -> torch.optim.AdamW:
    """AdamW, with float32 master weights where the model's are narrower."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    low = any(p.dtype != torch.float32 for p in trained)
    kind = MasterAdamW if low and config.train.master_weights else torch.optim.AdamW
    return kind(trained, lr=sft.lr, betas=sft.betas, weight_decay=sft.weight_decay)


class _Guard:
    """Ends a stage that has diverged, before its weights are used."""

    def __init__(
        self,
        config: RunConfig,
        sft: SftConfig,
        stage: Stage,
        policy: Policy,
        rows: Sequence[dict[str, Any]],
    ) -> None:
        """``rows``: the log until here; a resumed stage goes on counting where it was."""
        self.config, self.sft, self.stage, self.policy = config, sft, stage, policy
        self.guessing = math.log(policy.model.get_output_embeddings().weight.shape[0])
        self.limit = 2 * self.guessing  # or of the first step's loss, where the model begins worse
        self.skipped = self.astray = 0
        self.good: int | None = None  # the last step whose loss was finite and below the limit
        for row in rows:
            loss = row.get("loss") if not row.get("skipped") else None
            self._count(row.get("step", 0), loss)

    def after(self, step: int, stats: SupervisedStats) -> None:
        """Raise ConfigError if too many steps in a row were skipped or went astray."""
        self._count(step, None if stats.grad_norm is None else stats.loss)
        if self.skipped >= _SKIPPED_IN_A_ROW:
            self._lost(f"the loss or gradient of {self.skipped} steps in a row is infinite or NaN")
        if self.astray >= _ASTRAY_IN_A_ROW:
            self._lost(
                f"the loss of {self.astray} steps in a row is far above that of guessing, "
                f"{self.guessing:.3g}"
            )

    def require_finite(self, step: int) -> None:
        """Raise ConfigError if a weight is infinite or NaN after ``step``."""
        if not all_finite(self.policy.model.parameters()):
            self._lost(f"weights are infinite or NaN after step {step}")

    def before_the_start_is_written(self, examples: Sequence[SupervisedExample]) -> None:
        """Raise ConfigError unless weights and loss are finite and the loss is one of a model.

        A start whose loss is twice that of guessing among all tokens alike, and twice what it was
        at first, has diverged.
        """
        self.require_finite(self.sft.steps - 1)
        loss = supervised_loss(self.policy, examples, self.config.train.token_budget)
        if not math.isfinite(loss):
            self._lost("the loss after the last step is infinite or NaN")
        if loss > self.limit:
            self._lost(
                f"the loss after the last step is {loss:.3g}, guessing has {self.guessing:.3g}"
            )

    def _count(self, step: int, loss: float | None) -> None:
        """Take in a step's loss, None where the step was skipped."""
        if step == 0 and loss is not None:
            self.limit = max(self.limit, 2 * loss)
        self.skipped = self.skipped + 1 if loss is None else 0
        if loss is not None and loss <= self.limit:
            self.good, self.astray = step, 0
        else:
            self.astray += 1

    def _lost(self, what: str) -> None:
        # Weights are known to be good up to the last finite loss, which the step after the
        # checkpoint computed. Checkpoints saved later are deleted.
        left = self.stage.forget_after(-1 if self.good is None else self.good)
        again = f"continues from {left}" if left else "begins anew"
        if self.good is None:
            raise ConfigError(
                f"model.path: {self.config.model.path!r}: {what} before any update, so the model's "
                f"own weights or model.dtype ({self.config.model.dtype}) are at fault; no start is "
                "written"
            )
        raise ConfigError(
            f"sft.lr: {self.sft.lr:g} is too high: {what}; no start is written. Lower sft.lr and "
            f"run again: it {again}"
        )


def supervised_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[SupervisedExample],
    token_budget: int,
    config: SftConfig,
) -> SupervisedStats:
    """One optimiser step on the weighted mean negative log-prob of the response tokens.

    The weights are summed over the whole batch, so the gradient does not depend on how the batch is
    split into micro-batches. A step whose loss or gradient is infinite or NaN changes nothing.

    Args:
        policy: the model; its gradients are replaced.
        optimizer: of its parameters.
        examples: the batch.
        token_budget: most tokens of a micro-batch.
        config: ``grad_clip`` is used.
    """
    total = _total_weight(examples)
    optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for batch in _rows(policy, examples, token_budget):
        loss = _summed(policy, batch) / total
        loss.backward()
        value += float(loss.detach())
    norm = step_if_finite(optimizer, config.grad_clip) if math.isfinite(value) else None
    optimizer.zero_grad(set_to_none=True)
    return SupervisedStats(value, norm, sum(len(e.response_ids) for e in examples))


@torch.no_grad()
def supervised_loss(
    policy: Policy, examples: Sequence[SupervisedExample], token_budget: int
) -> float:
    """The loss of :func:`supervised_step` without a step and without dropout.

    Args:
        policy: the model.
        examples: the batch.
        token_budget: most tokens of a micro-batch.
    """
    training = policy.model.training
    policy.model.eval()
    rows = _rows(policy, examples, token_budget)
    value = sum(float(_summed(policy, batch)) for batch in rows) / _total_weight(examples)
    policy.model.train(training)
    return value


def _weights(example: SupervisedExample) -> list[float]:
    return example.weights or [1.0] * len(example.response_ids)


def _total_weight(examples: Sequence[SupervisedExample]) -> float:
    return sum(sum(_weights(e)) for e in examples)


def _rows(policy: Policy, examples: Sequence[SupervisedExample], token_budget: int) -> Any:
    samples = [Sample(e.prompt_ids, e.response_ids, loss_weights=_weights(e)) for e in examples]
    return micro_batches(samples, token_budget, policy.device)


def _summed(policy: Policy, batch: MicroBatch) -> torch.Tensor:
    logprobs, _ = policy.token_logprobs(batch, tail=0.0)
    assert batch.loss_weights is not None
    return -(logprobs * batch.loss_weights).sum()


def learning_rate(step: int, config: SftConfig) -> float:
    """Linear warm-up, then a cosine down to ``min_lr_ratio``."""
    warm = min(1.0, (step + 1) / max(1, config.lr_warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)
