"""The response-length cap over the steps of training: one pure function of the step number.

SIRI (arXiv 2509.25176, section 4.3) lets the cap oscillate between ``max_len`` and ``min_len``.
Because the cap depends on nothing but the step, a resumed run continues the same schedule.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from siri_train.registry import Registry, one_of, with_defaults

STAIR_ORDERS = ("compress_first", "phase_centred")

_LARGEST = 2**53  # float64, in which the formulas are, holds every whole number up to here


@dataclass(frozen=True)
class LengthSchedule:
    """The cap L(t) at every step t, counted from 0 as in the paper (cosine: t = 0 is the top).

    Args:
        shape: a name in `SHAPES`: ``"cosine"`` (the paper's main schedule), ``"stair"``,
            ``"stair-cosine"``, or ``"constant"`` (always ``max_len``: the control run).
        max_len: the longest cap, in response tokens (16384 in the paper).
        min_len: the shortest cap (8192 in the paper); at most ``max_len``.
        cycle: steps in one compression and expansion together (640 in the paper). Even, where the
            compressed end lies after exactly half a cycle.
        stair_order: the paper describes the stair in words only. ``"compress_first"`` is the
            reading that fits its text: ``min_len`` for the first half of the cycle, ``max_len``
            for the second. ``"phase_centred"`` follows the sign of the cosine: ``min_len`` from
            a quarter to three quarters of the cycle.
        options: of the shape, by name (`Shape.options`); those left out have their defaults.
        state: what a shape has learnt from the steps done, see `Shape.observe`; None: nothing.

    Calling the schedule gives the cap in whole tokens:
    ``LengthSchedule("cosine", 16384, 8192, 640)(80) == 15184``.

    Raises:
        ValueError, TypeError: naming the key, what was given and what is accepted.
    """

    shape: str
    max_len: int
    min_len: int
    cycle: int
    stair_order: str = "compress_first"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    state: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        _check_choice("shape", self.shape, SHAPES)
        _check_choice("stair_order", self.stair_order, STAIR_ORDERS)
        for key in ("max_len", "min_len", "cycle"):
            # numpy integers are welcome, but what is kept is a plain int that JSON can write
            value = _whole(key, getattr(self, key), least=1)
            if value > _LARGEST:
                raise ValueError(f"{key}: got {_short(value)}; takes a whole number up to 2**53")
            object.__setattr__(self, key, value)
        if self.min_len > self.max_len:
            raise ValueError(
                f"min_len: got {self.min_len}; takes a whole number from 1 to "
                f"max_len = {self.max_len}"
            )
        if self.kind.even_cycle and self.cycle % 2:
            raise ValueError(
                f"cycle: got {self.cycle}; takes an even number of steps "
                f"({max(self.cycle - 1, 2)} or {self.cycle + 1}), because the compressed end "
                "(siri-low) lies after exactly half a cycle"
            )
        owner = f"the schedule shape {self.shape!r}"
        options = with_defaults(owner, self.kind.options, self.options)
        object.__setattr__(self, "options", options)
        if self.kind.check is not None:
            self.kind.check(self)

    @property
    def kind(self) -> Shape:
        """The entry of `SHAPES`."""
        return SHAPES[self.shape]

    @property
    def constant(self) -> bool:
        """Whether the cap is ``max_len`` at every step."""
        return not self.kind.moves

    @property
    def lowest(self) -> int:
        """The shortest cap of a run: ``min_len``, for a constant schedule ``max_len``."""
        return self.max_len if self.constant else self.min_len

    def __call__(self, step: int) -> int:
        """The cap at 0-based ``step`` in whole tokens: `exact`, with halves rounded up.

        Raises:
            ValueError: the shape gives a cap that is not from ``min_len`` to ``max_len``.
        """
        exact = self.exact(step)
        if not self.min_len - 1 < exact < self.max_len + 1:  # NaN is not between either
            raise ValueError(
                f"the schedule shape {self.shape!r} gives a cap of {exact} at step {step}; takes "
                f"min_len to max_len, {self.min_len} to {self.max_len}"
            )
        return min(max(math.floor(exact + 0.5), self.min_len), self.max_len)

    def exact(self, step: int) -> float:
        """The cap at 0-based ``step`` before rounding: the formulas of the paper's section 4.3."""
        return self.kind.cap(_whole("step", step, least=0), self)

    def cycle_index(self, step: int) -> int:
        """Which cycle 0-based ``step`` belongs to, counted from 1."""
        return _whole("step", step, least=0) // self.cycle + 1

    def phase(self, step: int) -> str:
        """``"compression"`` or ``"expansion"``; for a constant schedule ``"constant"``.

        For the paper's shapes compression is the first half of a cycle and expansion the second,
        so that runs of different shapes compare.
        """
        step = _whole("step", step, least=0)
        return "constant" if self.constant else self.kind.phase(step, self)

    def phases(self, steps: int) -> list[tuple[int, int, str]]:
        """The phases of the first ``steps`` steps, in order: (first step, step behind it, name)."""
        ends = {*self.compressed_ends(steps), *self.expanded_ends(steps)} - {0, steps}
        marks = [0, *sorted(ends), steps]
        return [(a, b, self.phase(a)) for a, b in zip(marks, marks[1:], strict=False) if a < b]

    def compressed_ends(self, steps: int) -> list[int]:
        """Step counts up to ``steps`` after which siri-low is saved: T/2, 3T/2, ... (T = cycle).

        The count n means: n steps have been done, the last one was step n - 1. A constant
        schedule has no ends.
        """
        steps = _whole("steps", steps, least=0)
        return [] if self.constant else self.kind.compressed_ends(steps, self)

    def expanded_ends(self, steps: int) -> list[int]:
        """Step counts up to ``steps`` after which siri-high is saved: T, 2T, ... (T = cycle).

        The count n means: n steps have been done, the last one was step n - 1. A constant
        schedule has no ends.
        """
        steps = _whole("steps", steps, least=0)
        return [] if self.constant else self.kind.expanded_ends(steps, self)

    def mean(self, steps: int) -> float:
        """The mean whole-number cap over the first ``steps`` steps."""
        steps = _whole("steps", steps, least=1)
        return (steps * self.max_len - self.tokens_saved(steps)) / steps

    def tokens_saved(self, steps: int) -> int:
        """How many tokens of cap ``steps`` steps save, against a constant ``max_len``, a response.

        A statement about the budget: what a run really saves depends on how long its responses
        are.
        """
        steps = _whole("steps", steps, least=0)
        cycles, rest = divmod(steps, self.cycle) if self.kind.periodic else (0, steps)
        saved_by = [self.max_len - self(t) for t in range(self.cycle if cycles else rest)]
        return cycles * sum(saved_by) + sum(saved_by[:rest])

    def saved_share(self, steps: int) -> float:
        """`tokens_saved` as a share (0 to 1) of what a constant ``max_len`` allows."""
        return self.tokens_saved(_whole("steps", steps, least=1)) / (steps * self.max_len)

    def observe(self, record: Mapping[str, Any]) -> None:
        """Replace ``state`` by what the shape makes of a step; nothing, if it keeps no state.

        Args:
            record: the step's row of ``metrics.jsonl``.
        """
        if self.kind.observe is not None:
            object.__setattr__(self, "state", self.kind.observe(record, self))

    def require_stateless(self, trainer: str) -> None:
        """Refuse a shape that learns from the run where nothing calls `observe`.

        Args:
            trainer: its name, for the message.

        Raises:
            ValueError: the shape has `Shape.observe`.
        """
        if self.kind.observe is not None:
            raise ValueError(
                f"shape: got {self.shape!r}, whose cap depends on how the run goes, and {trainer} "
                "does not tell it; takes a shape that depends on the step alone"
            )


def halves(step: int, schedule: LengthSchedule) -> str:
    """The phase of the paper's shapes: compression in the first half of a cycle."""
    return "compression" if 2 * (step % schedule.cycle) < schedule.cycle else "expansion"


def half_cycles(steps: int, schedule: LengthSchedule) -> list[int]:
    """The compressed ends of the paper's shapes up to ``steps``: T/2, 3T/2, ..."""
    return list(range(schedule.cycle // 2, steps + 1, schedule.cycle))


def whole_cycles(steps: int, schedule: LengthSchedule) -> list[int]:
    """The expanded ends of the paper's shapes up to ``steps``: T, 2T, ..."""
    return list(range(schedule.cycle, steps + 1, schedule.cycle))


@dataclass(frozen=True)
class Shape:
    """How the cap moves between ``max_len`` and ``min_len``: an entry of `SHAPES`.

    Everything that asks about a schedule asks here: the cap of a step, the named checkpoints, the
    plot, the estimate of hours, the checks of a recipe. The functions are given the schedule for
    its ``max_len``, ``min_len``, ``cycle``, ``options`` and ``state``.

    Args:
        cap: (0-based step, schedule) to the cap before rounding, from ``min_len`` to ``max_len``.
        phase: (0-based step, schedule) to ``"compression"`` or ``"expansion"``. It changes at ends
            only.
        compressed_ends: (steps, schedule) to the step counts up to ``steps``, ascending, after
            which siri-low is saved.
        expanded_ends: the same for siri-high.
        options: the shape's options and their defaults; ``schedule.options`` of a recipe.
        check: raises ValueError, which begins with the key, for a schedule that cannot be.
        moves: False: the cap is ``max_len`` always, and there are no phases and ends.
        jumps: the cap jumps at its ends; a plot marks an end at the cap of the step before it.
        even_cycle: the compressed end lies after half a cycle, which must be whole.
        periodic: the cap repeats after ``cycle`` steps.
        observe: (row of ``metrics.jsonl``, schedule) to the next state, for a cap that depends on
            how the run goes. A state is a mapping that JSON holds; the first is None. It belongs
            to the run: checkpoints store it and a resumed run goes on from it. With
            ``rollout.asynchronous`` the batch of step t + 1 is sampled before step t is observed.
    """

    cap: Callable[[int, LengthSchedule], float]
    phase: Callable[[int, LengthSchedule], str] = halves
    compressed_ends: Callable[[int, LengthSchedule], list[int]] = half_cycles
    expanded_ends: Callable[[int, LengthSchedule], list[int]] = whole_cycles
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[LengthSchedule], None] | None = None
    moves: bool = True
    jumps: bool = False
    even_cycle: bool = True
    periodic: bool = True
    observe: Callable[[Mapping[str, Any], LengthSchedule], Mapping[str, Any]] | None = None


def _cosine(step: int, s: LengthSchedule) -> float:
    return _wave(s, step % s.cycle, s.cycle)


def _stair(step: int, s: LengthSchedule) -> float:
    t, cycle = step % s.cycle, s.cycle
    if s.stair_order == "compress_first":
        low = 2 * t < cycle
    else:
        low = cycle <= 4 * t < 3 * cycle
    return float(s.min_len if low else s.max_len)


def _stair_cosine(step: int, s: LengthSchedule) -> float:
    """Flat an eighth of a turn each side of both ends, twice as fast between."""
    t, cycle = step % s.cycle, s.cycle
    if 8 * t < cycle or 8 * t >= 7 * cycle:
        return float(s.max_len)
    if 8 * t < 3 * cycle:
        return _wave(s, 8 * t - cycle, 4 * cycle)
    if 8 * t < 5 * cycle:
        return float(s.min_len)
    return _wave(s, 8 * t - 3 * cycle, 4 * cycle)


def _constant(step: int, s: LengthSchedule) -> float:
    return float(s.max_len)


def _wave(s: LengthSchedule, num: int, den: int) -> float:
    """The cosine between both lengths after ``num / den`` of a turn from the top."""
    top, bottom = float(s.max_len), float(s.min_len)
    return (top + bottom) / 2 + (top - bottom) / 2 * _cos_turns(num, den)


SHAPES: Registry[Shape] = Registry("schedule shape")
"""Every shape by name. A new one is one entry."""
SHAPES["cosine"] = Shape(_cosine)
SHAPES["stair"] = Shape(_stair, jumps=True)
SHAPES["stair-cosine"] = Shape(_stair_cosine)
SHAPES["constant"] = Shape(_constant, moves=False)


def _cos_turns(num: int, den: int) -> float:
    """cos(2 pi num / den), exact wherever it is rational, and exactly even and odd about its axes.

    ``math.cos`` misses 0 and 1/2 by an ulp, to either side: enough to round the two crossings of a
    half-token middle in different directions. In the first quarter only three values are rational
    (Niven's theorem).
    """
    num %= den
    num = min(num, den - num)
    if 4 * num > den:
        return -_cos_turns(den - 2 * num, 2 * den)
    if 4 * num == den:
        return 0.0
    if 6 * num == den:
        return 0.5
    return math.cos(2 * math.pi * num / den)


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 128 else f"a number of {number.bit_length()} bits"


def _whole(key: str, value: object, least: int) -> int:
    """``value`` as an int of at least ``least``, or an error that names ``key``."""
    accepted = f"takes a whole number of at least {least}"
    if isinstance(value, bool):  # True is an int to Python, but never a length anyone meant
        raise TypeError(f"{key}: got {value!r} (bool); {accepted}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{key}: got {value!r} ({type(value).__name__}); {accepted}") from None
    if number < least:
        raise ValueError(f"{key}: got {number}; {accepted}")
    return number


def _check_choice(key: str, value: object, accepted: Collection[str]) -> None:
    """Refuse ``value`` unless accepted, naming ``key``, the accepted names and the nearest."""
    if not isinstance(value, str):
        names = ", ".join(map(repr, accepted))
        raise TypeError(f"{key}: got {value!r} ({type(value).__name__}); takes one of {names}")
    if value not in accepted:
        raise ValueError(f"{key}: got {value!r}; {one_of(accepted, value, quote=chr(39))}")
