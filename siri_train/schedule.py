"""The response-length cap over the steps of training: one pure function of the step number.

SIRI (arXiv 2509.25176, section 4.3) lets the cap oscillate between ``max_len`` and ``min_len``.
Because the cap depends on nothing but the step, a resumed run continues the same schedule.
"""

from __future__ import annotations

import difflib
import math
import operator
from dataclasses import dataclass

SHAPES = ("cosine", "stair", "stair-cosine", "constant")
STAIR_ORDERS = ("compress_first", "phase_centred")


_LARGEST = 2**53  # float64, in which the formulas are, holds every whole number up to here


@dataclass(frozen=True)
class LengthSchedule:
    """The cap L(t) at every step t, counted from 0 as in the paper (cosine: t = 0 is the top).

    Args:
        shape: ``"cosine"`` (the paper's main schedule), ``"stair"``, ``"stair-cosine"``, or
            ``"constant"`` (always ``max_len``: the control run).
        max_len: the longest cap, in response tokens (16384 in the paper).
        min_len: the shortest cap (8192 in the paper); at most ``max_len``.
        cycle: steps in one compression and expansion together (640 in the paper). Even, because
            the compressed end lies after exactly half a cycle.
        stair_order: the paper describes the stair in words only. ``"compress_first"`` is the
            reading that fits its text: ``min_len`` for the first half of the cycle, ``max_len``
            for the second. ``"phase_centred"`` follows the sign of the cosine: ``min_len`` from
            a quarter to three quarters of the cycle.

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
        if self.cycle % 2:
            raise ValueError(
                f"cycle: got {self.cycle}; takes an even number of steps "
                f"({max(self.cycle - 1, 2)} or {self.cycle + 1}), because the compressed end "
                "(siri-low) lies after exactly half a cycle"
            )

    def __call__(self, step: int) -> int:
        """The cap at 0-based ``step`` in whole tokens: `exact`, with halves rounded up."""
        return math.floor(self.exact(step) + 0.5)

    def exact(self, step: int) -> float:
        """The cap at 0-based ``step`` before rounding: the formulas of the paper's section 4.3."""
        t, cycle = _whole("step", step, least=0) % self.cycle, self.cycle
        top, bottom = float(self.max_len), float(self.min_len)
        middle, half = (top + bottom) / 2, (top - bottom) / 2
        if self.shape == "constant":
            return top
        if self.shape == "cosine":
            return middle + half * _cos_turns(t, cycle)
        if self.shape == "stair":
            if self.stair_order == "compress_first":
                return bottom if 2 * t < cycle else top
            return bottom if cycle <= 4 * t < 3 * cycle else top
        # stair-cosine: flat an eighth of a turn each side of both ends, twice as fast between
        if 8 * t < cycle or 8 * t >= 7 * cycle:
            return top
        if 8 * t < 3 * cycle:
            return middle + half * _cos_turns(8 * t - cycle, 4 * cycle)
        if 8 * t < 5 * cycle:
            return bottom
        return middle + half * _cos_turns(8 * t - 3 * cycle, 4 * cycle)

    def cycle_index(self, step: int) -> int:
        """Which cycle 0-based ``step`` belongs to, counted from 1."""
        return _whole("step", step, least=0) // self.cycle + 1

    def phase(self, step: int) -> str:
        """``"compression"`` in the first half of a cycle, ``"expansion"`` in the second.

        The halves are the same for every oscillating shape, so that runs of different shapes
        compare. A constant schedule is always in phase ``"constant"``.
        """
        t = _whole("step", step, least=0) % self.cycle
        if self.shape == "constant":
            return "constant"
        return "compression" if 2 * t < self.cycle else "expansion"

    def compressed_ends(self, steps: int) -> list[int]:
        """Step counts up to ``steps`` after which siri-low is saved: T/2, 3T/2, ... (T = cycle).

        The count n means: n steps have been done, the last one was step n - 1. A constant
        schedule has no ends.
        """
        return self._ends(steps, self.cycle // 2)

    def expanded_ends(self, steps: int) -> list[int]:
        """Step counts up to ``steps`` after which siri-high is saved: T, 2T, ... (T = cycle).

        The count n means: n steps have been done, the last one was step n - 1. A constant
        schedule has no ends.
        """
        return self._ends(steps, self.cycle)

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
        cycles, rest = divmod(steps, self.cycle)
        saved_by = [self.max_len - self(t) for t in range(self.cycle if cycles else rest)]
        return cycles * sum(saved_by) + sum(saved_by[:rest])

    def saved_share(self, steps: int) -> float:
        """`tokens_saved` as a share (0 to 1) of what a constant ``max_len`` allows."""
        return self.tokens_saved(_whole("steps", steps, least=1)) / (steps * self.max_len)

    def _ends(self, steps: int, first: int) -> list[int]:
        steps = _whole("steps", steps, least=0)
        return [] if self.shape == "constant" else list(range(first, steps + 1, self.cycle))


def _cos_turns(num: int, den: int) -> float:
    """cos(2 pi num / den), exact wherever it is rational, and exactly even and odd about its axes.

    ``math.cos`` misses 0 and 1/2 by an ulp, to either side: enough to round the two crossings of a
    half-token middle in different directions. Folded into the first quarter, only three values are
    rational (Niven's theorem).
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


def _check_choice(key: str, value: object, accepted: tuple[str, ...]) -> None:
    """Refuse ``value`` unless accepted, naming ``key``, the accepted names and the nearest."""
    names = ", ".join(map(repr, accepted))
    if not isinstance(value, str):
        raise TypeError(f"{key}: got {value!r} ({type(value).__name__}); takes one of {names}")
    if value not in accepted:
        same = value.strip().lower().replace("_", "-").replace(" ", "-")
        plain = {name.replace("_", "-"): name for name in accepted}
        near = difflib.get_close_matches(same, plain, n=1, cutoff=0.5)
        hint = f"; did you mean {plain[near[0]]!r}?" if near else ""
        raise ValueError(f"{key}: got {value!r}; takes one of {names}{hint}")
