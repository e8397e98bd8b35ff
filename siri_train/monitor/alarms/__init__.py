"""Alarms: signs of a run that trains on nothing or on noise, each with cause and action.

`check` looks at the newest row of ``metrics.jsonl``, `check_evaluation` at that of ``eval.jsonl``.
Each file here holds the checks of one theme; importing the package fills `ALARMS`.
"""

from siri_train.monitor.alarms import (
    accuracy,
    entropy,
    gradient,
    groups,
    length,
    mismatch,
    reward,
    rollout,
    throughput,
    tokens,
    truncation,
)
from siri_train.monitor.alarms.registry import (
    ALARMS,
    Alarm,
    Check,
    Raised,
    Record,
    alarm,
    check,
    check_evaluation,
    register,
    require_known,
)

THEMES = (
    accuracy, entropy, gradient, groups, length, mismatch, reward, rollout, throughput, tokens,
    truncation,
)  # fmt: skip
"""The modules that hold the alarms of this package."""

__all__ = [
    "ALARMS",
    "THEMES",
    "Alarm",
    "Check",
    "Raised",
    "Record",
    "alarm",
    "check",
    "check_evaluation",
    "register",
    "require_known",
]
