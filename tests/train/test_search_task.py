"""The embedded task search: its questions, its chains, its start."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_train.commands import build_demo_start
from siri_train.commands.sft import supervised_step
from siri_train.config.base import ConfigError
from siri_train.config.data import SourceConfig
from siri_train.data.demo_task import questions as embedded
from siri_train.data.demo_task.search import SearchConfig, make_chain, make_question
from siri_train.data.sources import read_sources
from siri_train.model import demo_model

ARITHMETIC = {"+": lambda value, n: (value + n) % 10, "*": lambda value, n: (value * n) % 10}
SEED = random.randrange(2**32)


def computed(value: int, operations: list[str]) -> int:
    """The digit that the operations lead to, computed independently of the task."""
    for operation in operations:
        value = ARITHMETIC[operation[0]](value, int(operation[1:]))
    return value


def parts(prompt: str) -> tuple[list[int], list[str], int]:
    """Candidates, operations and target of a prompt."""
    words = prompt.split()
    mark = words.index("?")
    return [int(w) for w in words[1:mark]], words[mark + 1 : -3], int(words[-2])


def test_exactly_the_answer_leads_to_the_target() -> None:
    rng = random.Random(SEED)
    places: dict[int, list[int]] = {}
    for _ in range(4000):
        question = make_question(rng)
        candidates, operations, target = parts(" ".join(question.prompt_words))
        right = [c for c in candidates if computed(c, operations) == target]
        assert right == [int(question.answer)], f"seed {SEED}: {question}"
        assert len(set(candidates)) == len(candidates) and 3 <= len(candidates) <= 6
        assert 1 <= len(operations) <= 3 and len(question.prompt_words) <= 16
        places.setdefault(len(candidates), []).append(candidates.index(right[0]))
    for count, found in places.items():  # every place is as likely, so an untried answer is a guess
        for place in range(count):
            share = found.count(place) / len(found)
            assert abs(share - 1 / count) < 0.08, f"seed {SEED}: {count} candidates, {place}"


def test_a_careful_chain_tries_in_order_until_one_is_right() -> None:
    rng = random.Random(SEED)
    careful = SearchConfig(slip_rate=0.0, blind_rate=0.0, give_up_rate=0.0, again_rate=0.0)
    for _ in range(300):
        question = make_question(rng, careful)
        chain = " ".join(make_chain(rng, question, careful))
        thought, boxed = chain.split(" </think> ")
        trials = [trial.split() for trial in thought.split(" wait ")]
        tried = [int(trial[0]) for trial in trials]
        right = question.candidates.index(int(question.answer))
        assert tried == list(question.candidates[: right + 1]), f"seed {SEED}: {chain}"
        for trial in trials:
            operations = [word for word in trial if word[0] in ARITHMETIC]
            assert operations == list(question.operations)
            assert int(trial[-3]) == computed(int(trial[0]), operations)
            assert trial[-2:] == ["=", str(question.target)]
        assert boxed == f"\\boxed{{ {question.answer} }} <eos>"


def test_a_chain_answers_what_it_named_last_and_ends() -> None:
    rng = random.Random(SEED)
    for config in (
        SearchConfig(),
        SearchConfig(slip_rate=1.0, give_up_rate=0.0, max_trials=3),
        SearchConfig(again_rate=1.0, max_trials=4),
        SearchConfig(blind_rate=1.0),
    ):
        for _ in range(200):
            chain = make_chain(rng, make_question(rng, config), config)
            end = chain.index("</think>")
            starts = [0, *(i + 1 for i in range(end) if chain[i] == "wait")]
            assert chain[end + 2] == chain[starts[-1]], f"seed {SEED}: {chain}"
            assert chain[:end].count("=") <= config.max_trials
            if config.blind_rate == 1:
                assert len(chain) == 6


def test_more_trials_are_right_more_often() -> None:
    """The task's reason: what a chain that gives up after t trials is worth."""
    rng = random.Random(SEED)
    shares = []
    for trials in (1, 2, 3, 6):
        config = SearchConfig(
            slip_rate=0.0, blind_rate=0.0, give_up_rate=0.0, again_rate=0.0, max_trials=trials
        )
        right = 0
        for _ in range(1500):
            question = make_question(rng, config)
            right += make_chain(rng, question, config)[-3] == question.answer
        shares.append(right / 1500)
        # of k candidates, t are computed and one more is named
        wanted = sum(min(1.0, (trials + 1) / k) for k in range(3, 7)) / 4
        assert abs(shares[-1] - wanted) < 0.06, f"seed {SEED}: {trials} trials"
    assert shares == sorted(shares)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SearchConfig)])
def test_a_wrong_parameter_is_named(name: str) -> None:
    for value in (-1, 0.5, 1.5, 100000, True, "3", None, [], [2.0], float("nan")):
        try:
            SearchConfig(**{name: value})
        except ValueError as error:
            assert name in str(error)
        else:
            assert value == 0.5 and name.endswith("_rate")


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"min_candidates": 5, "max_candidates": 4}, "min_candidates"),
        ({"min_operations": 4}, "min_operations"),
        ({"stop_rate": 0.1}, "stop_rate"),
    ],
)
def test_a_source_names_what_the_task_refuses(params: dict[str, object], named: str) -> None:
    source = SourceConfig(kind="embedded", task="search", size=4, params=params)
    with pytest.raises(ConfigError, match=f"data.train.0: params .*{named}"):
        read_sources([source], "train", "data.train")


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError, match="task: .*arithmetic or search, not 'chess'"):
        read_sources([SourceConfig(kind="embedded", task="chess")], "train", "data.train")


def test_tasks_share_neither_questions_nor_halves() -> None:
    train = {q.prompt for q in embedded.questions(1000, task="search")}
    held_out = {q.prompt for q in embedded.questions(300, 1, True, task="search")}
    assert not train & held_out and all(" = " in prompt for prompt in train)
    default = read_sources([SourceConfig(kind="embedded", size=20)], "train", "data.train")
    named = SourceConfig(kind="embedded", size=20, task="arithmetic")
    assert default == read_sources([named], "train", "data.train")
    assert not any(" = " in question.prompt for question in default)


def test_the_shipped_start_is_small_and_speaks_the_words() -> None:
    folder = demo_model.START_FOLDERS["embedded-search"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == len(demo_model.WORDS)
    for question in embedded.questions(50, task="search"):
        ids = [demo_model.WORD_ID[word] for word in question.prompt.split()]
        assert tokenizer.encode(question.prompt) == ids


def test_a_stage_ends_by_its_loss_and_a_start_repeats_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[int] = []

    def counted(*args: Any) -> Any:
        updates.append(1)
        return supervised_step(*args)

    monkeypatch.setattr(build_demo_start, "_drill", lambda policy, seed: None)
    monkeypatch.setattr(build_demo_start, "BATCH", 4)
    monkeypatch.setattr(build_demo_start, "supervised_step", counted)
    stages = (
        build_demo_start.Stage("a", 14, 1e-3, 2.0, SearchConfig(), until=1e9),
        build_demo_start.Stage("b", 3, 1e-3, 2.0, SearchConfig(), until=1e9),
        build_demo_start.Stage("c", 2, 1e-3, 2.0, SearchConfig()),
    )
    monkeypatch.setitem(build_demo_start.STARTS, "search", ("embedded-search", stages))
    weights = []
    for name, seed in (("one", 4), ("two", 4), ("three", 5)):
        updates.clear()
        folder = build_demo_start.build(tmp_path / name, seed, "search")
        assert len(updates) == 10 + 3 + 2  # a mean of ten steps is needed to end early
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
