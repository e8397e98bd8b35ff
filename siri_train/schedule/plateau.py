"""The shape ``plateau``: the cap turns when the run has stopped moving.

Compression: the cap falls along half a cosine and stays at ``min_len`` until the mean response
length falls no more. Expansion: the cap steps up to ``max_len`` and stays until the accuracy rises
no more. SIRI (arXiv 2509.25176) sees lengths follow the cap 100 to 200 steps late, so a fixed
cycle can turn too early. The paper has no such shape.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

from siri_train.schedule.checks import number_option, whole_option
from siri_train.schedule.length_schedule import LengthSchedule, Shape
from siri_train.schedule.waves import wave

_SHARES = {"fall": 4, "window": 16, "patience": 8, "least": 4, "most": 1}
"""Options that are steps, and the part of ``cycle`` that each is by default: 1 / this."""


class _Steps(NamedTuple):
    """The options that are steps, with their defaults."""

    fall: int
    window: int
    patience: int
    least: int
    most: int


def _steps(s: LengthSchedule) -> _Steps:
    def given(name: str) -> int:
        value = s.options[name]
        return max(1, s.cycle // _SHARES[name]) if value is None else value

    fall = given("fall")
    most = s.options["most"]
    return _Steps(
        fall,
        given("window"),
        given("patience"),
        given("least"),
        max(s.cycle, fall + 2, given("least")) if most is None else most,
    )


def _turns(s: LengthSchedule) -> list[int]:
    """Step counts after which the phase has changed, or is certain to; they begin with 0."""
    return [0] if s.state is None else [0, *s.state["turns"]]


def _begun(step: int, s: LengthSchedule) -> tuple[int, bool]:
    """The first step of the phase of ``step``, and whether that phase is a compression.

    Behind the last turn that is certain every phase lasts as long as it may.
    """
    turns, most = _turns(s), _steps(s).most
    if step < turns[-1]:
        count = bisect_right(turns, step)
        return turns[count - 1], count % 2 == 1
    more = (step - turns[-1]) // most
    return turns[-1] + more * most, (len(turns) + more) % 2 == 1


def _cap(step: int, s: LengthSchedule) -> float:
    begun, compression = _begun(step, s)
    fall = _steps(s).fall
    if not compression:
        return float(s.max_len)
    return wave(s, step - begun, 2 * fall) if step - begun < fall else float(s.min_len)


def _phase(step: int, s: LengthSchedule) -> str:
    return "compression" if _begun(step, s)[1] else "expansion"


def _ends(steps: int, s: LengthSchedule) -> list[int]:
    turns, most = _turns(s), _steps(s).most
    certain = [turn for turn in turns[1:] if turn <= steps]
    return [*certain, *range(turns[-1] + most, steps + 1, most)]


def _observe(row: Mapping[str, Any], s: LengthSchedule) -> dict[str, Any]:
    """The state after a step: the turns, and what is known of the phase in progress.

    What the row of step t decides begins with step t + 2. The batch of step t + 1 may have been
    sampled already (``rollout.asynchronous``), and the same run without that is to turn the same.
    """
    step, options = row["step"], _steps(s)
    turns = _ends(step + 1, s)  # by now these are certain
    before: Mapping[str, Any] = {} if s.state is None else s.state
    recent, best, since = before.get("recent", []), before.get("best"), before.get("since", 0)
    if step + 1 in turns:  # the next step begins a phase
        return {"turns": turns, "recent": [], "best": None, "since": 0}
    begun, compression = _begun(step, s)
    value = row["response_len_mean" if compression else "accuracy"]
    arrived = not compression or step - begun >= options.fall
    if arrived and value is not None:
        recent = [*recent, float(value)][-options.window :]
        if len(recent) == options.window:
            mean = math.fsum(recent) / len(recent)
            if best is None or _moved(mean, best, compression, s):
                best, since = mean, 0
            else:
                since += 1
    length = step + 2 - begun  # of the phase, if the turn were decided now
    if (since >= options.patience and length >= options.least) or length >= options.most:
        turns = [*turns, step + 2]
    return {"turns": turns, "recent": recent, "best": best, "since": since}


def _moved(mean: float, best: float, compression: bool, s: LengthSchedule) -> bool:
    if compression:
        return mean < best * (1 - s.options["length_tolerance"])
    return mean > best + s.options["accuracy_tolerance"]


def _check(s: LengthSchedule) -> None:
    for name in _SHARES:
        if s.options[name] is not None:
            whole_option(name, s.options[name], 2 if name == "most" else 1)
    number_option("length_tolerance", s.options["length_tolerance"], 0.0, 1.0)
    number_option("accuracy_tolerance", s.options["accuracy_tolerance"], 0.0, 1.0)
    steps = _steps(s)
    if steps.most < max(steps.fall + 2, steps.least):
        raise ValueError(
            f"options.most: got {steps.most}; takes at least options.least ({steps.least}) and 2 "
            f"more than options.fall ({steps.fall}), so that the cap reaches min_len"
        )


PLATEAU = Shape(
    _cap,
    phase=_phase,
    compressed_ends=lambda steps, s: _ends(steps, s)[::2],
    expanded_ends=lambda steps, s: _ends(steps, s)[1::2],
    options={
        **dict.fromkeys(_SHARES),
        "length_tolerance": 0.02,
        "accuracy_tolerance": 0.005,
    },
    check=_check,
    even_cycle=False,
    periodic=False,
    observe=_observe,
    forecast="the run decides when the cap turns; shown are the latest turns (options.most)",
)
