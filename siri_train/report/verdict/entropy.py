"""Did the entropy stay in its band: the one that the run itself had in its first cycle?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from siri_train.report.data import number
from siri_train.report.entropy_band import SETTLED, band_around

from .accuracy import LOST, OWN, Comparison
from .cycles import cycles_of
from .lagged import Floats
from .subject import Subject
from .types import Finding
from .words import counted, figure, signed

_KEY = "entropy"
RUN = 5
"""Steps in a row outside, in the mean over as many, that count as leaving."""


def entropy(subject: Subject, found: Sequence[Comparison]) -> Finding:
    """The finding.

    Args:
        subject: the run.
        found: comparisons of accuracy: small entropy is only a collapse where accuracy fell.
    """
    steps, values = _smooth(subject)
    cycles = cycles_of(subject)
    part = "cycle" if cycles is not None else "third"
    first = cycles.length if cycles is not None else max(len(steps) // 3, 1)
    in_first = (steps >= SETTLED * first) & (steps < first)
    behind = steps >= first
    if in_first.sum() < 3 or behind.sum() < RUN:
        text = (
            "There are too few values." if len(steps) < 8 else
            f"The first {part} is not over, and it gives the band."
        )  # fmt: skip
        text += f" The last is {figure(values[-1])} nats." if len(values) else ""
        title = "Entropy: not judged, " + ("too few steps" if len(steps) else "not recorded")
        return Finding(_KEY, "missing", title, text, {"last": _last(values)})
    seen = values[in_first]
    low, high = band_around(float(seen.min()), float(seen.max()), float(seen.mean()))
    late, at = values[behind], steps[behind]
    below, above = _stays(late < low), _stays(late > high)
    left = below | above
    slope = _trend(at, late) * first
    inside = 1 - float(((late < low) | (late > high)).mean())
    figures: dict[str, Any] = {
        "band": [low, high], "first_steps": [round(SETTLED * first), first], "last": _last(values),
        "inside": inside, "trend_per_cycle": slope,
        "left_at": int(at[left.argmax()]) if left.any() else None,
    }  # fmt: skip
    band = (
        f"Its band is {figure(low)} to {figure(high)} nats, by steps {round(SETTLED * first):,} to "
        f"{first - 1:,} (its first {part} without the start)"
    )
    trend = (
        f"It was inside at {100 * inside:.0f} % of the later steps; it is {figure(values[-1])} at "
        f"the end, the trend behind the first {part} {_signed(slope)} nats "
        f"in {counted(first, 'step')}."
    )
    if not left.any():
        return Finding(
            _KEY,
            "good",
            f"Entropy stayed in its band ({figure(low)} to {figure(high)} nats)",
            f"{band}. {trend}",
            figures,
        )
    place = int(left.argmax())
    side = "below" if below[place] else "above"
    figures["left_to"] = side
    outside = bool(left[-1])
    where = f"It left the band at step {int(at[place]):,}, {side} it"
    where += ", and is outside at the end." if outside else ", and is inside again at the end."
    rises, falls = _accuracies(found)
    low_end = outside and bool(below[-1])
    said = f"{band}. {where} {trend}"
    if falls:
        title = f"Entropy {'collapsed' if low_end else f'left its band, {side} it'}, accuracy fell"
        return Finding(_KEY, "bad", title, f"{said} Held-out accuracy fell.", figures)
    if low_end and rises:
        title = "Entropy is small, as the task is learned: accuracy did not fall"
        text = f"{said} Held-out accuracy did not fall, so this is no collapse."
        return Finding(_KEY, "good", title, text, figures)
    if not outside and rises:
        title = f"Entropy left its band for a time ({side} it) and is inside at the end"
        return Finding(_KEY, "good", title, said, figures)
    title = f"Entropy left its band at step {int(at[place]):,}, {side} it"
    if not rises:
        said += " Held-out accuracy does not say whether that did harm."
    return Finding(_KEY, "unclear", title, said, figures)


def _accuracies(found: Sequence[Comparison]) -> tuple[bool, bool]:
    """Whether accuracy at the full budget held or rose against the start, and whether it fell.

    It holds only if the last evaluation does: what the run had before may be lost since.
    """
    start = [one for one in found if one.against == "the start"]
    most = max((one.budget for one in start), default=None)
    full = [one for one in found if one.budget == most and one.set == start[0].set]
    first, behind = start[:1], [one for one in full if one.end == "last evaluation"]
    fell = any(
        one.change.said == "fell" and (one.against == "the start" or one.change.value < -LOST)
        for one in [*first, *behind]
        if one.against in OWN
    )
    held = any(one.change.said in ("held", "rose") for one in first if one.budget == most)
    return held and not fell, fell


def _smooth(subject: Subject) -> tuple[Floats, Floats]:
    """Steps and mean entropy over `RUN` steps."""
    rows = [(row["step"], number(row.get("entropy"))) for row in subject.run.metrics]
    kept = [(step, value) for step, value in rows if value is not None]
    steps = np.array([step for step, _ in kept], dtype=np.float64)
    values = np.array([value for _, value in kept], dtype=np.float64)
    if len(values) < RUN:
        return steps, values
    sums = np.cumsum(np.concatenate([[0.0], values]))
    places = np.arange(len(values))
    first, last = np.maximum(places - RUN // 2, 0), np.minimum(places + RUN // 2 + 1, len(values))
    return steps, (sums[last] - sums[first]) / (last - first)


def _stays(outside: np.ndarray) -> np.ndarray:
    """Where a stretch of at least `RUN` steps outside goes on."""
    result = np.zeros(len(outside), dtype=bool)
    start = None
    for place, one in enumerate([*outside, False]):
        if one and start is None:
            start = place
        elif not one and start is not None:
            result[start:place] = place - start >= RUN
            start = None
    return result


def _trend(steps: Floats, values: Floats) -> float:
    """The slope a step, least squares."""
    if len(steps) < 2 or not np.ptp(steps):
        return 0.0
    return float(np.polyfit(steps - steps.mean(), values, 1)[0])


def _signed(value: float) -> str:
    if abs(value) >= 0.0005:
        return signed(value, 3)
    return figure(value if abs(value) > 1e-9 else 0)  # of what never moves rounding is left


def _last(values: Floats) -> float | None:
    return float(values[-1]) if len(values) else None
