"""Alarms: signs of a run that trains on nothing or on noise, each with cause and action.

`check` looks at the newest row of ``metrics.jsonl``, `check_evaluation` at that of ``eval.jsonl``.
Each file here holds the checks of one theme; importing the package fills `ALARMS`.
"""

from siri_train.monitor.alarms import accuracy as accuracy
from siri_train.monitor.alarms import entropy as entropy
from siri_train.monitor.alarms import gradient as gradient
from siri_train.monitor.alarms import groups as groups
from siri_train.monitor.alarms import length as length
from siri_train.monitor.alarms import mismatch as mismatch
from siri_train.monitor.alarms import reference as reference
from siri_train.monitor.alarms import reward as reward
from siri_train.monitor.alarms import rollout as rollout
from siri_train.monitor.alarms import throughput as throughput
from siri_train.monitor.alarms import tokens as tokens
from siri_train.monitor.alarms import truncation as truncation
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

__all__ = [
    "ALARMS",
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
