"""Special tokens and ids that no token has: counted as the decoded text says."""

from __future__ import annotations

import random
import re
import time

import pytest

from siri_train.model.think_marks import decode_responses
from siri_train.monitor.token_groups import TokenGroups, unwritable
from tests.train.small_tokenizers import FRAGMENTS, SPECIAL, SPECIAL_KINDS, encoded


def naive(text: str, words: list[str]) -> int:
    """What a reader would count: at every place the longest word that stands there whole."""
    found = place = 0
    while place < len(text):
        ends = []
        for word in words:
            match = re.compile(r"\s+".join(map(re.escape, word.split())), re.I).match(text, place)
            if match is None:
                continue
            goes_on = re.match(r"\w\w", text[max(match.end() - 1, 0) : match.end() + 1])
            went_on = place > 0 and re.match(r"\w\w", text[place - 1 : place + 1])
            if not goes_on and not went_on:
                ends.append(match.end())
        found += bool(ends)
        place = max(ends, default=place + 1)
    return found


@pytest.mark.parametrize("kind", SPECIAL_KINDS)
def test_special_tokens_and_ids_that_no_token_has(kind: str) -> None:
    """A dropped token or a hole is not there; a special token that a group names is its text."""
    seed = time.time_ns()
    rng = random.Random(seed)
    tokenizer = SPECIAL_KINDS[kind]()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    words = ["so", "wait", "hold on", "c++", "maybe", *SPECIAL, "so <|im_end|>", "</THINK> so"]
    own = {f"g{i}": rng.sample(words, rng.randint(1, 4)) for i in range(3)}
    groups = TokenGroups(tokenizer, own)
    named = " ".join(word.lower() for some in groups.groups.values() for word in some)
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    dropped = {i for i, text in special.items() if text != "</think>" and text.lower() not in named}
    there = set(tokenizer.get_vocab().values())
    holes = sorted(set(range(max(there) + 9)) - there)
    responses = []
    for _ in range(300):
        parts = [encoded(tokenizer, rng.choice(FRAGMENTS)) for _ in range(rng.randrange(12))]
        ids = [i for part in parts for i in part]
        for _ in range(rng.randrange(6)):
            odd = rng.choice([*special, *holes[:3], rng.choice(holes), holes[-1] + 10**6])
            ids.insert(rng.randint(0, len(ids)), odd)
        responses.append(ids)
    found = groups.counts(responses)
    across = 0
    for row, ids in zip(found, responses, strict=True):
        rest = [i for i in ids if i in there and i not in dropped]
        text = tokenizer.decode(rest, skip_special_tokens=False)
        wanted = [naive(text, list(some)) for some in groups.groups.values()]
        assert row[:-1].tolist() == wanted, (seed, own, text, ids)
        across += sum(wanted)
    assert across > 50, seed
    assert groups._transitions is not None or kind == "word ends"


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece", "characters"])
def test_the_marks_of_a_text_and_the_counts_agree_on_the_end_of_thoughts(name: str) -> None:
    tokenizer = SPECIAL_KINDS[name]()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    words = {"close": ["</think>"], "turn": ["<|im_end|>"], "wait": ["wait", "</think>"]}
    groups = TokenGroups(tokenizer, words)
    end, turn = tokenizer.convert_tokens_to_ids(["</think>", "<|im_end|>"])
    ids = [*encoded(tokenizer, "wait"), end, *encoded(tokenizer, "so"), turn]
    (text,) = decode_responses(tokenizer, [ids])
    counts = dict(zip(groups.groups, groups.counts([ids])[0].tolist(), strict=False))
    marks = [group for *_, group in groups.text.spans(text)]
    assert counts["close"] == marks.count("close") == 1
    assert counts["wait"] == marks.count("wait") == 2
    assert counts["so"] == marks.count("so") == 1
    assert counts["turn"] == 1 and "<|im_end|>" not in text  # counted, though no text shows it
    assert unwritable(tokenizer, words) == []
