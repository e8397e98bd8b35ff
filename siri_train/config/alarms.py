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

    # mismatch
    rollout_kl: float = Field(0.05, gt=0, le=100)
    """sampler-mismatch: largest |``rollout_kl``|, nats per token. A bf16 sampler beside a bf16
    trainer is at 0.001 to 0.01."""
    rollout_ratio: float = Field(10.0, gt=1, le=1e9)
    """sampler-mismatch: largest ratio trainer / sampler of a token; 3 is usual in bf16."""

    # throughput

    # tokens

    # rollout
    unjudged: Share = 0.01
    """answers-not-judged: largest share of a step's answers without a verdict."""

    # length

    # accuracy

    # entropy

    # reward

    # truncation

    # groups
