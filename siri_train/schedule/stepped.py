"""The shapes ``step-up`` and ``step-down``: one cap, then another until the run ends.

``step-up`` is how the paper's baseline DAPO-DeepScaleR-16K was trained: 8K until step 320 (1.5B) or
360 (7B), then 16K (arXiv 2509.25176).
"""

from __future__ import annotations

from siri_train.schedule.checks import whole_option
from siri_train.schedule.length_schedule import LengthSchedule, Shape


def _at(s: LengthSchedule) -> int:
    """The first step with the second cap."""
    at = s.options["at"]
    return max(1, s.cycle // 2) if at is None else at


def _check(s: LengthSchedule) -> None:
    if s.options["at"] is not None:
        whole_option("at", s.options["at"], 1)


def _before(steps: int, s: LengthSchedule) -> list[int]:
    return [_at(s)] if _at(s) <= steps else []


def _none(steps: int, s: LengthSchedule) -> list[int]:
    """The second cap has no end but the run's (`Shape.open_from`)."""
    return []


STEP_UP = Shape(
    lambda step, s: float(s.min_len if step < _at(s) else s.max_len),
    phase=lambda step, s: "compression" if step < _at(s) else "expansion",
    compressed_ends=_before,
    expanded_ends=_none,
    options={"at": None},
    check=_check,
    even_cycle=False,
    periodic=False,
    open_from=_at,
)
STEP_DOWN = Shape(
    lambda step, s: float(s.max_len if step < _at(s) else s.min_len),
    phase=lambda step, s: "expansion" if step < _at(s) else "compression",
    compressed_ends=_none,
    expanded_ends=_before,
    options={"at": None},
    check=_check,
    even_cycle=False,
    periodic=False,
    open_from=_at,
)
