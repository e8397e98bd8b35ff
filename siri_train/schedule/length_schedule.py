"""The schedule of one run and the table of its shapes.

A shape gives functions of the step and of the schedule, and the schedule asks them. Each names the
other, so both are in this file; the formulas of the shapes are beside it, one file a kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from siri_train.registry import Registry, with_defaults
from siri_train.schedule.checks import check_choice, whole

STAIR_ORDERS = ("compress_first", "phase_centred")


@dataclass(frozen=True)
class LengthSchedule:
    """The cap L(t) at every step t, counted from 0 as in the paper (cosine: t = 0 is the top).

    Args:
        shape: a name in `SHAPES`: ``"cosine"`` (the paper's main schedule), ``"constant"`` (always
            ``max_len``: the control run), ... ``docs/schedules.md`` describes each.
        max_len: the longest cap, in response tokens; by default the paper's, like the next two.
        min_len: the shortest cap; at most ``max_len``.
        cycle: steps in one compression and expansion together. Even, where the compressed end lies
            after exactly half a cycle.
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
    max_len: int = 16384
    min_len: int = 8192
    cycle: int = 640
    stair_order: str = "compress_first"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    state: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, SHAPES)
        check_choice("stair_order", self.stair_order, STAIR_ORDERS)
        for key in ("max_len", "min_len", "cycle"):
            # numpy integers are welcome, but what is kept is a plain int that JSON can write
            object.__setattr__(self, key, whole(key, getattr(self, key), least=1))
        if self.constant:  # a control run has one length; that of its rival may be longer
            object.__setattr__(self, "min_len", min(self.min_len, self.max_len))
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
        """Whether the cap is ``max_len`` at every step, without phases."""
        return not self.kind.moves

    @property
    def periodic(self) -> bool:
        """Whether the cap repeats after ``cycle`` steps."""
        repeats = self.kind.periodic
        return repeats(self) if callable(repeats) else repeats

    @property
    def lowest(self) -> int:
        """The shortest cap of a run: ``min_len``, unless the shape has another."""
        if self.kind.lowest is not None:
            return self.kind.lowest(self)
        return self.max_len if self.constant else self.min_len

    @property
    def forecast(self) -> str:
        """A line about the steps that only the run decides, for plots and plans; "" if none."""
        if self.kind.observe is None or self.kind.forecast:
            return self.kind.forecast
        return "the cap depends on how the run goes; shown is what is known before it"

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
        return self.kind.cap(whole("step", step, least=0), self)

    def cycle_index(self, step: int) -> int:
        """Which cycle 0-based ``step`` belongs to, counted from 1.

        Where the cap does not repeat, a cycle lasts until an expanded end.
        """
        step = whole("step", step, least=0)
        if self.constant or self.periodic:
            return step // self.cycle + 1
        return len(self.expanded_ends(step)) + 1

    def phase(self, step: int) -> str:
        """``"compression"`` or ``"expansion"``; for a constant schedule ``"constant"``.

        For the paper's shapes compression is the first half of a cycle and expansion the second,
        so that runs of different shapes compare.
        """
        step = whole("step", step, least=0)
        return "constant" if self.constant else self.kind.phase(step, self)

    def phases(self, steps: int) -> list[tuple[int, int, str]]:
        """The phases of the first ``steps`` steps, in order: (first step, step behind it, name)."""
        ends = {*self.compressed_ends(steps), *self.expanded_ends(steps)} - {0, steps}
        marks = [0, *sorted(ends), steps]
        return [(a, b, self.phase(a)) for a, b in zip(marks, marks[1:], strict=False) if a < b]

    def compressed_ends(self, steps: int, run: int | None = None) -> list[int]:
        """Step counts up to ``steps`` after which siri-low is saved; the cosine's: T/2, 3T/2, ...

        The count n means: n steps have been done, the last one was step n - 1. A constant
        schedule has no ends.

        Args:
            steps: the largest count of interest.
            run: all steps of the run. The last phase of a shape that does not repeat ends there;
                None: it has no end.
        """
        return self._ends("compression", steps, run)

    def expanded_ends(self, steps: int, run: int | None = None) -> list[int]:
        """Step counts up to ``steps`` after which siri-high is saved; the cosine's: T, 2T, ...

        Args:
            steps: see `compressed_ends`.
            run: see `compressed_ends`.
        """
        return self._ends("expansion", steps, run)

    def _ends(self, phase: str, steps: int, run: int | None) -> list[int]:
        steps = whole("steps", steps, least=0)
        if self.constant:
            return []
        kind = self.kind
        found = kind.compressed_ends if phase == "compression" else kind.expanded_ends
        ends = found(steps, self)
        if run is None or kind.open_from is None or self.periodic:
            return ends
        reached = kind.open_from(self) < run <= steps
        return [*ends, run] if reached and self.phase(run - 1) == phase else ends

    def mean(self, steps: int) -> float:
        """The mean whole-number cap over the first ``steps`` steps."""
        steps = whole("steps", steps, least=1)
        return (steps * self.max_len - self.tokens_saved(steps)) / steps

    def tokens_saved(self, steps: int) -> int:
        """How many tokens of cap ``steps`` steps save, against a constant ``max_len``, a response.

        A statement about the budget: what a run really saves depends on how long its responses
        are.
        """
        steps = whole("steps", steps, least=0)
        cycles, rest = divmod(steps, self.cycle) if self.periodic else (0, steps)
        saved_by = [self.max_len - self(t) for t in range(self.cycle if cycles else rest)]
        return cycles * sum(saved_by) + sum(saved_by[:rest])

    def saved_share(self, steps: int) -> float:
        """`tokens_saved` as a share (0 to 1) of what a constant ``max_len`` allows."""
        return self.tokens_saved(whole("steps", steps, least=1)) / (steps * self.max_len)

    def observe(self, record: Mapping[str, Any]) -> None:
        """Replace ``state`` by what the shape makes of a step; nothing, if it keeps no state.

        Args:
            record: the step's row of ``metrics.jsonl``.
        """
        if self.kind.observe is not None:
            object.__setattr__(self, "state", self.kind.observe(record, self))

    def require_stateless(self, trainer: str) -> None:
        """Refuse a shape that needs more than the step where a trainer gives no more.

        Args:
            trainer: its name, for the message.

        Raises:
            ValueError: the shape has `Shape.observe` or `Shape.reward`.
        """
        takes = "takes a shape that depends on the step alone"
        if self.kind.observe is not None:
            raise ValueError(
                f"shape: got {self.shape!r}, whose cap depends on how the run goes, and {trainer} "
                f"does not tell it; {takes}"
            )
        if self.kind.reward is not None:
            raise ValueError(
                f"shape: got {self.shape!r}, whose phases act through the reward "
                f"{self.kind.reward!r}, which {trainer} cannot give; {takes}"
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
        phase: (0-based step, schedule) to ``"compression"`` or ``"expansion"``, or ``"constant"``
            where there are no ends. It changes at ends only.
        compressed_ends: (steps, schedule) to the step counts up to ``steps``, ascending, after
            which siri-low is saved.
        expanded_ends: the same for siri-high.
        options: the shape's options and their defaults; ``schedule.options`` of a recipe.
        check: raises ValueError, which begins with the key, for a schedule that cannot be.
        moves: False: the cap is ``max_len`` always, and there are no phases and ends.
        lowest: the schedule to its shortest cap, where that is not ``min_len``.
        even_cycle: the compressed end lies after half a cycle, which must be whole.
        periodic: whether the cap repeats after ``cycle`` steps, or the schedule to that.
        open_from: the schedule to the step from which a last phase lasts as long as the run, whose
            end is then the end of the phase. None: no phase does.
        observe: (row of ``metrics.jsonl``, schedule) to the next state, for a cap that depends on
            how the run goes. A state is a mapping that JSON holds; the first is None. It belongs
            to the run: checkpoints store it and a resumed run goes on from it. With
            ``rollout.asynchronous`` the batch of step t + 1 is sampled before step t is observed:
            what the row of step t changes must begin with step t + 2, for the cap and the phase
            of a step to agree.
        forecast: what the functions say about steps that only the run decides, for plots and plans.
        reward: the reward function that acts in the phases; recipes name both or none.
    """

    cap: Callable[[int, LengthSchedule], float]
    phase: Callable[[int, LengthSchedule], str] = halves
    compressed_ends: Callable[[int, LengthSchedule], list[int]] = half_cycles
    expanded_ends: Callable[[int, LengthSchedule], list[int]] = whole_cycles
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[LengthSchedule], None] | None = None
    moves: bool = True
    lowest: Callable[[LengthSchedule], int] | None = None
    even_cycle: bool = True
    periodic: bool | Callable[[LengthSchedule], bool] = True
    open_from: Callable[[LengthSchedule], int] | None = None
    observe: Callable[[Mapping[str, Any], LengthSchedule], Mapping[str, Any]] | None = None
    forecast: str = ""
    reward: str | None = None


SHAPES: Registry[Shape] = Registry("schedule shape")
"""Every shape by name. A new one is one entry."""
