"""A deterministic automaton that finds groups of words in a stream of characters.

It counts exactly what :class:`siri_train.monitor.backtrack.WordCounter` finds in a text, but it
reads one character after the other. So what it does over the characters of a token is a table that
can be made once for a vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

OTHER_WORD, OTHER, SPACE = 0, 1, 2
"""Classes of characters that stand in no word: letters and digits, all others, white space. The
end of a text is like ``OTHER``."""
_FIRST = 3  # the class of the first character that stands in a word
_GAP = -1  # in a phrase: white space of any length

BEGIN, INSIDE = 0, 1
"""States in which nothing has begun: a word may begin; inside of a word of no group."""

# What one place of a text has begun: (word, its elements so far), and whether a word has ended.
_Item = tuple[int, int]
_Start = tuple[frozenset[_Item], bool]
# Whether the last character belongs to a word; by group, where words may have begun, in order.
_State = tuple[bool, tuple[tuple[int, tuple[_Start, ...]], ...]]


class WordAutomaton:
    """Finds words of groups, each group on its own.

    Args:
        groups: the words of each group. What matches is what ``WordCounter`` says.

    Attributes:
        next: [states, classes] int32: the state after a character of a class.
        found: [states, classes] int32: the row of ``counts`` that this character completes.
        counts: [rows, groups] int32: occurrences by group; row 0 is empty.

    Raises:
        ValueError: the words have more places to be in than ``limit``.
    """

    limit = 20_000

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        spaced = [sorted({" ".join(word.split()) for word in words}) for words in groups]
        self._letters = _Letters(char for words in spaced for word in words for char in word)
        self._words: list[tuple[int, ...]] = []
        self._starting: dict[int, dict[int, list[int]]] = {}
        for group, words in enumerate(spaced):
            for word in words:
                elements = [_GAP if c == " " else self._letters.of(c) for c in word]
                by_group = self._starting.setdefault(elements[0], {})
                by_group.setdefault(group, []).append(len(self._words))
                self._words.append(tuple(elements))
        self._build(len(groups))

    @property
    def classes(self) -> int:
        """How many classes of characters there are."""
        return _FIRST + len(self._letters.shown)

    def classified(self, text: str) -> Ints:
        """The class of every character, [characters] int32."""
        return self._letters.classified(text)

    def _build(self, groups: int) -> None:
        known: dict[_State, int] = {(False, ()): BEGIN, (True, ()): INSIDE}
        waiting: list[_State] = list(known)
        rows: dict[tuple[int, ...], int] = {(0,) * groups: 0}
        following: list[list[int]] = []
        found: list[list[int]] = []
        for state in waiting:  # which grows
            following.append([])
            found.append([])
            for kind in range(self.classes):
                after, ended = self._step(state, kind)
                if after not in known:
                    if len(known) == self.limit:
                        raise ValueError("takes fewer or shorter words: these are too many to find")
                    known[after] = len(known)
                    waiting.append(after)
                counts = [0] * groups
                for group in ended:
                    counts[group] += 1
                following[-1].append(known[after])
                found[-1].append(rows.setdefault(tuple(counts), len(rows)))
        self.next = np.array(following, np.int32)
        self.found = np.array(found, np.int32)
        self.counts = np.array(list(rows), np.int32).reshape(len(rows), groups)

    def _step(self, state: _State, kind: int) -> tuple[_State, list[int]]:
        """The state behind a character, and the groups of the words that are certain with it."""
        in_word, active = state
        is_word = self._letters.is_word(kind)
        begun = {} if in_word and is_word else self._starting.get(kind, {})
        ended: list[int] = []
        groups = []
        of = dict(active)
        for group in sorted(of.keys() | begun.keys()):
            starts: list[_Start] = []
            for items, matched in of.get(group, ()):
                complete = any(self._ends(w, at, is_word) for w, at in items)
                starts.append((self._advanced(items, kind), matched or complete))
                if complete:  # later places lie within this word
                    break
            if group in begun:
                starts.append((frozenset((w, 1) for w in begun[group]), False))
            while starts and not starts[0][0]:  # the first place is decided
                ended += [group] * starts.pop(0)[1]
            if starts:
                groups.append((group, tuple(start for start in starts if start[0] or start[1])))
        return (is_word, tuple(groups)), ended

    def _ends(self, word: int, at: int, is_word: bool) -> bool:
        """Whether all of a word has been read, and the character behind it does not go on."""
        elements = self._words[word]
        return at == len(elements) and not (is_word and self._letters.is_word(elements[-1]))

    def _advanced(self, items: frozenset[_Item], kind: int) -> frozenset[_Item]:
        found = set()
        for word, at in items:
            elements = self._words[word]
            if at < len(elements):
                wanted = elements[at]
                if wanted == kind or (wanted == _GAP and kind == SPACE):
                    found.add((word, at + 1))
                if kind == SPACE and elements[at - 1] == _GAP:
                    found.add((word, at))
        return frozenset(found)


class _Letters:
    """Classes of characters: equal where a search that ignores case takes them for equal."""

    def __init__(self, chars: Iterable[str]) -> None:
        self.shown: list[re.Pattern[str]] = []
        self._words: list[bool] = []
        self._known: dict[str, int] = {}
        for char in sorted(set(chars) - {" "}):
            if self._match(char) is None:
                self.shown.append(re.compile(re.escape(char), re.IGNORECASE))
                self._words.append(_of_word(char))
        self._any = re.compile("|".join(one.pattern for one in self.shown) or "(?!)", re.IGNORECASE)

    def is_word(self, kind: int) -> bool:
        return kind == OTHER_WORD or (kind >= _FIRST and self._words[kind - _FIRST])

    def of(self, char: str) -> int:
        """The class of a character."""
        if char not in self._known:
            kind = self._match(char) if self._any.fullmatch(char) else None
            if kind is None:
                kind = OTHER_WORD if _of_word(char) else SPACE if _is_space(char) else OTHER
            self._known[char] = kind
        return self._known[char]

    def classified(self, text: str) -> Ints:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        distinct, places = np.unique(points, return_inverse=True)
        kinds = np.array([self.of(chr(point)) for point in distinct], np.int32)
        return kinds[places]

    def _match(self, char: str) -> int | None:
        for place, pattern in enumerate(self.shown):
            if pattern.fullmatch(char):
                return _FIRST + place
        return None


def _of_word(char: str) -> bool:
    return re.fullmatch(r"\w", char) is not None


def _is_space(char: str) -> bool:
    return re.fullmatch(r"\s", char) is not None
