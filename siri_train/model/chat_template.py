"""From a question's text to the token ids that the model reads, and the ids that end its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jinja2 import TemplateError

Template = Literal["chat", "plain"]

BOXED_INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
"""The text that DeepScaleR appends to each question (rllm, deepscaler_dataset.py)."""

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
"""Tokens with which chat templates end a turn, though ``tokenizer.eos_token`` may be another."""


def encode_prompt(
    tokenizer: Any,
    question_text: str,
    *,
    template: Template = "chat",
    system: str | None = None,
    instruction: str | None = None,
    messages: Sequence[tuple[str, str]] = (),
) -> list[int]:
    r"""Token ids of one prompt, template included.

    Args:
        tokenizer: a transformers tokenizer.
        question_text: the question.
        template: ``"chat"``: the tokenizer's chat template, up to where the answer begins;
            ``"plain"``: the text as it is, after the tokenizer's beginning-of-sequence token if it
            adds one.
        system: the system message; with ``"plain"`` a paragraph before the question. None leaves a
            chat template its own default.
        instruction: appended to the question after a blank. None: ``BOXED_INSTRUCTION`` with
            ``"chat"``, nothing with ``"plain"``; ``""``: nothing.
        messages: (role, text) of each message where the question is a chat of several
            (``Question.messages``); the instruction goes to the last one. Empty: the question text
            is the only message.

    Returns:
        P token ids, P > 0; never a tensor or ``BatchEncoding``.

    Raises:
        ValueError: an empty question, an unknown template, a tokenizer without chat template, one
            whose template refuses the messages, a chat that the template cannot carry, or a prompt
            without tokens.
    """
    turns = prompt_messages(
        question_text,
        template=template,
        system=system,
        instruction=instruction,
        messages=messages,
    )
    if template == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("template: this tokenizer has no chat template; choose 'plain'")
        try:
            encoded = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:  # "System role not supported", and syntax errors
            raise ValueError(
                f"the tokenizer's chat template refuses the roles "
                f"{', '.join(turn['role'] for turn in turns)}: {' '.join(str(error).split())}"
            ) from error
        ids = _as_list(encoded)
    else:
        ids = _as_list(tokenizer("\n\n".join(turn["content"] for turn in turns)))
        # T5-like tokenizers end every text with the end-of-sequence token; a prompt must not.
        while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
    if not ids:
        raise ValueError(
            f"the prompt has no tokens: the tokenizer knows nothing of "
            f"{turns[-1]['content'][:60]!r}"
        )
    return ids


def prompt_messages(
    question_text: str,
    *,
    template: Template = "chat",
    system: str | None = None,
    instruction: str | None = None,
    messages: Sequence[tuple[str, str]] = (),
) -> list[dict[str, str]]:
    """One prompt as messages, before the tokenizer's template is applied.

    Args:
        question_text: the question.
        template: ``"chat"`` or ``"plain"``, see :func:`encode_prompt`.
        system: the system message, or None.
        instruction: appended to the question, see :func:`encode_prompt`.
        messages: (role, text) of each message where the question is a chat.

    Returns:
        Dictionaries with ``role`` and ``content``, in order.

    Raises:
        ValueError: an unknown template, an empty question, an assistant's message with ``"plain"``,
            or two system messages.
    """
    if template not in ("chat", "plain"):
        raise ValueError(f"template: got {template!r}, takes 'chat' or 'plain'")
    if not question_text.strip():
        raise ValueError("question_text: is empty")
    if instruction is None:
        instruction = BOXED_INSTRUCTION if template == "chat" else ""
    chat = list(messages) or [("user", question_text)]
    if template == "plain" and any(role == "assistant" for role, _ in chat):
        raise ValueError(
            "template: 'plain' cannot tell whose turn it is in a chat with an assistant's; takes "
            "'chat'"
        )
    # An empty system message is one to a chat template, and nothing as plain text.
    given = system is not None if template == "chat" else bool(system)
    if given and chat[0][0] == "system":
        raise ValueError(
            "system: the chat has a system message of its own; remove it there, or data.system"
        )
    turns = [{"role": "system", "content": system or ""}] if given else []
    turns += [{"role": role, "content": text} for role, text in chat]
    if instruction:
        turns[-1]["content"] += f" {instruction}"
    return turns


def eos_token_ids(tokenizer: Any, *configs: Any) -> frozenset[int]:
    """Every token id that ends an answer.

    Sampling must stop at each, and a response that ends with one has finished. The tokenizer alone
    is not enough: Qwen's base tokenizer ends with ``<|endoftext|>``, its chat template with
    ``<|im_end|>``, and the generation config lists both.

    Args:
        tokenizer: a transformers tokenizer.
        configs: the model's config, generation config, or mappings; each may have an
            ``eos_token_id`` that is an int, a list or None. None is skipped.

    Returns:
        The union of the tokenizer's end-of-sequence token, the configs' and the chat template's
        turn end.

    Raises:
        ValueError: there is none.
    """
    found = _ids(getattr(tokenizer, "eos_token_id", None))
    for config in configs:
        if isinstance(config, Mapping):
            found |= _ids(config.get("eos_token_id"))
        else:
            found |= _ids(getattr(config, "eos_token_id", None))
    found |= set(_turn_ends(tokenizer))
    if not found:
        raise ValueError("neither the tokenizer nor the configs name an end-of-sequence token")
    return frozenset(found)


def answer_end_id(tokenizer: Any, template: Template) -> int:
    """The token id that a supervised answer ends with.

    Args:
        tokenizer: a transformers tokenizer.
        template: ``"chat"``: the chat template's turn end if it has one, else, and with
            ``"plain"``, the tokenizer's end-of-sequence token.

    Returns:
        One token id, a member of ``eos_token_ids``.

    Raises:
        ValueError: the tokenizer has none.
    """
    own = getattr(tokenizer, "eos_token_id", None)
    ends = _turn_ends(tokenizer) if template == "chat" else []
    if isinstance(own, int) and (own in ends or not ends):
        return own
    if ends:
        return ends[0]
    raise ValueError("the tokenizer names no end-of-sequence token")


def _turn_ends(tokenizer: Any) -> list[int]:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return []
    # Several named templates come as a mapping.
    text = template if isinstance(template, str) else str(template)
    added = tokenizer.get_added_vocab()
    return [added[token] for token in TURN_ENDS if token in added and token in text]


def _ids(value: Any) -> set[int]:
    if value is None:
        return set()
    return {int(value)} if isinstance(value, int) else {int(item) for item in value}


def _as_list(encoded: Any) -> list[int]:
    """Plain ids from whatever a tokenizer of some version returned."""
    if hasattr(encoded, "keys"):
        encoded = encoded["input_ids"]
    if hasattr(encoded, "tolist"):
        encoded = encoded.tolist()
    if len(encoded) == 1 and isinstance(encoded[0], (list, tuple)):
        encoded = encoded[0]
    return [int(token) for token in encoded]
