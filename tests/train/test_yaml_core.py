"""YAML 1.2, strictly: what is written reads back, and every misuse is one line with its place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.config.base import ConfigError
from siri_train.config.yaml_core import read_yaml, read_yaml_file, write_yaml

# Text that one version of YAML or the other reads as something else, and what has to be escaped.
ODD = [
    *("on", "off", "yes", "no", "y", "n", "true", "False", "null", "~", "", " ", "Null", "NaN"),
    *("1e3", "1e-6", "1.e3", ".5", "0x10", "0o17", "017", "1_000", "1:30", "-1", "+5", ".inf"),
    *("#", "####", "a #b", "a: b", "- a", "{", "[", "[a]", "&a", "*a", "!a", "%a", "@a", "`a", "|"),
    *(">", "?", "=", "<<", "a\nb", "a\n", "\na", " a", "a ", "'", '"', "\\", "\\n", "\t", "a\tb"),
    *("2026-11-26", "---", "...", "\u2028", "\x85", "\ufeff", "\xa0", "é", "数", "😀", "--- a"),
]
TEXT = st.one_of(
    st.sampled_from(ODD),
    st.lists(st.sampled_from(ODD), min_size=1, max_size=4).map("".join),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal with equal types: True is not 1, and 1.0 is not 1."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.costly
@settings(max_examples=400, deadline=None, derandomize=True)
@given(VALUES)
def test_what_is_written_reads_back_the_same_in_both_versions_of_yaml(value: Any) -> None:
    text = write_yaml(value)
    assert same(read_yaml(text), value)
    assert same(yaml.safe_load(text), value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(NUMBERS, st.sampled_from(["{!r}", "{:+}", "a: {!r}", "[{!r}]", "{{a: {!r}}}"]))
def test_numbers_are_read_as_python_writes_them(value: float, form: str) -> None:
    """Floats in the form 1e-06 are text to YAML 1.1."""
    read = read_yaml(form.format(value))
    while not isinstance(read, (int, float)):
        read = read[0] if isinstance(read, list) else read["a"]
    assert same(read, value)


@pytest.mark.parametrize("case", [str.lower, str.capitalize, str.upper])
@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "n"])
def test_words_that_yaml_1_1_takes_for_booleans_are_text(word: str, case: Any) -> None:
    assert read_yaml(f"{case(word)}: {case(word)}") == {case(word): case(word)}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**9), st.integers(0, 59), st.sampled_from([1, 2, 3]))
def test_integers_are_those_of_yaml_1_2(number: int, below_60: int, zeros: int) -> None:
    assert read_yaml(f"{'0' * zeros}{number}") == number  # not octal
    assert read_yaml(f"0o{number:o}") == read_yaml(f"0x{number:x}") == number
    assert read_yaml(f"{number}:{below_60:02}") == f"{number}:{below_60:02}"  # not sexagesimal
    assert read_yaml(f"{number + 1000:_}") == f"{number + 1000:_}"
    assert read_yaml(f"0b{number:b}") == f"0b{number:b}"


def test_the_other_plain_words() -> None:
    for text, value in {
        "true": True,
        "True": True,
        "FALSE": False,
        "null": None,
        "~": None,
    }.items():
        assert same(read_yaml(text), value)
    assert read_yaml("[.inf, -.INF, +.inf]") == [math.inf, -math.inf, math.inf]
    assert math.isnan(read_yaml(".NaN"))
    assert read_yaml("2026-11-26") == "2026-11-26"
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    assert read_yaml("[1, yes, null, {a: 0x1}]", text_only=True) == [
        "1",
        "yes",
        "null",
        {"a": "0x1"},
    ]
    assert read_yaml("# nothing\n") is None


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith("r.yaml:") and "\n" not in message, message
    return message


KEYS = st.text("abcdefgh", min_size=1, max_size=6).map("k".__add__)  # "false" is no text


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_a_key_that_stands_twice_is_refused_with_both_lines(data: st.DataObject) -> None:
    """At any depth, in block and flow style, plain and quoted."""
    above = data.draw(st.lists(KEYS, max_size=3))
    keys = data.draw(st.lists(KEYS, min_size=1, max_size=6, unique=True))
    twice = data.draw(st.integers(0, len(keys) - 1))
    quote = data.draw(st.sampled_from(["{}", "'{}'", '"{}"']))
    pad = "  " * len(above)
    lines = ["  " * depth + f"{key}:" for depth, key in enumerate(above)]
    flow = data.draw(st.booleans())
    if flow:
        first = second = len(lines) + 1
        pairs = ", ".join(f"{key}: 1" for key in [*keys, quote.format(keys[twice])])
        lines.append(f"{pad}- {{{pairs}}}" if above else f"{{{pairs}}}")
    else:
        first, second = len(lines) + 1 + twice, len(lines) + 1 + len(keys)
        lines += [f"{pad}{key}: 1" for key in keys] + [pad + quote.format(keys[twice]) + ": 2"]
    message = refused("\n".join(lines))
    assert message.startswith(f"r.yaml:{second}: ") and repr(keys[twice]) in message
    assert f"first in line {first}" in message


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 30), st.data())
def test_what_is_no_recipe_is_one_line_with_its_place(before: int, data: st.DataObject) -> None:
    bad, says = data.draw(
        st.sampled_from(
            [
                ("b: !!python/object:os.system x", "tags"),
                ("b: !!float 3", "tags"),
                ("b: !mine {c: 1}", "tags"),
                ("1: x", "text as keys; put the key '1' in quotes"),
                ("null: x", "text as keys"),
                ("true: x", "text as keys"),
                ("? [a, b]\n: x", "text as keys"),
                ("{a: 1}: x", "text as keys"),
                ("b: *nowhere", "alias"),
                ("b: &me [*me]", "refers to itself"),
                ("b: &me {c: {d: *me}}", "refers to itself"),
                ("b: {<<: 5}", "merg"),
                ("b:\n\tc: 1", "tab"),
                ("b: [1, 2", "not readable as YAML"),
                ("b: 'x", "not readable as YAML"),
                ("b: a: c", "not readable as YAML"),
                ("b: @x", "not readable as YAML"),
                ("b: \0", "U+0000"),
                ("b: \x1b[0m", "U+001B"),
                ('b: "\\UFFFFFFFF"', "not readable as YAML"),
                ("b: " + "[" * 40 + "]" * 40, "nested"),
                ("b: " + "9" * 5000, "5000 digits"),
                ("---\nb: 1\n---\nc: 1", "second document"),
            ]
        )
    )
    message = refused("".join(f"k{line}: 1\n" for line in range(before)) + bad)
    assert says in message, message
    assert int(message.split(":")[1]) > before or "\\U" in bad


@pytest.mark.parametrize("kind", ["lists", "mappings", "merges"])
@pytest.mark.parametrize("width", [5, 10])
def test_aliases_that_explode_are_refused(kind: str, width: int) -> None:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 12):
        below = [f"*a{level - 1}"] * width
        value = {
            "lists": f"[{', '.join(below)}]",
            "mappings": "{" + ", ".join(f"k{i}: {b}" for i, b in enumerate(below)) + "}",
            "merges": "{<<: [" + ", ".join(below) + "]}",
        }[kind]
        lines.append(f"a{level}: &a{level} {value}")
    assert "aliases" in refused("\n".join(lines))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a: 1\nb: \xff\n", ":2: not readable as YAML: not in UTF-8 (byte 0xff)"),
        ("a: ü".encode("latin-1"), "not in UTF-8"),
        ("a: 1".encode("utf-16"), "not in UTF-8"),
        (b"a: 1\n" * 100_000, "has over 256 KiB"),
        (b"\xff" * 2_000_000, "has over 256 KiB"),
        (b"a: 1\n\0", ":2: not readable as YAML: the character U+0000"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_yaml_file(path)
    assert str(caught.value).startswith(f"{path}:") and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: [x,\r\n  y]\r\n")
    assert read_yaml_file(path) == {"a": 1, "b": ["x", "y"]}


@pytest.mark.costly
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.dictionaries(st.sampled_from("uvwxyz"), NUMBERS | st.booleans() | st.none(), min_size=1),
        min_size=1,
    ),
    st.data(),
)
def test_tabs_separate_as_blanks_do_and_never_indent(value: Any, data: st.DataObject) -> None:
    """Behind a colon, a value and before a comment, in flow lists and empty lines; as YAML 1.2."""
    plain = write_yaml(value).splitlines()
    blank = st.sampled_from([" ", "\t", " \t", "\t\t", "\t "])
    tabbed = []
    for line in plain:
        indent, rest = line[: len(line) - len(line.lstrip())], line.lstrip()
        tail = data.draw(st.sampled_from(["", "\t", "\t# c", " \t #\tc"]))
        tabbed.append(indent + rest.replace(": ", ":" + data.draw(blank)) + tail)
        tabbed += data.draw(st.sampled_from([[], ["\t"], ["  \t "], ["\t# c"]]))
    assert same(read_yaml("\n".join(tabbed)), value)
    flow = json.dumps(value).replace(" ", "\t").replace("{", "{\n\t")
    assert same(read_yaml(flow), value)
    inner = [i for i, line in enumerate(plain) if line.startswith("  ")]
    wrong = data.draw(st.sampled_from(inner))
    plain[wrong] = data.draw(st.sampled_from(["\t", "  \t", "\t  "])) + plain[wrong].lstrip()
    with pytest.raises(ConfigError, match="indent with blanks, not tabs"):
        read_yaml("\n".join(plain), "f")


@pytest.mark.parametrize("text", ["{limit:24}", "{a: 1, limit:24}", "[{limit:24}]"])
def test_a_colon_without_a_space_is_told(text: str) -> None:
    message = "'limit:24' has no space behind the colon, which YAML needs; write limit: 24"
    with pytest.raises(ConfigError, match=message):
        read_yaml(text)
    assert read_yaml(text.replace(":24", ": 24"))
    with pytest.raises(ConfigError, match="takes text as keys"):
        read_yaml("{[a:1]: }")
    # Quoted it is a key.
    assert read_yaml('{"limit:24": null, "b:1":}') == {"limit:24": None, "b:1": None}
