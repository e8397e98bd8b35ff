"""The configuration of a run: typed sections with their defaults and what they accept.

All of it is checked before anything is loaded. Reading recipes is ``recipe.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from siri_train.config.base import Section
from siri_train.config.loss import AdvantageConfig, LossConfig
from siri_train.config.method import RewardConfig, ScheduleConfig
from siri_train.config.model import ModelConfig
from siri_train.config.plugins import Plugin
from siri_train.config.rollout import RolloutConfig
from siri_train.config.values import (
    Betas,
    Device,
    FolderName,
    GradClip,
    LearningRate,
    Line,
    Minutes,
    Project,
    Rows,
    Seed,
    Steps,
    StepsOrNone,
    Text,
    Tokens,
    UserPath,
    WeightDecay,
    Word,
    check_tree,
)
from siri_train.config.yaml_core import write_yaml


class SourceConfig(Section):
    """One source of questions."""

    kind: Literal["embedded", "file", "reasoning_gym"]
    """embedded: a task of this package; file: ``path``; reasoning_gym: questions that this
    package generates."""
    path: UserPath | list[UserPath] = ""
    """JSONL, Parquet, a folder with SPLIT.jsonl, or ``hub:NAME``; of a list, the first found."""
    split: Word | None = None
    """Which split of ``path`` to read; null: train for ``data.train``, test for ``data.eval``."""
    question_field: Word = "question"
    """Column of the question; dots descend into objects."""
    answer_field: Word = "answer"
    """Column of the answer; dots descend into objects."""
    answer_after: Text | None = None
    """The answer is what follows this mark in ``answer_field`` (GSM8K: ``####``)."""
    solution_field: Word | None = None
    """Worked solution, for the supervised stage (GSM8K: ``answer``)."""
    limit: int | None = Field(None, gt=0, le=10**9)
    """file: read at most this many data rows; null: all."""
    offset: int = Field(0, ge=0, le=10**9)
    """file: skip this many data rows first."""
    task: Line = ""
    """reasoning_gym: the task's name; embedded: arithmetic (the demo's; also where empty) or
    search, in which trying again pays."""
    size: int = Field(1000, gt=0, le=10**6)
    """reasoning_gym and embedded: how many questions to generate."""
    seed: Seed = 0
    """reasoning_gym and embedded: seed of the generator. Train and eval must differ."""
    params: dict[str, Any] = {}
    """reasoning_gym and embedded: parameters of the generator."""
    required: bool = True
    """false: leave the source out, with a notice, when the package it needs is missing."""

    @field_validator("params")
    @classmethod
    def _plain_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_tree(value)
        for name in ("task", "size", "seed", "held_out", "progress"):
            if name in value:
                raise ValueError(f"{name} is not a parameter; it stands beside params or is fixed")
        return value

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        paths = [self.path] if isinstance(self.path, str) else self.path
        if self.kind == "file" and not (paths and all(path.strip() for path in paths)):
            raise ValueError("a source of kind file needs path, and none that is empty")
        if self.kind == "reasoning_gym" and not self.task:
            raise ValueError("a source of kind reasoning_gym needs task")
        return self


class DataConfig(Section):
    """Questions and how they are put to the model."""

    train: list[SourceConfig] = Field(default=[SourceConfig(kind="embedded")], min_length=1)
    """Sources of the questions to train on."""
    eval: list[SourceConfig] = Field(
        default=[SourceConfig(kind="embedded", seed=1, size=512)], min_length=1
    )
    """Sources of the held-out questions."""
    template: Literal["chat", "plain"] = "plain"
    """chat: the tokenizer's chat template; plain: the text as it is."""
    system: Text | None = None
    """System message; with plain a paragraph before the question. null: the template's own."""
    instruction: Text | None = None
    """Appended to every question; the default of chat models is DeepScaleR's boxed instruction."""
    max_prompt_len: Tokens = 64
    """Longer prompts are refused before the run starts, by name."""


class SftConfig(Section):
    """The supervised stage before RL."""

    steps: Steps = 200
    """Optimiser steps."""
    batch_size: Rows = 8
    """Examples per step."""
    lr: LearningRate = 1e-4
    """Highest learning rate, after the warm-up."""
    lr_warmup_steps: StepsOrNone = 10
    """Steps over which the learning rate rises linearly."""
    min_lr_ratio: float = Field(0.05, ge=0, le=1)
    """The cosine ends at this share of ``lr``."""
    weight_decay: WeightDecay = 0.01
    """AdamW's, on matrices only."""
    betas: Betas = (0.9, 0.98)
    """AdamW's."""
    grad_clip: GradClip = 1.0
    """Largest global norm of the gradient; a larger one is scaled down."""
    max_len: Tokens = 512
    """Longer examples are left out; their number is printed."""


class TrainConfig(Section):
    """The optimiser and the run's length."""

    steps: Steps = 1920
    """Steps of the run: rollout and update."""
    mini_batches: Rows = 2
    """Optimiser updates per step; with 1 the ratio is always 1 and nothing is clipped."""
    token_budget: int = Field(32768, gt=0, le=2**26)
    """Tokens (prompt and response) per forward pass and rank, packed without padding."""
    lr: LearningRate = 1e-6
    """Learning rate, constant after the warm-up."""
    lr_warmup_steps: StepsOrNone = 0
    """Steps over which the learning rate rises linearly; 0: none."""
    weight_decay: WeightDecay = 0.01
    """AdamW's, on matrices only."""
    betas: Betas = (0.9, 0.95)
    """AdamW's."""
    grad_clip: GradClip = 1.0
    """Global norm; a step whose gradient is infinite or NaN is skipped and reported."""
    master_weights: bool = True
    """Keep a float32 copy of bfloat16 weights in the optimiser; without it steps of 1e-6 are
    rounded away."""
    rehearse: Literal["auto", "always", "never"] = "auto"
    """Try the largest possible micro-batch before training; auto: on a GPU."""
    tail: float = Field(1e-2, ge=0, le=1)
    """``linear_logprob``'s tolerance on the relative L1 error of the logit gradient."""
    screen: Literal["int8", "fp8", "auto"] | None = None
    """``linear_logprob``'s screen, in every forward pass of RL: an 8-bit product finds the logits
    that are computed exactly; auto: where that is faster; null: none."""
    logprob_tol: float = Field(1e-4, gt=0, le=1)
    """With ``screen``, the largest estimated error of a log-prob in nats."""


class EvalConfig(Section):
    """Evaluation on held-out questions, one generation pass at the largest budget."""

    every: StepsOrNone = 40
    """Steps between evaluations; 0: only at the start, the cycle's ends and the end."""
    samples: int = Field(1, gt=0, le=2**16)
    """Responses per question; also the k of pass@k."""
    temperature: float = Field(1.0, ge=0, le=100)
    """0: greedy; else at least 0.01."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1: off."""
    budgets: list[Tokens] = Field([], max_length=64)
    """Token budgets at which accuracy is reported; empty: both ends of the schedule."""
    at_start: bool = True
    """Evaluate before the first step, too."""

    @field_validator("temperature")
    @classmethod
    def _greedy_or_warm(cls, value: float) -> float:
        if 0 < value < 0.01:  # vLLM would take 0.01 for it and only log that
            raise ValueError("takes 0, or a number from 0.01 to 100")
        return value


class CheckpointConfig(Section):
    """Which checkpoints are written and kept."""

    every: StepsOrNone = 20
    """Steps between checkpoints; cycle ends and the last step are always kept. 0: only those."""
    keep_last: Steps = 2
    """How many of the periodic checkpoints are kept."""
    best: Literal["accuracy", "accuracy_low_budget", "pass_at_k"] | None = None
    """Keep the best evaluated one too: by accuracy or pass@k at the largest budget, or accuracy
    at the smallest; of equals the one with fewer tokens. See ``eval.every``."""
    lag: StepsOrNone = 0
    """Steps after each cycle end for one more evaluated checkpoint, siri-low-lagged and
    siri-high-lagged (the paper's length lags the cap by 100 to 200 steps); 0: none."""


class MonitorConfig(Section):
    """Files, trackers and alarms besides the metrics."""

    rollouts_every: StepsOrNone = 10
    """Steps between dumps of sample responses; 0: none."""
    rollouts_kept: Rows = 16
    """Responses per dump."""
    halt_on_alarm: bool = False
    """Stop at the first alarm instead of recording it and going on."""
    tensorboard: bool = False
    """Also write RUN/tensorboard. The three trackers come with the extra ``loggers``."""
    wandb: Project | None = None
    """Also log to this project of Weights & Biases; WANDB_MODE=offline keeps it on this machine."""
    trackio: Project | None = None
    """Also log to this project of Trackio, on this machine (``trackio show``)."""


class DistributedConfig(Section):
    """Several processes: ``torchrun --nproc-per-node N -m siri_train train RECIPE``; FSDP2."""

    reshard_after_forward: bool = True
    """Free each layer's gathered weights after its forward pass; false: faster, more memory."""
    compute_dtype: Literal["bfloat16"] | None = None
    """Mixed precision: gathered weights and computation in this dtype over the stored weights
    (``model.dtype: float32`` makes these the master copy); null: as stored."""
    offload: bool = False
    """Keep weights, gradients and optimiser state in CPU memory; the optimiser runs there."""
    vocabulary_parallel_head: bool = False
    """Leave the head sharded by vocabulary and gather hidden states instead of its weight: less
    memory where the tokens of all ranks' micro-batches are fewer than the vocabulary. Not for tied
    heads."""
    timeout_minutes: Minutes = 60.0
    """Longest wait for another rank, which may be sampling or checking answers."""

    @model_validator(mode="after")
    def _head_is_somewhere(self) -> DistributedConfig:
        if self.offload and self.vocabulary_parallel_head:
            raise ValueError("vocabulary_parallel_head keeps the head on the GPU: not with offload")
        return self


class RunConfig(Section):
    """Everything a run needs; ``siri-train train RECIPE --dry-run`` prints it resolved."""

    name: FolderName = "siri"
    """Name of the run; a recipe without it takes the name of its file."""
    seed: Seed = 0
    """Seed of the questions' order, the responses and the mini-batches."""
    output: UserPath = ""
    """The run's folder; empty: runs/NAME."""
    device: Device = "auto"
    """auto: a GPU if there is one; or cpu, cuda, cuda:N, mps, xpu, xpu:N."""
    threads: int | None = Field(None, gt=0, le=1024)
    """CPU threads of torch; tiny models are fastest with 1."""
    plugins: list[Plugin] = Field([], max_length=64)
    """Python modules of your own, imported first: they add shapes, rewards, verifiers, objectives
    and alarms by name. A plug-in is a program that runs."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    sft: SftConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        sequences = self.rollout.prompts * self.rollout.group_size
        if self.train.mini_batches > sequences:
            raise ValueError(
                f"train.mini_batches ({self.train.mini_batches}) must not exceed "
                f"rollout.prompts x rollout.group_size ({sequences})"
            )
        if 2 * self.checkpoint.lag >= self.schedule.cycle:
            raise ValueError(
                f"checkpoint.lag ({self.checkpoint.lag}) must be less than half of schedule.cycle "
                f"({self.schedule.cycle}), where the next end lies"
            )
        if self.distributed.vocabulary_parallel_head and self.train.screen not in (None, "auto"):
            raise ValueError(
                f"train.screen ({self.train.screen}) needs a whole head: set "
                "distributed.vocabulary_parallel_head to false, or train.screen to null or auto "
                "(no screen with such a head)"
            )
        longest = self.data.max_prompt_len + self.schedule.max_len
        if self.train.token_budget < longest:
            raise ValueError(
                f"train.token_budget ({self.train.token_budget}) must hold one sequence: "
                f"data.max_prompt_len + schedule.max_len = {longest}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def sampler_dtype(self) -> str:
        """The dtype that vLLM computes in: its own setting, else the trainer's."""
        own = self.rollout.vllm.dtype
        return own or self.distributed.compute_dtype or self.model.dtype

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with the longest response, of training or evaluation."""
        return self.data.max_prompt_len + max(self.schedule.max_len, *self.budgets)

    @property
    def budgets(self) -> list[int]:
        """Evaluation budgets in tokens, ascending; the last one is what is generated."""
        return sorted(set(self.eval.budgets or [self.schedule.min_len, self.schedule.max_len]))

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, which ``load_config`` reads back unchanged."""
        return write_yaml(self.model_dump(mode="json"))
