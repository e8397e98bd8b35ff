"""The configuration of a run: typed sections with their defaults and what they accept.

All of it is checked before anything is loaded. Reading recipes is ``recipe.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from siri_train.config.alarms import AlarmsConfig
from siri_train.config.base import Section
from siri_train.config.data import DataConfig
from siri_train.config.loss import AdvantageConfig, LossConfig
from siri_train.config.method import DEFAULT_REWARD, RewardConfig, ScheduleConfig
from siri_train.config.model import ModelConfig
from siri_train.config.phases import PHASES, require_phase_fits
from siri_train.config.plugins import Plugin
from siri_train.config.rollout import RolloutConfig
from siri_train.config.values import (
    AlarmName,
    Betas,
    Device,
    FolderName,
    GradClip,
    LearningRate,
    Minutes,
    Project,
    Rows,
    Seed,
    SetName,
    Steps,
    StepsOrNone,
    TokenGroups,
    Tokens,
    UserPath,
    WeightDecay,
)
from siri_train.config.yaml_core import write_yaml
from siri_train.schedule import SHAPES


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
    max_tokens: int | None = Field(None, gt=0, le=10**15)
    """Ends the run earlier: after the step in which the response tokens sampled so far, those that
    dynamic sampling discards included, reach this; null: after ``steps``."""
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
    """Responses per question; also the largest k of pass@k. ``data.eval.N.samples`` is another
    number for a set."""
    temperature: float = Field(1.0, ge=0, le=100)
    """0: greedy; else at least 0.01."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1: off."""
    budgets: list[Tokens] = Field([], max_length=64)
    """Token budgets at which accuracy is reported; empty: both ends of the schedule."""
    at_start: bool = True
    """Evaluate before the first step, too."""
    select: SetName | None = None
    """The set of ``data.eval`` by which ``checkpoint.best`` chooses, so that the others stay
    unseen; null: the first set. The first set is what the summary and the page show first."""

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
    lag_window: StepsOrNone = 0
    """Steps behind each cycle end in which the evaluated checkpoint with the shortest responses,
    or behind an expanded end with the longest, is kept too: siri-low-measured, siri-high-measured.
    The lag is then measured and not given; 0: none."""


class MonitorConfig(Section):
    """Files, trackers and alarms besides the metrics."""

    rollouts_every: StepsOrNone = 10
    """Steps between dumps of sample responses; 0: none."""
    rollouts_kept: Rows = 16
    """Responses per dump."""
    token_groups: TokenGroups = {}
    """Groups of words of your own to count beside the paper's, by name, as
    ``{doubt: [maybe, not sure]}``; a name of the paper's (wait, hold_on, alternatively, so,
    compute) replaces that group."""
    halt_on_alarm: bool = False
    """Stop at the first alarm instead of recording it and going on."""
    halt_on: list[AlarmName] = Field([], max_length=64)
    """Stop at these alarms, by name (docs/alarms.md); the others are recorded."""
    alarms: AlarmsConfig = AlarmsConfig()
    tensorboard: bool = False
    """Also write RUN/tensorboard. The three trackers come with the extra ``loggers``."""
    wandb: Project | None = None
    """Also log to this project of Weights & Biases; WANDB_MODE=offline keeps it on this machine."""
    trackio: Project | None = None
    """Also log to this project of Trackio, on this machine (``trackio show``)."""
    price_per_gpu_hour: float | None = Field(None, ge=0, le=1e6)
    """Money that an hour of one GPU costs (without a GPU: of one process), in any currency; the
    page then says what a run and a point of accuracy cost, and trackers get the sum so far. null:
    no money is shown."""


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
        names = self.data.set_names
        if self.eval.select is not None and self.eval.select not in names:
            there = f"takes one of {', '.join(names)}" if names else "no source has a name"
            raise ValueError(
                f"eval.select ({self.eval.select}) must be the name of a source in data.eval; "
                f"{there}"
            )
        sequences = self.rollout.prompts * self.rollout.group_size
        if self.train.mini_batches > sequences:
            raise ValueError(
                f"train.mini_batches ({self.train.mini_batches}) must not exceed "
                f"rollout.prompts x rollout.group_size ({sequences})"
            )
        self._phases_and_reward()
        if self.distributed.vocabulary_parallel_head and self.train.screen not in (None, "auto"):
            raise ValueError(
                f"train.screen ({self.train.screen}) needs a whole head: set "
                "distributed.vocabulary_parallel_head to false, or train.screen to null or auto "
                "(no screen with such a head)"
            )
        longest = self.data.max_prompt_len + self.schedule.max_len
        window, every = self.checkpoint.lag_window, self.eval.every
        if window and not 0 < every <= window:
            raise ValueError(
                f"checkpoint.lag_window ({window}) chooses among evaluations, of which there is "
                f"none behind an end with eval.every={every}; set eval.every from 1 to {window}"
            )
        if self.train.token_budget < longest:
            raise ValueError(
                f"train.token_budget ({self.train.token_budget}) must hold one sequence: "
                f"data.max_prompt_len + schedule.max_len = {longest}"
            )
        return self

    def _phases_and_reward(self) -> None:
        """Some shapes act through a reward of theirs, and their reward through nothing else."""
        shape, function = self.schedule.shape, self.reward.function
        needed = SHAPES[shape].reward
        if needed not in (None, function):
            raise ValueError(
                f"schedule.shape: {shape} leaves the cap at max_len and acts through the reward "
                f"{needed}, got reward.function={function}; set reward.function={needed}"
            )
        if function == DEFAULT_REWARD:
            return
        from siri_train.rewards import REWARDS

        wanted = REWARDS[function].shape
        if wanted not in (None, shape):
            raise ValueError(
                f"reward.function: {function} acts in the phases of schedule.shape={wanted}, got "
                f"schedule.shape={shape}; set schedule.shape={wanted}"
            )

    @model_validator(mode="after")
    def _caps_fit(self) -> RunConfig:
        """The reward's options against the caps."""
        if self.reward.function != "length-cap":  # which reads none
            from siri_train.rewards import require_fit, reward_options

            name, schedule = self.reward.function, self.schedule.build()
            options = reward_options(name, self.reward.options)
            try:
                require_fit(name, options, schedule.lowest, schedule.max_len)
            except ValueError as error:
                raise ValueError(f"reward.{error}") from error
        return self

    @model_validator(mode="after")
    def _switches_fit(self) -> RunConfig:
        for phase in PHASES:
            require_phase_fits(
                phase,
                self.loss.own(phase),
                dynamic=self.rollout.dynamic,
                shortest=self.schedule.build().lowest,
                reward=self.reward.function,
            )
        return self

    @model_validator(mode="after")
    def _phases_there(self) -> RunConfig:
        sas = self.advantage.sas
        if sas is not None and sas.phases != "all" and self.schedule.build().constant:
            raise ValueError(
                f"advantage.sas.phases: got {sas.phases}, a phase that schedule.shape "
                f"{self.schedule.shape} does not have; takes all"
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
        schedule = self.schedule.build()  # a constant cap may lie below schedule.min_len
        return sorted(set(self.eval.budgets or [schedule.min_len, schedule.max_len]))

    def samples_of(self, name: str) -> int:
        """Responses to each held-out question of a set.

        Args:
            name: of the set; empty where sets have no names.

        Raises:
            KeyError: no source of ``data.eval`` has the name.
        """
        own = {source.name or "": source.samples for source in self.data.eval}[name]
        return self.eval.samples if own is None else own

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, which ``load_config`` reads back unchanged."""
        return write_yaml(self.model_dump(mode="json"))
