"""``<think>``, ``</think>`` and the box: decoding keeps them, and the model can write them.

Some tokenizers register the marks as special tokens. Decoding without special tokens then drops
what the reward reads, and every reward is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from siri_train.rewards.extract import THINK_CLOSE, THINK_OPEN, ThinkMode
from siri_train.rewards.special_tokens import decode_keeping, kept_tokens

_HALF_PAIRS = {code: "\ufffd" for code in range(0xD800, 0xE000)}
# In byte-level vocabularies a mark may be one token only together with the blank before it.
_LEADS = ("", " ", "\n")
# Tokens at the end of a prompt that may hold an opening mark and blanks behind it.
_TAIL = 16


def decode_responses(tokenizer: Any, responses: Sequence[Sequence[int]]) -> list[str]:
    """The responses' text without special tokens, but with the marks that the reward reads.

    Args:
        tokenizer: a transformers tokenizer.
        responses: token ids of each.

    Returns:
        One text for each response, without halves of surrogate pairs, which no file can hold.
    """
    texts = decode_keeping(tokenizer, responses, kept_tokens(tokenizer))
    return [text if text.isascii() else text.translate(_HALF_PAIRS) for text in texts]


def opens_think(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends with ``<think>``, as the templates of R1-like models do."""
    return tokenizer.decode(list(prompt_ids[-_TAIL:])).rstrip().endswith(THINK_OPEN)


def thinking(tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[bool]:
    """``opens_think`` of each prompt; equal ends are decoded once."""
    known: dict[tuple[int, ...], bool] = {}
    ends = [tuple(prompt[-_TAIL:]) for prompt in prompts]
    for end in ends:
        if end not in known:
            known[end] = opens_think(tokenizer, end)
    return [known[end] for end in ends]


def think_problem(
    tokenizer: Any, think: ThinkMode, prompt_ids: Sequence[int], rows: int | None
) -> str | None:
    """Why ``reward.think`` would make every reward 0, or None.

    Args:
        tokenizer: the model's.
        think: the recipe's ``reward.think``.
        prompt_ids: one encoded prompt, template included.
        rows: of the model's embedding; None: not known.

    Returns:
        One line that names the key, the reason and the remedy; None where the model can write the
        mark that ``think`` asks for, the reward can read it, and the template has not closed the
        thoughts.
    """
    if think != "required":
        return None
    if not _can_write(tokenizer, THINK_CLOSE, rows):
        return (
            f"reward.think: required, but the model's tokenizer cannot write {THINK_CLOSE} (it "
            f"encodes to {_encode(tokenizer, THINK_CLOSE)} and decodes to "
            f"{decode_responses(tokenizer, [_encode(tokenizer, THINK_CLOSE)])[0]!r}, the model has "
            f"{rows if rows is not None else 'unknown'} token ids), so every reward would be 0; "
            "takes reward.think=optional or none, or another tokenizer"
        )
    before = tokenizer.decode(list(prompt_ids[-64:])).rstrip()
    if before.endswith(THINK_CLOSE) and THINK_OPEN in before:
        return (
            "reward.think: required, but the chat template has closed the thoughts "
            f"({THINK_CLOSE}) before the response begins, which then has none; takes "
            "reward.think=none, or a template that leaves them open"
        )
    return None


def _can_write(tokenizer: Any, text: str, rows: int | None) -> bool:
    for lead in _LEADS:
        ids = _encode(tokenizer, lead + text)
        if not ids or (rows is not None and max(ids) >= rows):
            continue
        (back,) = decode_responses(tokenizer, [ids])
        if text in back:
            return True
    return False


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
