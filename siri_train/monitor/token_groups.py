"""How often groups of words occur in responses, per thousand response tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_train.monitor.backtrack import BACKTRACK, GROUPS, WordCounter
from siri_train.monitor.token_pieces import token_pieces
from siri_train.monitor.token_transitions import TokenTransitions
from siri_train.monitor.word_automaton import BEGIN, WordAutomaton
from siri_train.rewards.special_tokens import decode_keeping, kept_tokens

Counts = NDArray[np.int64]
Rates = dict[str, dict[str, float | None]]

_PART = 2_000_000  # tokens that are looked at together
RIGHT, WRONG, ALL = "right", "wrong", "all"


class TokenGroups:
    """Counts groups of words in responses, on their token ids.

    What each token of the vocabulary does to the search is a table that is made once
    (:mod:`siri_train.monitor.token_transitions`). So words are found however they are split into
    tokens, and nothing is decoded. The counts are those of ``text`` on the decoded responses: a
    special token that the text drops, or an id that no token has, is not there, and a word goes on
    across it. One that a group names counts. A tokenizer that does not show its vocabulary, or
    whose tokens look different at the end of a text, has its responses decoded after all.

    Args:
        tokenizer: of the model whose responses are counted.
        own: the recipe's ``monitor.token_groups``: name to words. A name of the paper's
            (:data:`siri_train.monitor.backtrack.GROUPS`) replaces that group.

    Attributes:
        groups: name to words, the paper's first.
        text: finds the same words in texts.
    """

    def __init__(self, tokenizer: Any, own: Mapping[str, Sequence[str]] | None = None) -> None:
        self.groups: dict[str, tuple[str, ...]] = GROUPS | {
            name: tuple(words) for name, words in (own or {}).items()
        }
        self.text = WordCounter(self.groups)
        self._tokenizer = tokenizer
        self._words = (*self.groups.values(), BACKTRACK)
        self._kept = _kept(tokenizer, self._words)
        pieces = token_pieces(tokenizer, self._kept)
        self._transitions = (
            None if pieces is None else TokenTransitions(WordAutomaton(self._words), pieces)
        )

    def counts(self, responses: Sequence[Sequence[int]]) -> Counts:
        """Occurrences in each response.

        Args:
            responses: token ids.

        Returns:
            [responses, groups + 1] int64, groups in the order of ``groups``; the last column
            counts the words of ``backtrack_per_1k``.
        """
        if self._transitions is None:
            return self._in_texts(responses)
        counts = np.zeros((len(responses), len(self._words)), np.int64)
        start = 0
        while start < len(responses):  # a part at a time, to bound the memory
            stop, tokens = start, 0
            while stop < len(responses) and (stop == start or tokens < _PART):
                tokens += len(responses[stop])
                stop += 1
            counts[start:stop] = _counts(self._transitions, responses[start:stop])
            start = stop
        return counts

    def _in_texts(self, responses: Sequence[Sequence[int]]) -> Counts:
        every = WordCounter({str(i): words for i, words in enumerate(self._words)})
        texts = decode_keeping(self._tokenizer, responses, self._kept)
        found = [list(every.counts(text).values()) for text in texts]
        return np.array(found, np.int64).reshape(len(responses), len(self._words))

    def rates(
        self, counts: Counts, lengths: Sequence[int], rights: Sequence[bool | None]
    ) -> tuple[Rates, float]:
        """The counts per 1000 response tokens of all, right and wrong responses.

        Pooled, not averaged over responses: a short response would else weigh as much as a long
        one.

        Args:
            counts: see :meth:`counts`.
            lengths: tokens of each response.
            rights: of each response; None: it could not be judged and counts among all only.

        Returns:
            ``{GROUP: {"all": x, "right": x, "wrong": x}}``, None where there are no such tokens,
            and ``backtrack_per_1k``, NaN where there are no tokens at all.
        """
        tokens = np.asarray(lengths, np.int64)
        chosen = {
            ALL: np.ones(len(tokens), bool),
            RIGHT: np.array([right is True for right in rights], bool),
            WRONG: np.array([right is False for right in rights], bool),
        }
        sums = {
            key: (counts[which].sum(0), int(tokens[which].sum())) for key, which in chosen.items()
        }
        per_1k = {
            key: [1000 * int(count) / total if total else None for count in found]
            for key, (found, total) in sums.items()
        }
        groups = {
            name: {key: values[i] for key, values in per_1k.items()}
            for i, name in enumerate(self.groups)
        }
        backtrack = per_1k[ALL][-1]
        return groups, float("nan") if backtrack is None else backtrack


def unwritable(tokenizer: Any, groups: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """The words that no sequence of a tokenizer's tokens can hold.

    Args:
        tokenizer: of the model.
        groups: name to words.

    Returns:
        (group, word) of each.
    """
    found = []
    kept = _kept(tokenizer, groups.values())
    for name, words in groups.items():
        for word in words:
            ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            (back,) = decode_keeping(tokenizer, [ids], kept)
            if not WordCounter({name: [word]}).counts(back)[name]:
                found.append((name, word))
    pieces = token_pieces(tokenizer, kept) if found else None
    if pieces is None:
        return found
    # A word may still stand within a token, as in a mark of the template.
    held = TokenTransitions(WordAutomaton([[word] for _, word in found]), pieces).found_at_all()
    return [one for place, one in enumerate(found) if place not in held]


def _kept(tokenizer: Any, groups: Iterable[Sequence[str]]) -> set[int]:
    """The special tokens that count: those that the text keeps, and those that a group names."""
    return kept_tokens(tokenizer, chain.from_iterable(groups))


def _counts(tables: TokenTransitions, responses: Sequence[Sequence[int]]) -> Counts:
    """Occurrences in each response: one look at every token, and more at those that are not dull.

    Returns:
        [responses, groups] int64.
    """
    lengths = np.array([len(ids) for ids in responses], np.int64)
    ends = np.cumsum(lengths + 1) - 1  # an id of its own stands behind each response
    end = len(tables.kinds) - 1
    ids = np.full(int(lengths.sum()) + len(responses), end, np.int32)
    inside = np.ones(len(ids), bool)
    inside[ends] = False
    given = np.fromiter(chain.from_iterable(responses), np.int32, int(lengths.sum()))
    ids[inside] = np.minimum(given, tables.no_token, out=given)
    kinds = tables.bytes_joined(ids, tables.kinds[ids])

    places = np.flatnonzero(kinds >= tables.dull)
    kind = kinds[places]
    joined = np.zeros(len(places), bool)  # the token before it is one of these, too
    joined[1:] = np.diff(places) == 1
    before = np.full(len(places), BEGIN, np.int32)
    dull = ~joined & (places > 0)
    before[dull] = tables.fixed[kinds[places[dull] - 1]]
    after = tables.fixed[kind]
    # Where the state before depends on the token before it, it is taken from there, in rounds.
    open_ = np.flatnonzero(~joined | (np.concatenate([[0], after[:-1]]) >= 0))
    begins = np.zeros(len(places) + 1, bool)
    begins[open_] = begins[-1] = True
    while len(open_):
        follow = open_[joined[open_]]
        before[follow] = after[follow - 1]
        after[open_] = tables.next[kind[open_], before[open_]]
        open_ = open_[~begins[open_ + 1]] + 1

    last = np.ones(len(places), bool)
    last[:-1] = ~joined[1:]
    behind = places[last] + 1  # dull tokens, which may end a word that the one before completes
    where = np.concatenate([places, behind])
    rows = np.concatenate([tables.found[kind, before], tables.found[kinds[behind], after[last]]])
    some = np.flatnonzero(rows)
    response = np.searchsorted(ends, where[some])
    counts = np.zeros((len(responses), tables.counts.shape[1]), np.int64)
    for row in np.unique(rows[some]):
        times = np.bincount(response[rows[some] == row], minlength=len(responses))
        counts += times[:, None] * tables.counts[row]
    return counts
