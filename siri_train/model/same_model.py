"""Refuses a checkpoint or reference model that does not fit the recipe's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.model.folder import check_model, load_config, load_tokenizer

# Keys that decide the weights' shapes and how they are used; names and versions do not.
_ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "num_experts", "hidden_act",
    "tie_word_embeddings", "attention_bias", "sliding_window", "rms_norm_eps",
)  # fmt: skip


def require_same_model(folder: Path, model_config: Any, tokenizer: Any, recipe: str) -> None:
    """Refuse a checkpoint of another architecture, or with another vocabulary.

    Args:
        folder: the checkpoint.
        model_config: the configuration of the recipe's model (transformers' ``PretrainedConfig``).
        tokenizer: the recipe's tokenizer; the questions are encoded with it.
        recipe: how the recipe names its model, for the message.

    Raises:
        ConfigError: naming what differs, there and in the recipe; or its files do not fit one
            another (:func:`siri_train.model.folder.check_model`).
    """
    reason = _difference(folder, model_config, tokenizer)
    if reason is not None:
        raise ConfigError(
            f"{folder}: a checkpoint of another model than the recipe's ({recipe}): {reason}; give "
            "the recipe it was trained with, or another folder (output=FOLDER)"
        )
    check_model(folder, "resume", say=False)


def require_same_vocabulary(source: str, theirs: Any, ours: Any, named: str) -> None:
    """Refuse a model whose tokens have other numbers than the policy's.

    Args:
        source: the model's folder or hub id.
        theirs: its tokenizer.
        ours: the policy's tokenizer.
        named: the key that gave the model, for the message.

    Raises:
        ConfigError: naming the first token that differs.
    """
    reason = _vocabulary_difference(theirs, ours, "the policy's")
    if reason is not None:
        raise ConfigError(
            f"{named}: {source}: {reason}; give a model with the policy's tokenizer, whose "
            "log-probs can be compared token by token"
        )


def _difference(folder: Path, model_config: Any, tokenizer: Any) -> str | None:
    there = load_config(folder, "resume")
    for key in _ARCHITECTURE:
        old, new = getattr(there, key, None), getattr(model_config, key, None)
        if old != new:
            return f"{key} is {old!r} there, {new!r} in the recipe's"
    return _vocabulary_difference(load_tokenizer(folder, "resume"), tokenizer, "the recipe's")


def _vocabulary_difference(theirs: Any, ours: Any, whose: str) -> str | None:
    words, known = theirs.get_vocab(), ours.get_vocab()
    if len(words) != len(known):
        return f"its tokenizer has {len(words)} tokens, {whose} {len(known)}"
    for word, number in words.items():
        if known.get(word) != number:
            return f"its tokenizer has {word!r} as token {number}, {whose} {known.get(word)}"
    return None
