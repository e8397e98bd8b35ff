"""The optimisers of a run: of its supervised stage and of RL."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from siri_train.config.base import Section
from siri_train.config.values import (
    Betas,
    GradClip,
    LearningRate,
    Rows,
    Steps,
    StepsOrNone,
    Tokens,
    WeightDecay,
)


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
