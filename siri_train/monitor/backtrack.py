"""Words that steer a chain of thought: the groups that are counted, and counting them in text.

SIRI (arXiv 2509.25176, section 5.2) counted five words: "wait" and "hold on" turn back and check,
"alternatively" seeks another way, "so" and "compute" deduce. Only "wait" moves with the cap:
compression suppresses it and expansion brings it back. A run counts the words on token ids
(:mod:`siri_train.monitor.token_groups`). The text tells where they stand, and counts what was not
counted while the run went on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

GROUPS: dict[str, tuple[str, ...]] = {
    "wait": ("wait",),
    "hold_on": ("hold on",),
    "alternatively": ("alternatively",),
    "so": ("so",),
    "compute": ("compute",),
}
"""The paper's words, each a group of its own, by the name that metrics have."""

BACKTRACK = ("wait", "hold on")
"""The words of ``backtrack_per_1k``."""


class WordCounter:
    """Finds groups of words in texts.

    Args:
        groups: name of a group to its words or phrases. A word matches whole words only, whatever
            the case ("wait" in "Wait," but not in "waiting"); one that begins or ends with a mark
            may touch a letter there ("</think>" in "7</think>So"). The parts of a phrase may be
            separated by any white space. Of words that overlap the first counts, of those that
            begin together the longest. The default is the paper's words.

    Raises:
        ValueError: on a group without words, or an empty word.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        chosen = GROUPS if groups is None else groups
        self._patterns = {name: _pattern(name, words) for name, words in chosen.items()}

    def counts(self, text: str) -> dict[str, int]:
        """How many words of each group ``text`` holds."""
        return {name: len(pattern.findall(text)) for name, pattern in self._patterns.items()}

    def spans(self, text: str) -> list[tuple[int, int, str]]:
        """Where the words stand: (start, end, group) in characters, in the order of the text."""
        return sorted(
            (*match.span(), name)
            for name, pattern in self._patterns.items()
            for match in pattern.finditer(text)
        )


def _pattern(name: str, words: Sequence[str]) -> re.Pattern[str]:
    """One alternation for a group, longest first so that a phrase wins over a word inside it."""
    if isinstance(words, str) or not words or any(not word.strip() for word in words):
        raise ValueError(
            f"groups[{name!r}]: got {words!r}; takes a list of words, none of them empty"
        )
    spaced = sorted({" ".join(word.split()) for word in words}, key=len, reverse=True)
    return re.compile("|".join(map(_bounded, spaced)), re.IGNORECASE)


def _bounded(word: str) -> str:
    """A word that no letter goes on where it begins or ends with one itself."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    behind = r"(?!\w)" if re.match(r"\w", word[-1]) else ""
    return before + r"\s+".join(map(re.escape, word.split())) + behind
