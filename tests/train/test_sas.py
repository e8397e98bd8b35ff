"""Step-level advantage selection: steps, which tokens lose their advantage, what that trains."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from siri_train import train as loop
from siri_train.config.base import ConfigError
from siri_train.config.loss import LossConfig, SasConfig
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.model.packing import Sample, micro_batches
from siri_train.model.policy import Policy
from siri_train.model.think_marks import decode_responses
from siri_train.train import train, update
from siri_train.trainer.sas import METRIC, Pieces, select_steps, steps_of, zeroed_tokens
from siri_train.trainer.update import UpdateStats, score
from tests.train.conftest import TINY
from tests.train.test_step import gradient, samples


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads on a busy machine wait for each other, at these sizes for nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STEPS: list[tuple[dict[str, Any], list[str], list[int]]] = [
    # A blank line in one token, in two, with blanks between, as a part of a token.
    ({}, ["a", " b", ".\n\n", "c", "\n", "\n", "d", "\n", "  ", "\n", " e"], [0, 3, 6, 10, 11]),
    ({}, ["a\n\nb", "c"], [0, 1, 2]),
    ({}, ["a", "\n\n\n", "\n", "b"], [0, 3, 4]),
    ({}, ["a", "\n", "b", "\n\n"], [0, 4]),  # nothing behind the last blank line
    ({"window": 2}, ["a", "\n", "b", "\n", "c"], [0, 2, 4, 5]),  # no blank line: by length
    ({}, ["a"] * 130, [0, 64, 128, 130]),
    ({}, ["a"] * 64, [0, 64]),
    # The answer behind </think> is no step, in however many tokens the mark is.
    ({"window": 2}, ["a", "b", "c", "</think>", "\n\n", "d", ""], [0, 2, 3]),
    ({}, ["a\n\n", "b", " </", "think", ">", "\n\n", "d"], [0, 1, 2]),
    ({}, ["</think>", "a", "\n\n", "b"], [0]),
    ({"cut": "window", "window": 3}, ["a", "\n\n", "b", "c", "d"], [0, 3, 5]),
    ({"cut": "sentence"}, ["I", " am", ".", " Is", " 3", ".", "14", "?\"", " Yes"], [0, 3, 8, 9]),
    ({"cut": "sentence"}, ["a", ".", "\n", "\n", "b", "\n", "c", "。", "d", "."], [0, 4, 6, 8, 10]),
    ({"cut": "sentence"}, ["a", "!", "!", "!", " b"], [0, 4, 5]),
    # Tokens without text, such as an end token, belong to the step that follows or ends there.
    ({}, ["a", "\n\n", "", "b", ""], [0, 2, 5]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "pieces", "want"), STEPS)
def test_steps_by_hand(options: dict[str, Any], pieces: list[str], want: list[int]) -> None:
    assert steps_of(pieces, SasConfig(**options)) == want


@pytest.mark.parametrize("cut", ["blank-line", "sentence", "window"])
def test_steps_cover_the_thoughts_of_any_text(cut: Any) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    parts = ["a", " b", ".", "! ", "\n", "\n\n", "  ", "", "</think>", '."\n', "。", "<", "/think>"]
    for _ in range(300):
        pieces = rng.choices(parts, k=rng.randrange(0, 40))
        bounds = steps_of(pieces, SasConfig(cut=cut, window=rng.randint(1, 9)))
        text = "".join(pieces)
        assert bounds[0] == 0 and sorted(set(bounds)) == bounds, seed
        reasoning = text.partition("</think>")[0]
        before = "".join(pieces[: bounds[-1]])
        assert reasoning.startswith(before), seed
        # What is missing is less than the token in which the mark begins.
        assert bounds[-1] == len(pieces) or len(before + pieces[bounds[-1]]) > len(reasoning), seed


@pytest.mark.parametrize("text", ["." * 200_000, "\n" * 200_000, " \n." * 70_000, '."' * 100_000])
@pytest.mark.parametrize("cut", ["blank-line", "sentence"])
def test_long_monotonous_text_takes_no_quadratic_time(text: str, cut: Any) -> None:
    """Each would take minutes if the end of a step was looked for from every character anew."""
    assert steps_of([text, "x"], SasConfig(cut=cut))[-1] == 2


def chosen_by_numpy(
    bounds: Sequence[int], logprobs: Sequence[float], right: bool, share: float
) -> Any:
    """The rule in float64 by other means: a stable sort of the means, by rank."""
    mask = np.zeros(len(logprobs), dtype=bool)
    count = len(bounds) - 1
    if not count:
        return mask
    values = np.array(logprobs, dtype=np.float64)[: bounds[-1]]
    means = np.add.reduceat(values, bounds[:-1]) / np.diff(bounds)
    order = np.argsort(means if right else -means, kind="stable")
    for step in order[: int(np.floor(np.round(share * count, 6)))]:
        mask[bounds[step] : bounds[step + 1]] = True
    return mask


def test_zeroed_tokens_are_those_of_the_rule() -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    some = 0
    for _ in range(300):
        tokens = rng.randint(1, 60)
        last = rng.randint(0, tokens)
        inner = sorted(rng.sample(range(1, last), rng.randint(0, last - 1))) if last > 1 else []
        bounds = [0, *inner, last] if last else [0]
        logprobs = [-3 * rng.random() ** 2 for _ in range(tokens)]
        right, share = rng.random() < 0.5, rng.choice([0.3, 0.29, 0.5, 0.9, rng.random()])
        got = zeroed_tokens(bounds, logprobs, right, share)
        assert got == chosen_by_numpy(bounds, logprobs, right, share).tolist(), seed
        some += any(got)
        assert not all(got), seed
    assert some > 100


def test_zeroed_tokens_by_hand() -> None:
    """Four steps of means -1, -0.25, -2, -0.5, and two tokens of the answer."""
    bounds, logprobs = [0, 1, 3, 5, 6], [-1, -0.5, 0, -4, 0, -0.5, -9, 0]

    def steps(right: bool, share: float) -> str:
        return "".join(
            "0" if zero else "a" for zero in zeroed_tokens(bounds, logprobs, right, share)
        )

    assert steps(True, 0.2) == "aaaaaaaa"  # 0.8 of a step
    assert steps(True, 0.3) == "aaa00aaa" and steps(True, 0.5) == "0aa00aaa"
    assert steps(False, 0.3) == "a00aaaaa" and steps(False, 0.75) == "000aa0aa"
    assert zeroed_tokens([0, 2], [-1.0, -2.0], True, 0.99) == [False, False]  # one step
    assert zeroed_tokens([0], [-1.0], False, 0.99) == [False]  # none
    hundred = zeroed_tokens(range(101), [-1.0 / (1 + n) for n in range(100)], True, 0.29)
    assert sum(hundred) == 29  # though 0.29 * 100 is below 29 in float64
    # Of equal steps the earlier; numbers that are not finite are no confidence.
    assert zeroed_tokens([0, 1, 2], [-1.0, -1.0], False, 0.5) == [True, False]
    for right in (True, False):
        got = zeroed_tokens([0, 1, 2], [float("nan"), -float("inf")], right, 0.5)
        assert got == [False, False]


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "t"), ("Ġt", "h")]
    vocab = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    made.add_tokens(["<think>", "</think>"], special_tokens=True)
    return made


def metaspace() -> PreTrainedTokenizerFast:
    words = ["▁The", "▁sum", "▁is", "▁3", ".", "14", "▁So", "▁", "\n", "</think>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_pieces_keep_the_blank_before_a_word() -> None:
    """Else the sentence of "is 3.14 . So" could not be told from a number."""
    tokenizer = metaspace()

    def decode(responses: Sequence[Sequence[int]]) -> list[str]:
        return decode_responses(tokenizer, responses)

    ids = [0, 1, 2, 3, 4, 5, 4, 6, 8, 8, 0, 9]
    pieces = Pieces(decode)(ids)
    assert pieces == [
        " The", " sum", " is", " 3", ".", "14", ".", " So", "\n", "\n", " The", "</think>",
    ]  # fmt: skip
    assert "".join(pieces).lstrip() == decode([ids])[0]
    assert steps_of(pieces, SasConfig(cut="sentence")) == [0, 7, 10, 11]
    assert steps_of(pieces, SasConfig()) == [0, 10, 11]


def test_pieces_of_a_byte_level_vocabulary_join_to_the_text() -> None:
    tokenizer = byte_level()
    text = "<think>So th\n\nat. th.\n\nWait</think>5"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    pieces = Pieces(lambda responses: decode_responses(tokenizer, responses))(ids)
    assert "".join(pieces) == text and pieces[-1] == ""
    assert {" th", "</think>"} < set(pieces)
    bounds = steps_of(pieces, SasConfig())
    steps = ["".join(pieces[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert steps == ["<think>So th\n\n", "at. th.\n\n", "Wait"]


def letters(responses: Sequence[Sequence[int]]) -> list[str]:
    return ["".join(map(chr, ids)) for ids in responses]


def made_of(text: str, logprobs: Sequence[float], advantage: float) -> Sample:
    ids = [ord(letter) for letter in text]
    return Sample([1], ids, logprobs, advantage, rollout_logprobs=logprobs)


def test_a_step_of_training_by_hand() -> None:
    sas = SasConfig(cut="window", window=1, share=0.5)
    surest_last = [-4.0, -3.0, -2.0, -1.0]
    batch = [made_of("abcd", surest_last, advantage) for advantage in (1.5, -0.5, 0.0, 0.7, -2.0)]
    rights = [True, False, True, None, True]
    assert select_steps(batch, rights, letters, sas, "expansion") == 6 / 16
    first, last = [True, True, False, False], [False, False, True, True]
    # No advantage to take; no verdict; and right though the reward is below the group's mean.
    assert [list(sample.zeroed) for sample in batch] == [first, last, [], [], first]
    assert [sample.advantage for sample in batch] == [1.5, -0.5, 0.0, 0.7, -2.0]


def test_phases_and_steps_without_advantages() -> None:
    only = SasConfig(cut="window", window=1, share=0.5, phases="compression")
    for phase, want in (("compression", 0.5), ("expansion", 0.0)):
        batch = [made_of("ab", [-1.0, -2.0], 1.0)]
        assert select_steps(batch, [True], letters, only, phase) == want
        assert any(batch[0].zeroed) == (want > 0)
    assert select_steps([made_of("ab", [-1.0, -2.0], 0.0)], [True], letters, only, "x") is None
    assert select_steps([], [], letters, only, "compression") is None


def some_zeroed(count: int, seed: int) -> list[Sample]:
    rng = random.Random(seed)
    batch = samples(count, seed=seed)
    for sample in batch:
        if rng.random() < 0.7:
            sample.zeroed = [rng.random() < 0.4 for _ in sample.response_ids]
    return batch


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [24, 60, 4096])
def test_every_token_keeps_its_own_advantage_however_it_is_packed(ranks: int, budget: int) -> None:
    batch = some_zeroed(20, seed=4)
    found: dict[int, list[float]] = {}
    for rank in range(ranks):
        for row in micro_batches(batch, budget, torch.device("cpu"), rank=rank, ranks=ranks):
            if row.dummy:
                continue
            lengths = row.cu_seqlens.diff()
            values = row.advantages
            if values.shape != (row.tokens,):
                assert not any(any(batch[i].zeroed) for i in row.order)
                values = values.repeat_interleave(lengths)
            for index, part in zip(row.order, values.split(lengths.tolist()), strict=True):
                found[index] = part.tolist()
    for index, sample in enumerate(batch):
        zeroed = sample.zeroed or [False] * len(sample.response_ids)
        want = [0.0 if zero else sample.advantage for zero in zeroed]
        assert found[index] == pytest.approx(want, rel=1e-7)


LOSSES: dict[str, dict[str, Any]] = {
    "token-mean": {},
    "seq-mean-token-mean": {"aggregation": "seq-mean-token-mean"},
    "seq-mean-token-sum": {"aggregation": "seq-mean-token-sum"},
    "token-sum-norm": {"aggregation": "token-sum-norm"},
    "sequence ratio": {"ratio": "sequence", "aggregation": "seq-mean-token-mean"},
    "entropy": {"entropy_coef": 0.05},
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_formula_written_out(policy: Policy, name: str) -> None:
    """Sequence by sequence in float64, from logits. A zeroed token adds nothing to the objective,
    counts in the denominator, and has the entropy bonus."""
    loss = LossConfig(**LOSSES[name])
    batch = some_zeroed(8, seed=5)
    score(policy, batch, 1024, 1.0)
    rng = random.Random(6)
    for sample in batch:
        sample.old_logprobs = [value + rng.uniform(-0.4, 0.4) for value in sample.old_logprobs]
    model = copy.deepcopy(policy.model).double()
    tokens = sum(len(sample.response_ids) for sample in batch)
    total = torch.zeros((), dtype=torch.float64)
    for s in batch:
        ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
        every = model(input_ids=ids).logits[0, len(s.prompt_ids) - 1 : -1].log_softmax(-1)
        taken = every.gather(1, torch.tensor(s.response_ids)[:, None])[:, 0]
        log_ratio = taken - torch.tensor(s.old_logprobs, dtype=torch.float64)
        if loss.ratio == "sequence":
            log_ratio = log_ratio.mean().detach() + taken - taken.detach()
        zeroed = s.zeroed or [False] * len(s.response_ids)
        advantage = torch.tensor([0.0 if zero else s.advantage for zero in zeroed]).double()
        ratio = log_ratio.exp()
        own = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        own = own + loss.entropy_coef * (every.exp() * every).sum(-1)
        total = (
            total
            + {
                "token-mean": own.sum() / tokens,
                "seq-mean-token-mean": own.mean() / len(batch),
                "seq-mean-token-sum": own.sum() / len(batch),
                "token-sum-norm": own.sum() / (len(batch) * 24),
            }[loss.aggregation]
        )
    parts = torch.autograd.grad(total, list(model.parameters()))
    want = -torch.cat([part.flatten() for part in parts])
    assert want.norm() > 1e-3
    for budget in (4096, 24):
        got = gradient(policy, batch, loss, budget)
        assert (got - want).norm() < 2e-5 * want.norm()
    whole = [copy.copy(sample) for sample in batch]
    for sample in whole:
        sample.zeroed = ()
    assert (gradient(policy, whole, loss, 4096) - want).norm() > 0.05 * want.norm()


RUN = (
    "advantage.sas={cut: window, window: 3, phases: compression, share: 0.4}",
    "train.mini_batches=2",
)


def config_of(folder: Path, *more: str) -> RunConfig:
    return parse_config(copy.deepcopy(TINY), [f"output={folder}", *RUN, *more])


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("time_rollout", "time_train", "rollout_tokens_per_s", "train_tokens_per_s")
    dropped = (*timed, "peak_memory_gb")
    return [{k: v for k, v in json.loads(line).items() if k not in dropped} for line in lines]


def test_a_run_takes_advantages_in_compression_alone(tmp_path: Path) -> None:
    train(config_of(tmp_path / "run"))
    with_sas = rows(tmp_path / "run")
    assert [row["phase"] for row in with_sas] == ["compression"] * 2 + ["expansion"] * 2
    assert all(0.2 < row[METRIC] <= 0.4 for row in with_sas[:2])
    assert [row[METRIC] for row in with_sas[2:]] == [0.0, 0.0]
    assert list(with_sas[0])[-1] == METRIC
    train(config_of(tmp_path / "plain", "advantage.sas=null"))
    without = rows(tmp_path / "plain")
    assert METRIC not in without[0]
    assert without[0]["reward_mean"] == with_sas[0]["reward_mean"]  # the same responses
    assert without[0]["grad_norm"] != with_sas[0]["grad_norm"]


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_run_that_is_killed_resumes_to_the_bit(
    tmp_path: Path, asynchronous: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (f"rollout.asynchronous={asynchronous}", "advantage.sas.phases=all")
    train(config_of(tmp_path / "whole", *more))
    calls = itertools.count()

    def killed(*args: Any, **kwargs: Any) -> UpdateStats:
        if next(calls) == 2:
            raise MemoryError("killed in step 2")
        return update(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", killed)
        with pytest.raises(MemoryError, match="killed in step 2"):
            train(config_of(tmp_path / "parts", *more))
    assert len(rows(tmp_path / "parts")) == 2
    train(config_of(tmp_path / "parts", *more))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{share: 0}", "advantage.sas.share: got 0; takes a number above 0 and below 1"),
        ("{share: 1}", "advantage.sas.share: got 1"),
        ("{cut: word}", "advantage.sas.cut: got 'word'"),
        ("{window: 0}", "advantage.sas.window: got 0"),
        ("{phases: expansion}", "advantage.sas.phases: got 'expansion'"),
        ("{steps: 3}", "advantage.sas.steps: unknown key"),
        ("true", "advantage.sas: got true"),
    ],
)
def test_what_it_does_not_take_is_one_line(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config(copy.deepcopy(TINY), [f"advantage.sas={given}"])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_schedule_without_compression_refuses_the_phase() -> None:
    given = ["advantage.sas={phases: compression}", "schedule.shape=constant"]
    with pytest.raises(ConfigError, match="advantage.sas.phases: got compression, a phase that"):
        parse_config(copy.deepcopy(TINY), given)
    config = parse_config(copy.deepcopy(TINY), ["advantage.sas={}", "schedule.shape=constant"])
    assert config.advantage.sas == SasConfig()
    assert set(config.advantage.options()) == {"baseline", "scale", "eps"}
