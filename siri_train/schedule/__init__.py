"""The response-length cap over the steps of training, a pure function of the step.

SIRI (arXiv 2509.25176, section 4.3) lets the cap oscillate between ``max_len`` and ``min_len``.
A resumed run continues the same schedule: the cap depends on the step, and for the shape
``plateau`` also on a state that checkpoints hold.
"""

from siri_train.schedule.asymmetric import ASYMMETRIC
from siri_train.schedule.length_schedule import (
    SHAPES,
    STAIR_ORDERS,
    LengthSchedule,
    Shape,
    half_cycles,
    halves,
    whole_cycles,
)
from siri_train.schedule.paper import CONSTANT, COSINE, STAIR, STAIR_COSINE
from siri_train.schedule.plateau import PLATEAU
from siri_train.schedule.points import POINTS
from siri_train.schedule.stepped import STEP_DOWN, STEP_UP
from siri_train.schedule.toggle import TOGGLE

__all__ = [
    "SHAPES",
    "STAIR_ORDERS",
    "LengthSchedule",
    "Shape",
    "half_cycles",
    "halves",
    "whole_cycles",
]

SHAPES["cosine"] = COSINE
SHAPES["stair"] = STAIR
SHAPES["stair-cosine"] = STAIR_COSINE
SHAPES["constant"] = CONSTANT
SHAPES["asymmetric"] = ASYMMETRIC
SHAPES["step-up"] = STEP_UP
SHAPES["step-down"] = STEP_DOWN
SHAPES["points"] = POINTS
SHAPES["plateau"] = PLATEAU
SHAPES["toggle"] = TOGGLE
