"""How often a response turns back on itself: backtracking words per thousand response tokens.

SIRI (arXiv 2509.25176, section 5.2) looked at words that steer a chain of thought. Only "wait"
moves with the cap: compression suppresses it and expansion brings it back. The count is
taken on decoded text, so it costs nothing beside a rollout and compares across tokenizers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

GROUPS: dict[str, tuple[str, ...]] = {
    "backtrack": ("wait", "hold on"),
    "alternatives": ("alternatively",),
    "deduction": ("so", "compute"),
}
"""The paper's groups of words; ``backtrack`` is the one that the metrics and the report show."""


class BacktrackCounter:
    """Counts groups of words in response texts, per thousand response tokens.

    Args:
        groups: name of a group to its words or phrases. A word matches whole words only, whatever
            the case ("wait" in "Wait," but not in "waiting"); the parts of a phrase may be
            separated by any white space. The default is the paper's three groups.

    Raises:
        ValueError: on a group without words, or an empty word.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        chosen = GROUPS if groups is None else groups
        self._patterns = {name: _pattern(name, words) for name, words in chosen.items()}

    def counts(self, text: str) -> dict[str, int]:
        """How many words of each group ``text`` holds."""
        return {name: len(pattern.findall(text)) for name, pattern in self._patterns.items()}

    def per_1k(self, texts: Sequence[str], token_counts: Sequence[int]) -> dict[str, float]:
        """Words of each group per 1000 response tokens, pooled over all the responses.

        Args:
            texts: the decoded responses.
            token_counts: the number of tokens of each response, in the same order.

        Returns:
            ``{"backtrack_per_1k": ..., "alternatives_per_1k": ..., "deduction_per_1k": ...}``, one
            entry a group. Pooled, not averaged over responses: a short response would else weigh
            as much as a long one. NaN where there are no tokens at all.

        Raises:
            ValueError: if the two lists differ in length or a count is negative.
        """
        if len(texts) != len(token_counts):
            raise ValueError(
                f"token_counts: got {len(token_counts)} counts for {len(texts)} texts; "
                "takes one count a text"
            )
        if any(count < 0 for count in token_counts):
            raise ValueError(f"token_counts: got {min(token_counts)}; takes counts of at least 0")
        tokens = sum(token_counts)
        found = dict.fromkeys(self._patterns, 0)
        for text in texts:
            for name, count in self.counts(text).items():
                found[name] += count
        return {
            f"{name}_per_1k": 1000 * count / tokens if tokens else math.nan
            for name, count in found.items()
        }


def _pattern(name: str, words: Sequence[str]) -> re.Pattern[str]:
    """One alternation for a group, longest first so that a phrase wins over a word inside it."""
    if isinstance(words, str) or not words or any(not word.strip() for word in words):
        raise ValueError(
            f"groups[{name!r}]: got {words!r}; takes a list of words, none of them empty"
        )
    parts = [r"\s+".join(map(re.escape, w.split())) for w in sorted(words, key=len, reverse=True)]
    return re.compile(r"(?<!\w)(?:" + "|".join(parts) + r")(?!\w)", re.IGNORECASE)
