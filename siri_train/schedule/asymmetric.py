"""The shape ``asymmetric``: a smooth compression, then a step up and a long expansion.

SIRI (arXiv 2509.25176, section 5.3) draws two lessons from its ablations: compress smoothly (the
stair loses accuracy sharply), and expand for long (the longest cycle was the best). No run of the
paper has this shape.
"""

from __future__ import annotations

from siri_train.schedule.checks import number_option
from siri_train.schedule.length_schedule import LengthSchedule, Shape
from siri_train.schedule.waves import wave


def _compression(s: LengthSchedule) -> int:
    """Steps of a compression."""
    return round(s.options["compression"] * s.cycle)


def _cap(step: int, s: LengthSchedule) -> float:
    """Half a cosine: ``max_len`` in the first step of a cycle, ``min_len`` in the last of it."""
    t, steps = step % s.cycle, _compression(s)
    return wave(s, t, 2 * (steps - 1)) if t < steps else float(s.max_len)


def _phase(step: int, s: LengthSchedule) -> str:
    return "compression" if step % s.cycle < _compression(s) else "expansion"


def _compressed_ends(steps: int, s: LengthSchedule) -> list[int]:
    return list(range(_compression(s), steps + 1, s.cycle))


def _check(s: LengthSchedule) -> None:
    share = number_option("compression", s.options["compression"], 0.0, 1.0)
    if not 2 <= round(share * s.cycle) <= s.cycle - 1:
        raise ValueError(
            f"options.compression: got {s.options['compression']!r}, which is "
            f"{round(share * s.cycle)} of the cycle's {s.cycle} steps; takes a share (0 to 1) that "
            "gives compression at least 2 steps and expansion at least 1"
        )


ASYMMETRIC = Shape(
    _cap,
    phase=_phase,
    compressed_ends=_compressed_ends,
    options={"compression": 0.5},
    check=_check,
    even_cycle=False,
)
