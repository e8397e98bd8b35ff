"""The marks of the reward survive decoding and are within the model's reach."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders

from siri_train.cli import main
from siri_train.data.questions import Question
from siri_train.data.supervised import supervised_examples
from siri_train.model import demo_model
from siri_train.model.think_marks import decode_responses, opens_think, think_problem
from siri_train.rewards import final_answer
from tests.train.test_data_prompts import CHATML
from tests.train.test_data_prompts import tokenizer as tokenizer

MARKS = ["<think>", "</think>"]


def with_marks(tokenizer: Any, special: bool) -> Any:
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # no blanks between the characters
    tokenizer.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in MARKS])
    return tokenizer


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """The same tokenizer twice: the marks as ordinary tokens, and as special ones."""
    make = tokenizer.__wrapped__ if hasattr(tokenizer, "__wrapped__") else None
    if make is None:
        make = tokenizer._get_wrapped_function()
    return with_marks(make(), False), with_marks(make(), True)


@settings(derandomize=True, max_examples=150)
@given(
    st.lists(
        st.sampled_from([*MARKS, "\\boxed{7}", "so", " ", "<|endoftext|>", "<|im_end|>", "1+1"])
    )
)
def test_a_mark_is_decoded_alike_as_a_special_token(
    pair: tuple[Any, Any], parts: list[str]
) -> None:
    plain, special = pair
    text = "".join(parts)
    ids = plain(text, add_special_tokens=False)["input_ids"]
    assert ids == special(text, add_special_tokens=False)["input_ids"]
    (one,) = decode_responses(plain, [ids])
    (two,) = decode_responses(special, [ids])
    for mark in MARKS:
        assert one.count(mark) == two.count(mark) == text.count(mark)
    assert "<|" not in two and "<bos>" not in two
    assert final_answer(one) == final_answer(two)
    assert one == plain.decode(ids, skip_special_tokens=True)


def test_no_text_holds_half_a_surrogate_pair() -> None:
    class Odd:
        added_tokens_decoder: dict[int, Any] = {}
        all_special_ids: list[int] = []

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return ["", "a\ud83d", "é\udfff😀", "plain"][ids[0]]

    texts = decode_responses(Odd(), [[1], [2], [3]])
    assert texts == ["a\ufffd", "é\ufffd😀", "plain"]
    json.dumps(texts, ensure_ascii=False).encode()


OPEN = CHATML.replace("assistant {% endif %}", "assistant <think>{% endif %}")
CLOSED = CHATML.replace("assistant {% endif %}", "assistant <think> </think>{% endif %}")


@pytest.mark.parametrize("special", [False, True])
def test_think_is_opened_once_in_supervised_examples(tokenizer: Any, special: bool) -> None:
    with_marks(tokenizer, special)
    question = Question("a", "Q", "5", "Add.\n#### 5")
    for template in (CHATML, OPEN):
        tokenizer.chat_template = template
        (example,) = supervised_examples([question], tokenizer, think=True).examples
        assert opens_think(tokenizer, example.prompt_ids) == (template is OPEN)
        text = tokenizer.decode([*example.prompt_ids, *example.response_ids])
        assert text.count("<think>") == 1 and text.count("</think>") == 1
        (response,) = decode_responses(tokenizer, [example.response_ids])
        assert final_answer(response) == "5"
        (plain,) = supervised_examples([question], tokenizer).examples
        assert "<think>" not in tokenizer.decode(plain.response_ids)


def test_what_can_never_be_paid_is_found(tokenizer: Any) -> None:
    with_marks(tokenizer, True)
    rows = len(tokenizer)
    ids = tokenizer("Q")["input_ids"]
    assert think_problem(tokenizer, "required", ids, rows) is None
    assert think_problem(tokenizer, "required", ids, None) is None
    # The mark's id lies past the embedding.
    short = think_problem(tokenizer, "required", ids, rows - 1)
    assert short is not None and "reward.think: required" in short and "</think>" in short
    assert think_problem(tokenizer, "none", ids, rows - 1) is None
    tokenizer.chat_template = CLOSED
    closed = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, return_dict=False
    )
    problem = think_problem(tokenizer, "required", closed, rows)
    assert problem is not None and "has closed the thoughts" in problem
    assert think_problem(tokenizer, "optional", closed, rows) is None


@pytest.mark.parametrize("missing", ["<", "/", "t", "k", ">", "1"])
@pytest.mark.parametrize("think", ["required", "optional", "none"])
def test_a_vocabulary_without_a_character_of_the_marks(
    tokenizer: Any, missing: str, think: Any
) -> None:
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    del state["model"]["vocab"][missing]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    problem = think_problem(tokenizer, think, tokenizer("Q")["input_ids"], None)
    if think == "required" and missing != "1":
        assert problem is not None and "cannot write </think>" in problem
        assert "takes reward.think=optional or none" in problem
    else:
        assert problem is None


def test_the_embedded_tokenizer_can(tmp_path: Path) -> None:
    built = demo_model.tokenizer()
    assert think_problem(built, "required", built.encode("4 +3 ?"), len(built)) is None


def _start(folder: Path, change: Any) -> Path:
    shutil.copytree(demo_model.START_FOLDER, folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    for token in state["added_tokens"]:
        change(token)
    file.write_text(json.dumps(state, ensure_ascii=False))
    return folder


@pytest.mark.costly
def test_a_run_whose_marks_are_special_has_the_same_rewards(tiny: Any, tmp_path: Path) -> None:
    from siri_train.train import train

    def special(token: Any) -> None:
        token["special"] |= "think" in token["content"] or "boxed" in token["content"]

    model = _start(tmp_path / "model", special)
    rows = []
    for path in ("embedded", str(model)):
        run = train(tiny("train.steps=1", f"model.path={path}", f"output={tmp_path / path[-5:]}"))
        rows.append(json.loads((run / "eval.jsonl").read_text().splitlines()[0]))
    assert rows[0]["accuracy"] == rows[1]["accuracy"] and rows[0]["accuracy"][-1] > 0


def test_a_run_whose_model_cannot_close_its_thoughts_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def renamed(token: Any) -> None:
        token["content"] = token["content"].replace("</think>", "</thunk>")

    model = _start(tmp_path / "model", renamed)
    (tmp_path / "recipe.yaml").write_text(
        f"output: {tmp_path / 'run'}\nmodel: {{path: {model}}}\n"
        "schedule: {max_len: 20, min_len: 10, cycle: 4}\nrollout: {prompts: 2, group_size: 2}\n"
        "train: {steps: 1, token_budget: 2048}\n"
    )
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "reward.think: required" in said and "reward.think=optional or none" in said
    assert not (tmp_path / "run").exists()
