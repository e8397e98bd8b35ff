"""Overrides, ``a.b=c``: the type of the key decides how the text is read."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from siri_train.config.base import ConfigError
from siri_train.config.explain import (
    alternatives,
    annotation_of,
    bare,
    item_of,
    may_be_secret,
    section_of,
    shown_key,
    shown_value,
    takes,
    unknown_key,
)
from siri_train.config.yaml_core import read_yaml

_NULLS = ("null", "Null", "NULL", "~")


def apply_override(raw: dict[str, Any], override: str, root: type[BaseModel]) -> None:
    """Set one value in a plain mapping.

    What the key takes decides how the text is read. Where it takes text, the text is the value as
    it stands, ``#`` and ``=`` included; quotes around all of it are taken off, as in YAML, and
    ``null`` is null where the key takes null. Everything else is YAML: numbers, true and false,
    ``[1, 2]``, ``{a: 1}``, null. In lists of text all items are text. Given twice, the last wins.

    Args:
        raw: what a recipe says; changed in place. Sections and lists that it leaves out are made
            with their defaults.
        override: ``KEY.SUBKEY=VALUE``; items of lists are addressed by number, from 0.
        root: the sections, which say what is there.

    Raises:
        ConfigError: no ``=``, an unknown key, a key below a value, no such item, or a value that
            is not YAML, each in one line that names the key.
    """
    name, sign, text = override.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not sign or not all(parts):
        raise ConfigError(f"override {shown_value(override)}: expected KEY.SUBKEY=VALUE")
    node: Any = raw
    annotation: Any = root
    for depth, part in enumerate(parts):
        keys, last = parts[: depth + 1], depth == len(parts) - 1
        default: Any = None
        if isinstance(node, list):
            index: Any = _list_index(node, keys)
            annotation = item_of(annotation) or Any
        elif isinstance(node, dict):
            index = part
            section = section_of(annotation)
            if section is not None:
                field = section.model_fields.get(part)
                if field is None:
                    raise ConfigError(unknown_key(keys, root))
                annotation = annotation_of(field)
                default = field.get_default(call_default_factory=True)
            else:
                annotation = Any
        else:
            raise ConfigError(
                f"{shown_key(keys)}: {shown_key(keys[:-1])} is {shown_value(node, keys[:-1])} here "
                f"and has no subkeys; give {shown_key(keys[:-1])}=VALUE"
            )
        if last:
            node[index] = _value(text, annotation, keys)
            return
        there = node.get(index) if isinstance(node, dict) else node[index]
        if there is None:
            there = node[index] = _empty(annotation, default, [*keys, parts[depth + 1]])
        node = there


def _empty(annotation: Any, default: Any, keys: list[str]) -> Any:
    """The value of a key that a recipe leaves out, so that a part of it can be set."""
    if section_of(annotation) is not None and item_of(annotation) is None:
        return {}  # the defaults are the sections' own
    if isinstance(default, (list, tuple)):
        return [d.model_dump(mode="json") if isinstance(d, BaseModel) else d for d in default]
    if isinstance(default, dict) or annotation is Any:
        return deepcopy(default) if default else {}
    raise ConfigError(
        f"{shown_key(keys)}: {shown_key(keys[:-1])} has no subkeys; takes {takes(annotation)}"
    )


def _list_index(node: list[Any], keys: list[str]) -> int:
    part = keys[-1]
    if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(node)):
        raise ConfigError(
            f"{shown_key(keys)}: {shown_value(part)} is not an item of a list of {len(node)} (from "
            f"0); to add some give the whole list, {shown_key(keys[:-1])}=[...]"
        )
    return int(part)


def _value(text: str, annotation: Any, keys: list[str]) -> Any:
    """The text of an override as the value of a key that takes ``annotation``."""
    kinds = [bare(part) for part in alternatives(annotation)]
    given, words = text.strip(), _takes_words(kinds)
    item = item_of(annotation)
    texts = item is not None and _takes_words([bare(item)])  # a list whose items are text
    if given in _NULLS and type(None) in kinds:
        return None
    if len(given) >= 2 and given[0] == given[-1] and given[0] in "'\"":
        try:
            unquoted = read_yaml(given)
        except ConfigError:
            unquoted = None
        if isinstance(unquoted, str) and (words or Any in kinds):
            return unquoted
    if words and not (texts and given.startswith("[")):
        return text
    if not given:
        raise ConfigError(f"{shown_key(keys)}: got nothing; takes {takes(annotation)}")
    closing = {"[": "]", "{": "}"}.get(given[0])
    if closing is None and "#" in given:
        return given  # no comment: they are not written on a command line
    try:
        if closing is not None and not given.endswith(closing):
            raise ConfigError(f"not readable as YAML: does not end with {closing}")
        return read_yaml(given, text_only=texts)
    except ConfigError as error:
        reason = "not readable as YAML" if may_be_secret(keys) else error  # it may repeat the text
        raise ConfigError(
            f"{shown_key(keys)}: got {shown_value(text, keys)}; {reason}; takes {takes(annotation)}"
        ) from error


def _takes_words(kinds: list[Any]) -> bool:
    """Whether text, or one of some words, is among what is taken."""
    return any(
        kind is str
        or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))
        for kind in kinds
    )
