"""Did the entropy stay in its band: the one that the run itself had in its first cycle?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from siri_train.report.entropy_band import SETTLED, WINDOW, seen

from .comparisons import LAST, LOST, OWN, PEAK, START, Comparison
from .lagged import Floats
from .subject import Subject
from .types import Finding
from .words import counted, figure, signed

_KEY = "entropy"
RUN = WINDOW
"""Steps in a row outside, in the mean over as many, that count as leaving."""


def entropy(subject: Subject, found: Sequence[Comparison]) -> Finding:
    """The finding.

    Args:
        subject: the run.
        found: comparisons of accuracy: small entropy is only a collapse where accuracy fell.
    """
    curve = seen(subject.run.metrics)
    part, first = curve.part, curve.first
    end = curve.means[-1] if curve.means else None
    if curve.band is None:
        text = (
            "There are too few values." if len(curve.means) < 8 else
            f"The first {part} is not over, and it gives the band."
        )  # fmt: skip
        text += f" The last is {figure(end)} nats." if end is not None else ""
        title = "Entropy: not judged, " + ("not recorded" if end is None else "too few steps")
        return Finding(_KEY, "missing", title, text, {"last": end})
    low, high = curve.band
    at, late = (np.array(column) for column in zip(*curve.later, strict=True))
    below, above = _stays(late < low), _stays(late > high)
    left = below | above
    slope = _trend(at, late) * first
    counts = curve.outside()
    inside = 1 - sum(counts[:2]) / counts[2]
    figures: dict[str, Any] = {
        "band": [low, high], "first_steps": [round(SETTLED * first), first], "last": end,
        "inside": inside, "steps_below_above_of": list(counts), "trend_per_cycle": slope,
        "left_at": int(at[left.argmax()]) if left.any() else None,
    }  # fmt: skip
    band = (
        f"Its band, {figure(low)} to {figure(high)} nats, is where it lay at steps "
        f"{round(SETTLED * first):,} to {first - 1:,} (the first {part} without its start), and "
        "some room"
    )
    trend = (
        f"It was inside at {100 * inside:.0f} % of the later steps. At the end it is "
        f"{figure(late[-1])} nats; since the first {part} it moved by {_signed(slope)} nats in "
        f"{counted(first, 'step')} on average."
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
        title = "Entropy fell below its band, but accuracy did not fall: no collapse"
        text = f"{said} Held-out accuracy did not fall: answers to a learned task are sure."
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
    start = [one for one in found if one.against == START]
    most = max((one.budget for one in start), default=None)
    full = [one for one in found if one.budget == most and one.set == start[0].set]
    first = start[:1]
    behind = [one for one in full if one.end == LAST or one.against == PEAK]
    fell = any(
        one.change.said == "fell" and (one.against == START or one.change.value < -LOST)
        for one in [*first, *behind]
        if one.against in OWN
    )
    held = any(
        one.change.said in ("held", "rose", "the same") for one in first if one.budget == most
    )
    return held and not fell, fell


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
