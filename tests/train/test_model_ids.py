"""Tokenizer, generation configuration and model must speak of the same tokens."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from siri_train.config.base import ConfigError
from siri_train.config.model import ModelConfig
from siri_train.model import demo_model
from siri_train.model.files import ModelFileError
from siri_train.model.folder import check_model
from siri_train.model.ids import check_ids, make_savable, require_chat
from siri_train.model.policy import Policy, load_policy
from siri_train.rollout import SamplingParams, TransformersEngine
from siri_train.trainer.preflight import preflight
from tests.train.damage import edit_json, edit_weights, model_folder


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(ConfigError) as caught:
        check_model(folder, "model.path")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(6))
def test_a_tokenizer_that_is_larger_than_the_model(seed: int, tmp_path: Path) -> None:
    """Rows are cut off the embedding, or words added to the tokenizer: the first too many is
    named. Special tokens that no text holds may be too many (a text model with the tokenizer of a
    family that sees images)."""
    rng = random.Random(seed)
    rows, more = rng.randrange(3, 37), rng.randrange(1, 5)
    folder = model_folder(tmp_path / "small")
    edit_weights(folder, lambda w: {k: v[:rows] if "embed" in k else v for k, v in w.items()})
    edit_json(folder / "config.json", vocab_size=rows)
    assert f"{37 - rows} tokens have no row" in refusal(folder)
    assert f"embedding of {rows}" in refusal(folder) and f"id {rows})" in refusal(folder)

    for special in (False, True):
        folder = model_folder(tmp_path / f"more {special}")
        tokenizer = demo_model.tokenizer()
        tokenizer.add_tokens([f"<more {n}>" for n in range(more)], special_tokens=special)
        tokenizer.save_pretrained(folder)
        if special:
            assert check_model(folder, "model.path").rows == 37
        else:
            assert f"{more} tokens have no row" in refusal(folder) and "'<more 0>'" in refusal(
                folder
            )


@pytest.mark.parametrize("kind", ["eos_token", "pad_token", "bos_token", "unk_token"])
def test_a_special_token_past_the_embedding(kind: str, tmp_path: Path) -> None:
    """A name that the vocabulary lacks is given a new id by transformers, without a word."""
    folder = model_folder(tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", **{kind: "<nowhere>"})
    text = refusal(folder)
    assert kind in text and "'<nowhere>' is id 37" in text and "37 rows" in text


@pytest.mark.draw(4)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("seed", range(3))
def test_configured_ids_past_the_vocabulary(file: str, key: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"{file}/{key}/{seed}")
    past = rng.randrange(37, 10**9)
    for value in (past, -rng.randrange(2, 99), "2", 2.0, True):
        folder = model_folder(tmp_path / f"{type(value).__name__} {value}")
        edit_json(folder / file, **{key: value})
        assert file in refusal(folder)
    folder = model_folder(tmp_path / "list")
    edit_json(folder / "generation_config.json", eos_token_id=[2, past])
    assert f"eos_token_id is {past}" in refusal(folder)


def test_a_model_that_never_ends(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    edit_json(folder / "config.json", eos_token_id=None)
    edit_json(folder / "generation_config.json", eos_token_id=None)
    check_model(folder, "model.path")  # the tokenizer still has one
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    assert "no answer would ever end" in refusal(folder)


def test_a_prompt_with_a_token_that_the_model_lacks(tiny: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    tokenizer = demo_model.tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    data = tmp_path / "data.jsonl"
    rows = [{"question": f" {n} + 1", "answer": "2"} for n in range(4)]
    rows[2]["question"] += "<image>"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"data.train: .*token 37 \('<image>'\).* 37 rows"):
        preflight(tiny(f"model.path={folder}", f"data.train=[{{kind: file, path: {data}}}]"))


def test_a_template_that_is_no_jinja(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    template = folder / "chat_template.jinja"
    for text, fine in (
        ("{% for m in messages %}{{ m.content }}{% endfor %}", True),
        ("{{ raise_exception('one turn only') }}", True),
        ("{% for m in messages %}{{ m.content }}", False),
        ("a\n{{ m.content", False),
    ):
        template.write_text(text)
        if fine:
            check_model(folder, "model.path")
        else:
            assert "chat_template.jinja: line" in refusal(folder)
    template.write_bytes(b"\xff\xfe{{")
    assert "chat_template.jinja: is not UTF-8" in refusal(folder)


@pytest.mark.parametrize(
    ("template", "system", "said"),
    [
        ("{{ messages[0].content }}", None, ""), ("{{ messages[0].content }}", "be brief", ""),
        (None, None, "no chat template"), ("{{ messages[0].a.b }}", None, "UndefinedError"),
        ("{{ 1 / 0 }}", None, "ZeroDivisionError"), ("{{ raise_exception('a\\nb') }}", None, "a b"),
        ("{{ messages[7].content.x }}", None, "UndefinedError"),
        ("{{ '' }}", None, "writes nothing"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}=", "s",
         "none"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_write_the_runs_questions(
    template: str | None, system: str | None, said: str
) -> None:
    tokenizer = demo_model.tokenizer()
    tokenizer.chat_template = template
    if not said:
        require_chat(tokenizer, system, "")
        return
    with pytest.raises(ConfigError, match=r"data\.template: chat") as caught:
        require_chat(tokenizer, system, "")
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


SAMPLING = {
    "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "typical_p": 0.5,
    "epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4, "length_penalty": 2.0, "early_stopping": True,
}  # fmt: skip


@pytest.mark.draw(3)
@pytest.mark.parametrize("seed", range(8))
def test_an_unsavable_generation_config_is_mended_or_refused(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    given = {key: SAMPLING[key] for key in rng.sample(sorted(SAMPLING), rng.randrange(1, 5))}
    folder = model_folder(tmp_path / "m")
    edit_json(folder / "generation_config.json", do_sample=False, **given)
    assert check_model(folder, "model.path")
    said = capsys.readouterr().out
    policy = load_policy(ModelConfig(path=str(folder)), torch.device("cpu"))
    assert not capsys.readouterr().out  # once is enough
    policy.save(tmp_path / "saved")
    again = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert not again.do_sample and again.eos_token_id == 2
    for key, value in given.items():
        assert f"{key}={value}" in said and getattr(again, key) != value
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")

    edit_json(folder / "generation_config.json", do_sample=True, **given)
    kept = load_policy(ModelConfig(path=str(folder)), torch.device("cpu")).model.generation_config
    sampled = given.keys() - {"length_penalty", "early_stopping"}
    assert all(getattr(kept, key) == given[key] for key in sampled)

    key, value = rng.choice(
        [("max_new_tokens", -rng.randrange(99)), ("early_stopping", "soon"),
         ("cache_implementation", "none such"),
         ("output_scores", True), ("num_return_sequences", 4)]
    )  # fmt: skip
    edit_json(folder / "generation_config.json", **{"do_sample": False, key: value})
    text = refusal(folder)
    assert "generation_config.json: cannot be " in text and "correct or remove it" in text


def test_what_can_be_saved_is_not_touched() -> None:
    generation = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[2, 3])
    before = generation.to_dict()
    assert make_savable(generation) == [] and generation.to_dict() == before


def test_ids_are_not_compared_with_rows_that_are_unknown() -> None:
    tokenizer, config = demo_model.tokenizer(), GenerationConfig(eos_token_id=99)
    check_ids(tokenizer, config, None, None)
    with pytest.raises(ModelFileError, match="eos_token_id is 99"):
        check_ids(tokenizer, config, None, 37)


ODD = [-1, 0, -2.5, 1e30, float("inf"), float("nan"), "", "abc", [], [1], {}, {"a": 1}, True, 2**40]
UNREAD = [
    "temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "num_beams", "num_beam_groups", "repetition_penalty", "length_penalty", "diversity_penalty",
    "no_repeat_ngram_size", "max_new_tokens", "min_new_tokens", "max_length", "min_length",
    "num_return_sequences", "early_stopping", "penalty_alpha", "guidance_scale", "use_cache",
    "do_sample", "cache_implementation", "stop_strings", "bad_words_ids", "suppress_tokens",
]  # fmt: skip


def sampled(policy: Policy) -> list[list[int]]:
    params = SamplingParams(max_tokens=6, n=2, stop_token_ids=policy.eos_ids, seed=3)
    engine = TransformersEngine(policy.model, policy.pad_token_id)
    groups = engine.generate([[1, 9, 23], [1, 14, 30, 8]], params)
    return [completion.token_ids for group in groups for completion in group]


@pytest.mark.costly
def test_odd_sampling_values_are_refused_or_neither_read_nor_in_the_way_of_saving(
    tmp_path: Path,
) -> None:
    """The recipe says how to sample: what a folder says instead must not matter, however odd."""
    rng = random.Random(6)
    folder = model_folder(tmp_path / "m")
    whole = (folder / "generation_config.json").read_text()
    want = sampled(load_policy(ModelConfig(path=str(folder)), torch.device("cpu")))
    taken = 0
    keys = rng.sample(UNREAD, len(UNREAD))
    for start in range(0, len(keys), 3):
        odd = {key: rng.choice(ODD) for key in keys[start : start + 3]}
        (folder / "generation_config.json").write_text(whole)
        edit_json(folder / "generation_config.json", **{"do_sample": bool(start % 2), **odd})
        try:
            check_model(folder, "model.path")
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1 and "generation_config.json" in str(error)
            continue
        taken += 1
        policy = load_policy(ModelConfig(path=str(folder)), torch.device("cpu"))
        assert sampled(policy) == want
        policy.save(tmp_path / "saved")
        check_model(tmp_path / "saved", "again")
        shutil.rmtree(tmp_path / "saved")
    assert taken >= 3


@pytest.mark.parametrize("seed", range(4))
def test_a_tokenizer_that_knows_none_of_the_questions(seed: int, tiny: Any, tmp_path: Path) -> None:
    """A vocabulary of drawn words: every question would be the same row of unknown words."""
    rng = random.Random(seed)
    folder = model_folder(tmp_path / "m")
    words = ["<pad>", "<bos>", "<eos>", "<think>", "</think>"]
    words += ["".join(rng.choices("abcdefgh", k=4)) + str(i) for i in range(rng.randrange(1, 30))]
    model = {
        "type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<pad>",
    }  # fmt: skip
    file = json.loads((folder / "tokenizer.json").read_text())
    edit_json(
        folder / "tokenizer.json", model=model, added_tokens=file["added_tokens"][:3],
        pre_tokenizer={"type": "Whitespace"}, normalizer=None, post_processor=None, decoder=None,
    )  # fmt: skip
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    config = tiny(f"model.path={folder}", "reward.think=optional")
    with pytest.raises(ConfigError, match=r"^data\.train: .*makes nothing of its prompt"):
        preflight(config)


@pytest.mark.parametrize(
    ("key", "more"),
    [("schedule.max_len", "schedule.max_len"), ("eval.budgets", "eval.budgets"),
     ("schedule.max_len", "data.max_prompt_len")],
)  # fmt: skip
@pytest.mark.parametrize("length", [600, 4000])
def test_the_key_that_is_too_long_is_named(key: str, more: str, length: int, tiny: Any) -> None:
    value = f"[{length}]" if more == "eval.budgets" else str(length)
    with pytest.raises(ConfigError, match=rf"^{key}: .*but the model has 512 positions"):
        preflight(tiny(f"{more}={value}", "train.token_budget=9000"))
