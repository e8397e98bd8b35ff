"""Reads YAML 1.2 (core schema) strictly, and writes YAML that reads back the same.

PyYAML reads YAML 1.1: ``yes``, ``no``, ``on`` and ``off`` are booleans there, ``010`` is 8,
``1:30`` is 90, ``1e-5`` is text, and of a key that stands twice the last value wins. Here true and
false are the only booleans, ``1e-5`` is a number, and a key that stands twice is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from siri_train.config.base import ConfigError

# A recipe has 2 KB. PyYAML would read for minutes at some MB.
_LARGEST = 256 * 1024
_DEEPEST = 32
# An alias counts with all values that it stands for, through other aliases too.
_MOST_NODES = 100_000
_MOST_DIGITS = 40

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"
_CORE = [
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", re.compile(r"^<<$"), ["<"]),
]


class _Problem(yaml.MarkedYAMLError):
    """Something that YAML allows and a recipe does not."""


class _Loader(yaml.SafeLoader):
    """The core schema without tags, cyclic or exploding aliases, and keys that are not text."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}
    text_only = False  # plain scalars stay text
    depth = 0

    def scan_to_next_token(self) -> None:
        """As PyYAML's, which takes no tabs; in YAML 1.2 they separate, and do not indent."""
        super().scan_to_next_token()
        while self.peek() == "\t":
            blanks = 1
            while self.peek(blanks) in " \t":
                blanks += 1
            # Where a key of a block may begin, what stands before it is indentation.
            indents = self.allow_simple_key and not self.flow_level
            if indents and self.peek(blanks) not in "#\r\n\0":
                return
            self.forward(blanks)
            super().scan_to_next_token()

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _Problem(
                problem="tags (!...) are not taken; write the plain value",
                problem_mark=event.start_mark,
            )
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Problem(
                problem=f"is nested more than {_DEEPEST} deep; takes at most {_DEEPEST}",
                problem_mark=event.start_mark,
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}  # here and not later: merging (<<) adds pairs to other nodes
        for key, value in node.value:
            plain = isinstance(key, ScalarNode) and key.style is None
            if plain and node.flow_style and value.value == "" and ":" in key.value:
                before, _, after = key.value.partition(":")
                raise _Problem(
                    problem=f"{key.value!r} has no space behind the colon, which YAML needs; "
                    f"write {before}: {after}",
                    problem_mark=key.start_mark,
                )
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                shown = f" {key.value[:40]!r}" if isinstance(key, ScalarNode) else ""
                raise _Problem(
                    problem=f"takes text as keys; put the key{shown} in quotes",
                    problem_mark=key.start_mark,
                )
            if key.value in first:
                raise _Problem(
                    problem=f"the key {key.value!r} stands twice, first in line "
                    f"{first[key.value]}; keep one of them",
                    problem_mark=key.start_mark,
                )
            first[key.value] = key.start_mark.line + 1
        return node

    def construct_yaml_null(self, node: Any) -> Any:
        return self.construct_scalar(node) if self.text_only else None

    def construct_yaml_bool(self, node: Any) -> Any:
        text = self.construct_scalar(node)
        return text if self.text_only else text.lower() == "true"

    def construct_yaml_int(self, node: Any) -> Any:
        text = str(self.construct_scalar(node))
        if self.text_only:
            return text
        if len(text) > _MOST_DIGITS:
            raise _Problem(
                problem=f"a number of {len(text)} digits; takes at most {_MOST_DIGITS}",
                problem_mark=node.start_mark,
            )
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)

    def construct_yaml_float(self, node: Any) -> Any:
        text = str(self.construct_scalar(node))
        if self.text_only:
            return text
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


class _TextLoader(_Loader):
    """As :class:`_Loader`, but plain scalars are the text that stands there."""

    text_only = True


for _name, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
for _name in ("null", "bool", "int", "float"):
    _Loader.add_constructor(_TAG + _name, getattr(_Loader, f"construct_yaml_{_name}"))
_TextLoader.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def is_number(text: str) -> bool:
    """Whether a plain scalar of this text would be a number."""
    return bool(_INT.match(text) or _FLOAT.match(text))


class _Dumper(yaml.SafeDumper):
    """Text that YAML 1.1 or 1.2 would read as something else is written in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        # Plain and single-quoted, PyYAML writes these as they are and reads them as line ends.
        odd = set(data) & set("\x85\u2028\u2029\ufeff")
        return self.represent_scalar(f"{_TAG}str", data, style='"' if odd else None)


_Dumper.add_representer(str, _Dumper.represent_str)
for _name, _pattern, _first in _CORE:
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


def read_yaml(text: str, where: str = "", *, text_only: bool = False) -> Any:
    """One document of YAML 1.2 (core schema) as numbers, text, booleans, None, lists and dicts.

    Args:
        text: the document.
        where: the file's name, put before ``:LINE`` in errors; "": errors name the column only.
        text_only: take every plain scalar as text, so that ``[--port, 2]`` is two texts.

    Raises:
        ConfigError: one line with the place, for text that is not YAML, a key that stands twice
            (with both lines), keys that are not text or run into their value, tags, several
            documents, control characters, nesting over 32, aliases that refer to themselves or
            explode, over 256 KiB.
    """
    if len(text) > _LARGEST:
        raise ConfigError(_at(where, None) + f"has over {_LARGEST // 1024} KiB; takes a recipe")
    loader: Any = None
    try:
        loader = (_TextLoader if text_only else _Loader)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {}, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "not YAML"
        if "found another document" in str(error.problem):
            reason = "a second document begins (---); takes one"
        if not isinstance(error, _Problem):
            reason = f"not readable as YAML: {_plain(reason)}"
            if error.context and error.problem and error.context_mark and where:
                reason += f" ({_plain(error.context)} of line {error.context_mark.line + 1})"
            if where:
                reason += "; correct it there, or put the text in quotes"
        raise ConfigError(_at(where, mark) + reason) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            (f"{where}:{line}: " if where else "")
            + f"not readable as YAML: the character U+{_code(error.character):04X} is not taken; "
            "remove it, or save the file as text in UTF-8"
        ) from error
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF" is past the last character
        raise ConfigError(_at(where, loader) + f"not readable as YAML: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml_file(path: Path) -> Any:
    """The document in a file in UTF-8, with or without a byte-order mark; see :func:`read_yaml`.

    Raises:
        ConfigError: as :func:`read_yaml`; or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(4 * _LARGEST + 1)  # at most so many bytes make so many characters
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) > 4 * _LARGEST:
            raise ConfigError(f"{path}: has over {_LARGEST // 1024} KiB; takes a recipe") from error
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: not readable as YAML: not in UTF-8 (byte 0x{data[error.start]:02x}); "
            "save the file in UTF-8"
        ) from error
    return read_yaml(text, str(path))


def write_yaml(value: Any) -> str:
    """Block YAML that :func:`read_yaml` reads back as ``value``, and so does a reader of YAML 1.1.

    Args:
        value: dicts with text as keys, lists, text, finite numbers, booleans, None.
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _size(node: Node, known: dict[int, int], above: set[int]) -> int:
    """The number of nodes below, an alias counted with all that it stands for.

    Raises:
        _Problem: there are too many.
    """
    if id(node) in above:
        raise _Problem(
            problem="an alias (*) refers to itself; write the value out",
            problem_mark=node.start_mark,
        )
    if id(node) in known:
        return known[id(node)]
    total = 1
    if isinstance(node, (SequenceNode, MappingNode)):
        above.add(id(node))
        for item in node.value:
            for child in item if isinstance(item, tuple) else (item,):
                total += _size(child, known, above)
        above.discard(id(node))
    if total > _MOST_NODES:
        raise _Problem(
            problem=f"its aliases (*) stand for over {_MOST_NODES} values; use fewer",
            problem_mark=node.start_mark,
        )
    known[id(node)] = total
    return total


def _code(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)


def _at(where: str, mark: Any) -> str:
    """``FILE:LINE: `` of a mark, or of anything else with a ``line`` from 0."""
    if mark is None:
        return f"{where}: " if where else ""
    return f"{where}:{mark.line + 1}: " if where else ""


def _plain(text: str) -> str:
    """One line, and what the libraries' words for a tab and a missing end mean."""
    text = " ".join(text.split())
    if "'\\t'" in text:
        return f"{text}; indent with blanks, not tabs"
    return text
