"""Did the response length follow the cap: how late, how closely, and until when?"""

from __future__ import annotations

from typing import Any

import numpy as np

from siri_train.report.data import number

from .cycles import Cycles, cycles_of
from .lagged import Floats, Following, follows
from .subject import Subject
from .types import Finding
from .words import counted, tokens

CLOSE = 0.4
"""The smallest correlation that is called following, however sure it is."""
ALPHA = 0.02
"""Largest p-value of a claim: then one run in about twenty that does not follow seems to, as slow
noise over two cycles passes more often than the p-value says."""
ALPHA_CYCLE = 0.05
"""Largest p-value of a claim on one cycle, of a run that follows as a whole."""
BINDS = 0.01
"""A cap that truncates fewer responses than this share, at every step, never bound."""
_KEY = "length"


def length(subject: Subject) -> Finding:
    """The finding.

    Args:
        subject: the run.
    """
    cycles = cycles_of(subject)
    if cycles is None:
        return _not_judged("the cap did not move", "The cap is the same at every step.")
    if not _bound(subject):
        lengths = [n for row in subject.run.metrics if (n := number(row.get("response_len_mean")))]
        shortest = min(cycles.caps[np.isfinite(cycles.caps)])
        title = "Length did not answer to the cap: the cap never bound"
        text = (
            f"At no step was more than {100 * BINDS:.0f} % of the responses truncated. "
            f"The mean response has {tokens(lengths[-1] if lengths else None)} tokens at the end, "
            f"the shortest cap is {shortest:,.0f}. A cap that truncates nothing teaches nothing: "
            "lower schedule.min_len."
        )
        figures = {"shortest_cap": float(shortest), "bound": False}
        return Finding(_KEY, "unclear", title, text, figures)
    if cycles.whole < 1 or cycles.length < 8:
        text = (
            f"The run has {counted(cycles.whole, 'whole cycle')}"
            f" of {counted(cycles.length, 'step')}. "
            "It takes two of at least 8 steps to tell an answer to the cap from learning."
        )
        return _not_judged("too few steps", text, {"whole_cycles": cycles.whole})
    steps = cycles.whole * cycles.length
    caps, lengths_of = cycles.caps[:steps], cycles.lengths[:steps]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = follows(np.log(caps), np.log(lengths_of), cycles.length)
    if found is None:
        return _not_judged("no lengths", "metrics.jsonl has too few lengths, or they never change.")
    return _told(found, cycles, caps, lengths_of)


def _told(found: Following, cycles: Cycles, caps: Floats, lengths: Floats) -> Finding:
    short, long = _ends(found.lag, caps, lengths)
    figures: dict[str, Any] = {
        "lag": found.lag,
        "lag_interval": list(found.lags),
        "correlation": found.correlation,
        "p_value": found.p_value,
        "whole_cycles": cycles.whole,
        "cycle": cycles.length,
        "tokens_at_short_caps": short,
        "tokens_at_long_caps": long,
        "correlation_by_cycle": [one and one[0] for one in found.cycles],
        "p_value_by_cycle": [one and one[1] for one in found.cycles],
    }
    how = (
        f"Over {counted(cycles.whole, 'whole cycle')} length moves most like the cap of "
        f"{counted(found.lag, 'step')} before (95 % range: {found.lags[0]} to {found.lags[1]}): "
        f"correlation {found.correlation:.2f}"
    )
    chance = (
        f". By luck alone, lengths that wander as these do reach that in "
        f"{100 * found.p_value:.2g} % of tries"
    )
    swing = (
        f" Mean length is {tokens(short)} tokens where that cap was in its lowest quarter, "
        f"{tokens(long)} where it was in its highest."
    )
    if cycles.whole < 2:
        text = f"{how}. One cycle cannot tell an answer to the cap from learning.{swing}"
        title = "Length and cap moved together for one cycle"
        if found.correlation < CLOSE or found.p_value >= ALPHA:
            title = "One cycle is too little to say whether length follows the cap"
        return Finding(_KEY, "unclear", title, text, figures)
    if found.p_value >= ALPHA or found.correlation < CLOSE:
        apart = found.correlation < CLOSE and found.p_value >= ALPHA
        title = (
            "Length did not follow the cap" if apart
            else "It is not clear whether length followed the cap"
        )  # fmt: skip
        text = (
            f"{how}{chance}. “Followed” is said of {CLOSE} or more that luck reaches in less than "
            f"{100 * ALPHA:.0f} % of tries.{swing}"
        )
        return Finding(_KEY, "bad" if apart else "unclear", title, text, figures)
    last = _last_followed(found)
    figures["last_cycle_followed"] = last
    by_cycle = "; ".join(
        ("unknown" if one is None else f"{one[0]:.2f}") + f" in cycle {place}"
        for place, one in enumerate(found.cycles, start=1)
    )
    text = f"{how}{chance}.{swing} Correlation by cycle: {by_cycle}."
    if last is not None and last < cycles.whole and found.cycles[-1] is not None:
        text += f" Cycle {last} is the last in which it followed."
        title = f"Length followed the cap until cycle {last} of {cycles.whole}"
        return Finding(_KEY, "unclear", title, text, figures)
    title = (
        f"Length followed the cap, {counted(found.lag, 'step')} later "
        f"(correlation {found.correlation:.2f})"
    )
    return Finding(_KEY, "good", title, text, figures)


def _last_followed(found: Following) -> int | None:
    """Number of the last cycle with a correlation that is no chance, from 1."""
    fine = [
        place
        for place, one in enumerate(found.cycles, start=1)
        if one is not None and one[0] >= CLOSE and one[1] < ALPHA_CYCLE
    ]
    return max(fine, default=None)


def _ends(lag: int, caps: Floats, lengths: Floats) -> tuple[float | None, float | None]:
    """Mean length behind the lowest and the highest quarter of the caps."""
    led, given = caps[: len(caps) - lag], lengths[lag:]
    low, high = np.quantile(led, [0.25, 0.75])
    parts = [given[(led <= low) & np.isfinite(given)], given[(led >= high) & np.isfinite(given)]]
    short, long = (float(part.mean()) if len(part) else None for part in parts)
    return short, long


def _bound(subject: Subject) -> bool:
    """Whether the cap truncated a share of the responses at any step."""
    shares = [number(row.get("truncated_frac")) for row in subject.run.metrics]
    known = [share for share in shares if share is not None]
    return not known or max(known) >= BINDS


def _not_judged(why: str, text: str, figures: dict[str, Any] | None = None) -> Finding:
    return Finding(_KEY, "missing", f"Length and cap: not judged, {why}", text, figures or {})
