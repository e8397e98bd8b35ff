"""Step-level advantage selection (SAS): no advantage for the steps that the verdict says least of.

arXiv 2604.24003. A step of the reasoning is confident where the sampler's log-probs are high. In a
right response the least confident steps lose their advantage, in a wrong one the most confident:
a response is often wrong only because the cap truncated it. The advantage becomes 0 and nothing
else changes: the tokens stay in the denominator of the loss, the entropy bonus and the KL.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Sequence

from siri_train.config.loss import SasConfig
from siri_train.model.packing import Sample
from siri_train.rewards.extract import THINK_CLOSE

Decode = Callable[[Sequence[Sequence[int]]], list[str]]

METRIC = "sas_zeroed_frac"
"""Key of the share of tokens in ``metrics.jsonl``."""

# Where a step ends: behind what matches. A sentence ends at a mark before a blank, or at a newline.
# The blank itself is often in the token of the next word. None of it scans a text twice.
_ENDS = {
    "blank-line": re.compile(r"\n\s*\n"),
    "sentence": re.compile(r"(?:[.!?](?=[\"')\]]*\s)[\"')\]]*|[。！？])(?:\s*\n)?|\n(?:\s*\n)?"),
}


class Pieces:
    """The text of single tokens, with the blank before a word, each decoded once.

    Args:
        decode: token ids of responses to their texts.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._known: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """The piece of each token of a response."""
        new = sorted(set(token_ids) - self._known.keys())
        # Decoders drop the blank before the first word of a text: the second of two has it.
        texts = self._decode([ids for token in new for ids in ([token], [token, token])])
        for token, once, twice in zip(new, texts[::2], texts[1::2], strict=True):
            self._known[token] = twice[len(once) :] if twice.startswith(once) else once
        return [self._known[token] for token in token_ids]


def steps_of(pieces: Sequence[str], sas: SasConfig) -> list[int]:
    """Where the steps of a response begin and end.

    The steps cover the tokens up to ``</think>``, or all of them where it does not stand. A token
    that holds the end of a step belongs to it.

    Args:
        pieces: the text of each token.
        sas: ``cut`` and ``window``.

    Returns:
        [S + 1] ascending, 0 first: step s has the tokens from s to s + 1. S is 0 where nothing
        stands before ``</think>``.
    """
    ends = list(itertools.accumulate(map(len, pieces)))
    text = "".join(pieces)
    close = text.find(THINK_CLOSE)
    # The first token that holds a part of the mark is not of a step.
    last = len(pieces) if close < 0 else bisect.bisect_right(ends, close)
    marks: list[int] = []
    if sas.cut != "window":
        found = (match.end() for match in _ENDS[sas.cut].finditer(text))
        marks = [bisect.bisect_left(ends, end) + 1 for end in found]
    inner = sorted({mark for mark in marks if 0 < mark < last})
    if not inner:  # one step: cut by length
        inner = list(range(sas.window, last, sas.window))
    return [0, *inner, last] if last else [0]


def zeroed_tokens(
    bounds: Sequence[int], logprobs: Sequence[float], right: bool, share: float
) -> list[bool]:
    """Which tokens of a response lose their advantage.

    The confidence of a step is the mean log-prob of its tokens. Of S steps share * S, rounded down,
    are chosen: the least confident ones of a right response, the most confident ones of a wrong
    one, and of equal ones the earlier. Steps whose log-probs are not finite are not chosen.

    Args:
        bounds: [S + 1], as `steps_of` gives them.
        logprobs: [T] of the sampler, in nats.
        right: the verdict.
        share: of the steps, 0 to 1.

    Returns:
        [T], True where the advantage becomes 0.
    """
    zeroed = [False] * len(logprobs)
    steps = list(itertools.pairwise(bounds))
    sign = 1 if right else -1
    confidence = [math.fsum(logprobs[a:b]) / (b - a) for a, b in steps]
    ranked = sorted((sign * mean, s) for s, mean in enumerate(confidence) if math.isfinite(mean))
    # 0.29 * 100 is 28.999999999999996.
    for _, step in ranked[: math.floor(share * len(steps) + 1e-9)]:
        first, behind = steps[step]
        zeroed[first:behind] = [True] * (behind - first)
    return zeroed


def select_steps(
    samples: Sequence[Sample],
    rights: Sequence[bool | None],
    decode: Decode,
    sas: SasConfig,
    phase: str,
) -> float | None:
    """Note in a step's responses which tokens lose their advantage (`Sample.zeroed`).

    It depends on nothing but its arguments, which are the same on every rank.

    Args:
        samples: of the training step, in order, with the sampler's ``rollout_logprobs``.
        rights: their verdicts. A response without one is left as it is, and so is one whose
            advantage is 0.
        decode: token ids of responses to their texts, marks included.
        sas: the recipe's ``advantage.sas``.
        phase: of the training step; see ``sas.phases``.

    Returns:
        The share of the tokens that lost it, among responses whose advantage is not 0; None: no
        response has one.
    """
    pieces = Pieces(decode)
    tokens = chosen = 0
    for sample, right in zip(samples, rights, strict=True):
        if sample.advantage == 0:
            continue
        tokens += len(sample.response_ids)
        if right is None or (sas.phases != "all" and phase != sas.phases):
            continue
        bounds = steps_of(pieces(sample.response_ids), sas)
        sample.zeroed = zeroed_tokens(bounds, sample.rollout_logprobs, right, sas.share)
        chosen += sum(sample.zeroed)
    return chosen / tokens if tokens else None
