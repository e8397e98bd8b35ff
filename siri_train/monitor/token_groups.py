"""How often groups of words occur in responses, per thousand response tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_train.monitor.backtrack import BACKTRACK, GROUPS, WordCounter

Counts = NDArray[np.int64]
Rates = dict[str, dict[str, float | None]]

RIGHT, WRONG, ALL = "right", "wrong", "all"


class TokenGroups:
    """Counts groups of words in responses.

    Args:
        tokenizer: of the model whose responses are counted.
        own: the recipe's ``monitor.token_groups``: name to words. A name of the paper's
            (:data:`siri_train.monitor.backtrack.GROUPS`) replaces that group.
    """

    def __init__(self, tokenizer: Any, own: Mapping[str, Sequence[str]] | None = None) -> None:
        self.groups: dict[str, tuple[str, ...]] = GROUPS | {
            name: tuple(words) for name, words in (own or {}).items()
        }
        self.text = WordCounter(self.groups)
        self._backtrack = WordCounter({"backtrack": BACKTRACK})
        self._tokenizer = tokenizer

    def counts(self, responses: Sequence[Sequence[int]]) -> Counts:
        """Occurrences in each response.

        Args:
            responses: token ids.

        Returns:
            [responses, groups + 1] int64, groups in the order of ``groups``; the last column
            counts the words of ``backtrack_per_1k``.
        """
        found = np.zeros((len(responses), len(self.groups) + 1), np.int64)
        for row, ids in zip(found, responses, strict=True):
            text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
            row[:-1] = list(self.text.counts(text).values())
            row[-1] = self._backtrack.counts(text)["backtrack"]
        return found

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
