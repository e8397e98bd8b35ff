from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from siri_train.data.questions import DataError, Question
from siri_train.data.supervised import SupervisedExample, supervised_examples, supervised_text
from siri_train.model.chat_template import (
    BOXED_INSTRUCTION,
    answer_end_id,
    encode_prompt,
    eos_token_ids,
)
from siri_train.rewards import exact_match, final_answer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens; its own end is not the end of the chat template's turns."""
    vocabulary = {chr(code): code - 32 for code in range(32, 127)}
    vocabulary |= {"\n": 95, "[UNK]": 96}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=SPECIAL[0],
        additional_special_tokens=SPECIAL[1:],
        chat_template=CHATML,
    )


def test_chat_prompt(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, "What is 1+1?")
    assert type(ids) is list and all(type(token) is int for token in ids)
    expected = f"<|im_start|>user What is 1+1? {BOXED_INSTRUCTION}<|im_end|> <|im_start|>assistant "
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert BOXED_INSTRUCTION.endswith("\\boxed{}.")


def test_chat_prompt_with_system_and_instruction(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, "Q", system="Be brief.", instruction="Go.")
    expected = "<|im_start|>system Be brief.<|im_end|> <|im_start|>user Q Go.<|im_end|> "
    assert tokenizer.decode(ids).replace(" ", "").startswith(expected.replace(" ", ""))
    bare = encode_prompt(tokenizer, "Q", instruction="")
    expected = "<|im_start|>user Q<|im_end|> <|im_start|>assistant "
    assert bare == tokenizer(expected, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("shape", ["encoding", "nested", "tensor"])
def test_whatever_apply_chat_template_returns_becomes_a_list(tokenizer: Any, shape: str) -> None:
    import torch

    ids = [1, 2, 3]
    returned: Any = {
        "encoding": {"input_ids": ids, "attention_mask": [1, 1, 1]},
        "nested": [ids],
        "tensor": torch.tensor([ids]),
    }[shape]
    tokenizer.apply_chat_template = lambda *args, **kwargs: returned
    assert encode_prompt(tokenizer, "Q") == ids


def test_plain_prompt(tokenizer: Any) -> None:
    assert encode_prompt(tokenizer, "1+1", template="plain") == tokenizer("1+1")["input_ids"]
    ids = encode_prompt(tokenizer, "1+1", template="plain", system="S", instruction="I")
    assert ids == tokenizer("S\n\n1+1 I")["input_ids"]


def test_plain_prompt_keeps_bos_and_drops_eos(tokenizer: Any) -> None:
    bos, eos = tokenizer.convert_tokens_to_ids(["<bos>", "<|endoftext|>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <|endoftext|>",
        special_tokens=[("<bos>", bos), ("<|endoftext|>", eos)],
    )
    ids = encode_prompt(tokenizer, "1+1", template="plain")
    assert ids[0] == bos and len(ids) == 4


def test_prompt_errors(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="question_text: is empty"):
        encode_prompt(tokenizer, " \n")
    with pytest.raises(ValueError, match="template: got 'llama', takes 'chat' or 'plain'"):
        encode_prompt(tokenizer, "Q", template="llama")  # type: ignore[arg-type]
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template; choose 'plain'"):
        encode_prompt(tokenizer, "Q")


class _Config:
    def __init__(self, eos: Any) -> None:
        self.eos_token_id = eos


def test_eos_token_ids_is_the_whole_set(tokenizer: Any) -> None:
    end, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert eos_token_ids(tokenizer) == {end, turn}
    found = eos_token_ids(tokenizer, _Config(7), _Config([8, 9]), {"eos_token_id": 10}, None)
    assert found == {end, turn, 7, 8, 9, 10}
    assert isinstance(found, frozenset)
    tokenizer.chat_template = None
    assert eos_token_ids(tokenizer, _Config(None), {}) == {end}
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="name an end-of-sequence token"):
        eos_token_ids(tokenizer)


def test_answer_end_id(tokenizer: Any) -> None:
    end, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert (answer_end_id(tokenizer, "chat"), answer_end_id(tokenizer, "plain")) == (turn, end)
    tokenizer.eos_token = "<|im_end|>"
    assert answer_end_id(tokenizer, "chat") == turn
    tokenizer.eos_token = tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no end-of-sequence"):
        answer_end_id(tokenizer, "chat")


SOLUTION = "She sold 48/2 = <<48/2=24>>24 clips. \nThat is $<<24*50=1200>>1,200.\n#### 1,200"


def test_gsm8k_solution_becomes_a_boxed_answer() -> None:
    text = supervised_text(Question("a", "Q", "1,200", SOLUTION))
    assert text == ("She sold 48/2 = 24 clips.\nThat is $1,200.\nThe final answer is \\boxed{1200}")
    assert exact_match(final_answer(text, think="none") or "", "1,200")


def test_solution_with_think_marks_satisfies_the_strict_rule() -> None:
    text = supervised_text(Question("a", "Q", "1,200", SOLUTION), think=True)
    assert text.startswith("<think>\nShe sold") and final_answer(text, think="required") == "1200"


@pytest.mark.parametrize(
    ("solution", "answer", "text"),
    [
        ("#### 5", "5", "The final answer is \\boxed{5}"),
        ("Add.\n#### -3.50", "-3.5", "Add.\nThe final answer is \\boxed{-3.5}"),
        ("So \\boxed{\\frac{1}{2}}.", "1/2", "So \\boxed{\\frac{1}{2}}."),
        ("First \\boxed{4}?", "5", "First \\boxed{4}?\nThe final answer is \\boxed{5}"),
        ("Points (1,2).", "(1,2)", "Points (1,2).\nThe final answer is \\boxed{(1,2)}"),
        ("It.", "\\boxed{x}", "It.\nThe final answer is \\boxed{x}"),
    ],
)
def test_other_solutions(solution: str, answer: str, text: str) -> None:
    assert supervised_text(Question("a", "Q", answer, solution)) == text


def test_solutions_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="question a has no solution"):
        supervised_text(Question("a", "Q", "5"))
    with pytest.raises(DataError, match="ends in '6', the answer is '5'"):
        supervised_text(Question("a", "Q", "5", "so\n#### 6"))


def test_supervised_examples(tokenizer: Any) -> None:
    questions = [Question("a", "Q", "12", "#### 12"), Question("b", "Q", "3", "x" * 500)]
    examples, skipped = supervised_examples(questions, tokenizer, max_len=300)
    assert skipped == 1
    (example,) = examples
    assert isinstance(example, SupervisedExample) and example.weights is None
    assert example.prompt_ids == encode_prompt(tokenizer, "Q")
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = "The final answer is \\boxed{12}"
    assert example.response_ids == [*tokenizer(text, add_special_tokens=False)["input_ids"], turn]
    with pytest.raises(DataError, match="2 questions, 2 of them longer than 5 tokens"):
        supervised_examples(questions, tokenizer, max_len=5)


def test_answer_weight(tokenizer: Any) -> None:
    (example,) = supervised_examples(
        [Question("a", "Q", "12", "#### 12")], tokenizer, answer_weight=4.0
    ).examples
    assert example.weights is not None and len(example.weights) == len(example.response_ids)
    heavy = [i for i, weight in enumerate(example.weights) if weight == 4.0]
    assert tokenizer.decode([example.response_ids[i] for i in heavy]).replace(" ", "") == "12"
    assert sum(example.weights) == len(example.weights) + 2 * 3
