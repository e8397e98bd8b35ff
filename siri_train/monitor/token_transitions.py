"""Tables of the steps that a word automaton makes over the tokens of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from siri_train.monitor.token_pieces import Pieces
from siri_train.monitor.word_automaton import BEGIN, INSIDE, OTHER, SPACE, Ints, WordAutomaton

_KEPT = 100_000  # runs of bytes whose kind is remembered


class TokenTransitions:
    """The automaton's step from token to token.

    Tokens that do the same are of one kind; there are a few hundred kinds. Most tokens are dull:
    no word of a group begins, goes on or ends in them. Only the others, and what stands behind
    them, need a look.

    Args:
        automaton: finds the words.
        pieces: the vocabulary.

    Attributes:
        kinds: [ids + 2] int32: the kind of every id, of an id that no token has, and of the end
            of a response.
        no_token: the id that no token has.
        dull: how many kinds are dull; these come first.
        next: [kinds, states] int32: the state behind a token.
        fixed: [kinds] int32: the same where it is one for all states, else -1.
        found: [kinds, states] int32: the row of ``counts`` that it completes.
        counts: [rows, groups] int64: occurrences.
    """

    def __init__(self, automaton: WordAutomaton, pieces: Pieces) -> None:
        self._automaton = automaton
        self._rows = [tuple(row) for row in automaton.counts.tolist()]
        self._row_of = {row: place for place, row in enumerate(self._rows)}
        self._tables: list[tuple[Ints, Ints]] = []
        self._known: dict[tuple[bytes, bytes], int] = {}
        self._runs: dict[tuple[int, ...], int] = {}
        self._pieces = pieces
        self.next: Ints = np.empty((0, 0), np.int32)
        texts = [
            pieces.joined([i]) if i in pieces.partial else text
            for i, text in enumerate(pieces.texts)
        ]
        strings = _collapsed(automaton, texts)
        kinds = np.array(self._kinds_of([*strings, (OTHER,)]), np.int32)
        self._sort(kinds)
        self.no_token = len(strings) - 1
        self.stays = int(self.kinds[self.no_token])
        self.is_partial = np.zeros(len(kinds), bool)
        self.is_partial[list(pieces.partial)] = True
        self._freeze()

    def found_at_all(self) -> set[int]:
        """The groups of which some sequence of tokens holds a word."""
        groups: set[int] = set()
        states = [BEGIN]
        for state in states:  # which grows
            counts = self.counts[np.unique(self.found[:, state])]
            groups |= set(np.flatnonzero(counts.any(axis=0)).tolist())
            states += sorted(set(np.unique(self.next[:, state]).tolist()).difference(states))
        return groups

    def bytes_joined(self, ids: Ints, kinds: Ints) -> Ints:
        """The kinds of tokens where some begin or end within a character, or are dropped.

        Neighbours of that sort are taken together: the first gets the kind of all, the others
        change nothing.

        Args:
            ids: [tokens] int32.
            kinds: [tokens] int32, of ``ids``; it is written to.
        """
        places = np.flatnonzero(self.is_partial[ids])
        if not len(places):
            return kinds
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(places) > 1) + 1, [len(places)]])
        for run in np.flatnonzero(np.diff(bounds) > 1).tolist():
            first, behind = places[bounds[run]], places[bounds[run + 1] - 1] + 1
            kinds[first + 1 : behind] = self.stays
            kinds[first] = self._kind_of_run(tuple(ids[first:behind].tolist()))
        self._freeze()
        return kinds

    def _kind_of_run(self, ids: tuple[int, ...]) -> int:
        kind = self._runs.get(ids)
        if kind is None:
            (kind,) = self._kinds_of(_collapsed(self._automaton, [self._pieces.joined(ids)]))
            if len(self._runs) >= _KEPT:
                self._runs.clear()
            self._runs[ids] = kind
        return kind

    def _sort(self, kinds: Ints) -> None:
        """Number the kinds so that the dull ones come first; at first all are of ids."""
        dull = [
            len(set(after.tolist())) == 1
            and after[0] in (BEGIN, INSIDE)
            and not found[[BEGIN, INSIDE]].any()
            for after, found in self._tables
        ]
        order = sorted(range(len(dull)), key=lambda kind: not dull[kind])
        places = np.empty(len(order), np.int32)
        places[order] = np.arange(len(order), dtype=np.int32)
        self.kinds, self.dull = places[kinds], sum(dull)
        self._tables = [self._tables[kind] for kind in order]
        self._known = {key: int(places[kind]) for key, kind in self._known.items()}

    def _freeze(self) -> None:
        """The tables as arrays, made anew where kinds have been added."""
        if len(self.next) == len(self._tables):
            return
        self.next = np.stack([after for after, _ in self._tables])
        self.found = np.stack([found for _, found in self._tables])
        one = (self.next == self.next[:, :1]).all(axis=1)
        self.fixed = np.where(one, self.next[:, 0], -1).astype(np.int32)
        self.counts: NDArray[np.int64] = np.array(self._rows, np.int64)

    def _kinds_of(self, strings: Sequence[tuple[int, ...]]) -> list[int]:
        """The kind of each string of classes; new ones are added."""
        distinct = dict.fromkeys(strings)
        by_first: dict[int, list[tuple[int, ...]]] = {}
        for string in distinct:
            by_first.setdefault(string[0] if string else -1, []).append(string)
        kind_of: dict[tuple[int, ...], int] = {}
        for first, some in by_first.items():
            kind_of |= zip(some, self._simulated(first, some), strict=True)
        return [kind_of[string] for string in strings]

    def _simulated(self, first: int, strings: list[tuple[int, ...]]) -> Iterable[int]:
        """The kinds of strings that begin alike, all of them run through the automaton together.

        Few states differ behind the first character, so the rest is run from these alone.
        """
        table, states = self._automaton, len(self._automaton.next)
        if first == -1:
            same = np.arange(states, dtype=np.int32)
            return [self._kind(same, np.zeros(states, np.int32)) for _ in strings]
        behind, place = np.unique(table.next[:, first], return_inverse=True)
        longest = sorted(range(len(strings)), key=lambda i: -len(strings[i]))
        lengths = np.array([len(strings[i]) for i in longest])
        rest = np.zeros((len(strings), int(lengths[0])), np.int32)
        for row, i in zip(rest, longest, strict=True):
            row[: len(strings[i])] = strings[i]
        at = np.tile(behind.astype(np.int32), (len(strings), 1))
        more: dict[int, dict[int, NDArray[np.int32]]] = {}  # counts by string and state behind
        for column in range(1, rest.shape[1]):
            there = int(np.searchsorted(-lengths, -column))  # those longer than ``column``
            kinds = rest[:there, column, None]
            found = table.found[at[:there], kinds]
            for string, source in np.argwhere(found).tolist():
                counts = more.setdefault(string, {})
                counts[source] = counts.get(source, 0) + table.counts[found[string, source]]
            at[:there] = table.next[at[:there], kinds]
        kinds_found = [0] * len(strings)
        cache: dict[bytes, int] = {}
        for n, i in enumerate(longest):
            plain = at[n].tobytes()
            if n not in more and plain in cache:
                kinds_found[i] = cache[plain]
                continue
            found = table.found[:, first].copy()
            for source, counted in more.get(n, {}).items():
                for state in np.flatnonzero(place == source):
                    found[state] = self._row(table.counts[found[state]] + counted)
            kinds_found[i] = self._kind(at[n][place], found)
            if n not in more:
                cache[plain] = kinds_found[i]
        return kinds_found

    def _row(self, counts: NDArray[np.int32]) -> int:
        key = tuple(counts.tolist())
        if key not in self._row_of:
            self._row_of[key] = len(self._rows)
            self._rows.append(key)
        return self._row_of[key]

    def _kind(self, after: Ints, found: Ints) -> int:
        key = after.tobytes(), found.tobytes()
        if key not in self._known:
            self._known[key] = len(self._tables)
            self._tables.append((after.astype(np.int32), found.astype(np.int32)))
        return self._known[key]


def _collapsed(automaton: WordAutomaton, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The classes of the characters of each text; of equal neighbours in no word only the first.

    The second of them changes nothing.
    """
    whole = automaton.classified("".join(texts))
    bounds = np.cumsum([0, *map(len, texts)])
    kept = np.ones(len(whole), bool)
    kept[1:] = (whole[1:] != whole[:-1]) | (whole[1:] > SPACE)
    kept[bounds[bounds < len(whole)]] = True
    places = np.concatenate([[0], np.cumsum(kept)])[bounds].tolist()
    values = whole[kept].tolist()
    return [tuple(values[a:b]) for a, b in zip(places[:-1], places[1:], strict=True)]
