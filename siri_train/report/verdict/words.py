"""Numbers in the sentences of the verdict."""

from __future__ import annotations

from collections.abc import Sequence


def per_cent(share: float | None) -> str:
    """A share as "98.4 %".

    Args:
        share: from 0 to 1; None is "unknown".
    """
    return "unknown" if share is None else f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares as "−1.6 points".

    Args:
        difference: of shares.
    """
    return f"{signed(100 * difference)} points"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign: "+0.4", "−1.6"; "0.0" where it rounds to that.

    Args:
        value: any.
        digits: behind the point.
    """
    text = f"{value:+.{digits}f}"
    if not text.strip("+-0."):
        text = text[1:]
    return text.replace("-", "−")


def tokens(value: float | None) -> str:
    """A mean number of tokens: "18.7", "9,120".

    Args:
        value: None is "unknown".
    """
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def figure(value: float) -> str:
    """A number with three digits that count: "0.0427", "1.36", "1.2e-13".

    Args:
        value: any.
    """
    return f"{value:.3g}".replace("-", "−") if value else "0"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun: "1 step", "3 steps".

    Args:
        count: how many.
        one: the noun for one.
        many: for more; default: with an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Words with commas and "and": "a, b and c".

    Args:
        words: some.
    """
    words = list(words)
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
