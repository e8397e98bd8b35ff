"""The configuration of the alarms: ``monitor.alarms``, their thresholds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from siri_train.config.base import Section

Share = Annotated[float, Field(ge=0, le=1)]
Times = Annotated[float, Field(gt=1, le=1e6)]
"""A multiple of what is usual in the same run."""


class AlarmsConfig(Section):
    """Thresholds of the alarms; docs/alarms.md says which alarm reads which."""

    # gradient
    grad_norm_spike: Times = 20.0
    """grad-norm-spike: this many times the median of the last 50 steps."""
    grad_norm_creep: Times = 6.0
    """grad-norm-creep: the median of 50 steps is this many times that of the run's start."""
    grad_norm_vanishing: Share = 0.02
    """grad-norm-vanishing: the median of 50 steps is below this share of that of the start."""
    clip_frac: Share = 0.3
    """clip-saturation: largest share of trained tokens that are clipped, median of 10 steps. The
    clip of a token is below 0.01, that of a whole sequence (GSPO) near 0.15."""

    # mismatch
    rollout_kl: float = Field(0.05, gt=0, le=100)
    """sampler-mismatch: largest |``rollout_kl``|, nats per token. A bf16 sampler beside a bf16
    trainer is at 0.001 to 0.01."""
    rollout_ratio: float = Field(10.0, gt=1, le=1e9)
    """sampler-mismatch: largest ratio trainer / sampler of a token; 3 is usual in bf16."""
    rollout_kl_drift: Times = 5.0
    """sampler-drift: ``rollout_kl`` (median of 30 steps) is this many times that of the start."""
    probe_growth: Times = 5.0
    """sync-probe: ``probe_logprob_diff`` (median of three) is this many times the first ones."""

    # throughput
    throughput: Share = 0.4
    """throughput-decay: tokens per second (median of 30 steps, and of ten minutes of steps) fall
    below this share of the run's first steps of a like cap and number of tokens."""
    dense_rows: Share = 0.5
    """many-recomputed-tokens: largest ``dense_row_frac``, median of 20 steps."""

    # tokens
    repetitive: Share = 0.3
    """repetition: largest ``repetitive_frac``, median of 5 steps."""
    repetitive_growth: Share = 0.1
    """repetition: the same where it is also three times that of the run's first 20 steps."""
    wait_words: Share = 0.05
    """wait-words-gone: ``backtrack_per_1k`` in the second half of a whole expansion falls to this
    share of the run's first 20 steps, and accuracy has not grown by 0.05."""
    think_mismatch: Share = 0.9
    """wrong-think-setting: ``think_mismatch_frac`` is above this share in five steps in a row."""

    # rollout
    unjudged: Share = 0.01
    """answers-not-judged: largest share of a step's answers without a verdict."""

    # reference
    ref_kl: float = Field(1.0, gt=0, le=1000)
    """reference-drift: largest ``ref_kl``, nats per token, as a mean over 10 steps."""

    # length
    pinned: Share = 0.98
    """pinned-at-cap: the median length is at least this share of the cap."""
    tracking_correlation: float = Field(0.3, ge=-1, le=1)
    """length-not-tracking: least correlation of cap and median length over a cycle, at the lag at
    which it is largest."""
    tracking_gain: float = Field(0.15, ge=0, le=10)
    """length-not-tracking: least swing of the median length, as a share of the cap's swing."""
    length_explosion: Times = 1.5
    """length-explosion: this many times the length at like points, and held-out accuracy not
    better; without evaluations the square of it."""
    length_shrink: Share = 0.3
    """length-hacking: shorter by this share than at like points, and worse."""

    # accuracy
    accuracy_drop: Share = 0.05
    """accuracy-not-recovered, accuracy-decay, reward-hacking: least fall of held-out accuracy."""
    accuracy_sigmas: float = Field(3.0, ge=0, le=100)
    """The fall is also this many standard errors of the difference."""
    accuracy_scatter: Share = 0.02
    """Scatter between evaluations that is assumed beside their intervals: models a few steps apart
    differ. A run whose evaluations show more has more."""
    learned: Share = 0.9
    """Accuracy of training from which a task counts as learned: entropy, reward and length may
    then rest."""

    # entropy
    entropy_collapse: Share = 0.05
    """entropy-collapse: below this share of the run's first entropies."""
    entropy_blowup: Times = 3.0
    """entropy-blowup: this many times the run's first entropies."""
    entropy_band: Times = 2.0
    """entropy-out-of-band: this many times more than at the same place of the last cycle, than 20
    steps ago (and than all of the last cycle, and than it moved there) or, where the cap stays,
    than 100 steps ago; or 1.5 times as many times less."""

    # reward
    plateau_steps: int = Field(200, ge=20, le=2000)
    """reward-plateau: steps without a rise; where the cap moves whole cycles, twice as many at
    least as half of these steps need."""
    plateau_gain: Share = 0.01
    """reward-plateau: a rise between the two halves below this is none."""
    reward_decay: Share = 0.15
    """reward-decay: a fall by this share against like points."""

    # truncation
    truncated: Share = 0.9
    """mostly-truncated: share of truncated responses, as a mean over 10 steps."""
    truncation_rise: Share = 0.3
    """truncation-rising: so much more than at like points."""

    # groups
    groups_without_signal: Share = 0.7
    """groups-without-signal: share of groups all right or all wrong, as a mean over 20 steps."""
    held_out_learned: Share = 0.94
    """groups-without-signal: held-out accuracy, as a mean of 6 to 12 evaluations, from which groups
    that are all right are fine."""
