"""Overrides are read as a shell user means them: the key that is set says what the text is."""

from __future__ import annotations

import copy
import itertools
import os
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.config.base import ConfigError, Section
from siri_train.config.override import apply_override
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from tests.train.conftest import TINY
from tests.train.fields import FIELDS, allows_null, bounds, kinds, set_at

TEXTS = sorted(key for key, field in FIELDS.items() if kinds(field.annotation)[0] is str)
LISTS = sorted(
    key
    for key, field in FIELDS.items()
    for kind in kinds(field.annotation)
    if get_origin(kind) is list and kinds(get_args(kind)[0])[0] is str
)
PLAIN = sorted(  # a number, true or false
    key for key, field in FIELDS.items() if kinds(field.annotation)[0] in (int, float, bool)
)
# What YAML would make something else of.
ODD = st.sampled_from(
    ["####", "# x", "a #b", "5", "1e3", "true", "on", "~x", "a: b", "- a", "*a", "&a", "!a", "%a",
     "@a", "`a`", "a=b", "=", "==a", "a]", "{a}", "'a", 'a"', "'a' or 'b'", "\\boxed{}", "$x$", "é"]
)  # fmt: skip
WORDS = ODD | st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)


def applied(key: str, text: str, raw: dict[str, Any] | None = None) -> Any:
    """What an override sets, before it is validated."""
    raw = copy.deepcopy(TINY) if raw is None else raw
    apply_override(raw, f"{key}={text}", RunConfig)
    node: Any = raw
    for part in key.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(TEXTS), WORDS)
def test_text_is_taken_as_it_stands(key: str, text: str) -> None:
    null = text.strip() in ("null", "Null", "NULL", "~") and allows_null(FIELDS[key])
    is_list = key in LISTS and text.strip().startswith("[")
    if not (quoted(text) or null or is_list):
        assert applied(key, text) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(TEXTS), WORDS | st.sampled_from(["null", "~", "", "[a]", "'", '"']))
def test_quotes_around_all_of_it_are_taken_off(key: str, text: str) -> None:
    assert applied(key, "'" + text.replace("'", "''") + "'") == text
    double = text.replace("\\", "\\\\").replace('"', '\\"')
    assert applied(key, f'"{double}"') == text


def test_null_is_null_where_null_is_taken() -> None:
    for key in TEXTS:
        for null in ("null", "~"):
            assert applied(key, null) == (None if allows_null(FIELDS[key]) else null), key
    for key in PLAIN:
        if allows_null(FIELDS[key]):
            assert applied(key, "null") is None


@pytest.mark.parametrize("key", LISTS)
def test_items_of_lists_of_text_are_text(key: str) -> None:
    assert applied(key, "[--size, 2, 1e3, on, null, 'a, b', \"#\"]") == [
        *("--size", "2", "1e3", "on", "null", "a, b", "#")
    ]
    set_first = set_at(copy.deepcopy(TINY), key, ["x", "y"])
    assert applied(f"{key}.1", "5 # 6", set_first) == "5 # 6"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(PLAIN), st.data())
def test_numbers_are_numbers(key: str, data: st.DataObject) -> None:
    value: Any = data.draw(st.booleans())
    if found := bounds(FIELDS[key]):
        kind, low, high, *_ = found[0]
        value = data.draw(st.integers(int(low), int(high)) if kind is int else st.floats(low, high))
    text = str(value).lower()
    pad = data.draw(st.sampled_from(["{}", " {}", "{} "]))
    got = applied(key, pad.format(text))
    assert got == value and type(got) is type(value)


NO_NUMBERS = ["", "yes", "off", "1:30", "1_0", "[1", "{a: ", "3 # x", "!!int 3", "'"]


@pytest.mark.draw(40)
@pytest.mark.parametrize("key", PLAIN)
def test_what_is_no_number_is_one_line(key: str) -> None:
    for text in NO_NUMBERS:
        with pytest.raises(ConfigError) as caught:
            parse_config(with_section(key), [f"{key}={text}"])
        message = str(caught.value)
        assert message.startswith(f"config: {key}: got ") and "; takes " in message
        assert message.isprintable()


def with_section(key: str) -> dict[str, Any]:
    """A recipe in which the key's section is there and valid."""
    field = FIELDS[key]
    return set_at(copy.deepcopy(TINY), key, field.default)


@pytest.mark.draw(40)
@pytest.mark.parametrize("key", sorted(PLAIN + TEXTS))
def test_nothing_is_below_a_value(key: str) -> None:
    """Whether the recipe sets the key or not, and to whatever."""
    for value, below in itertools.product((FIELDS[key].default, 5, None), ("x", "x.y", "0")):
        with pytest.raises(ConfigError) as caught:
            parse_config(set_at(copy.deepcopy(TINY), key, value), [f"{key}.{below}=1"])
        assert str(caught.value).startswith(f"config: {key}.") and str(caught.value).isprintable()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_a_misspelt_key_gets_the_nearest(key: str, data: st.DataObject) -> None:
    above, dot, name = key.rpartition(".")
    at = data.draw(st.integers(0, len(name)))
    wrong = above + dot + name[:at] + "_" + name[at:]
    with pytest.raises(ConfigError) as caught:
        parse_config(TINY, [f"{wrong}=1"])
    message = str(caught.value)
    assert message.startswith(f"config: {wrong}: unknown key; ") and above in message
    assert len(name) < 5 or f"did you mean {key}?" in message


@pytest.mark.parametrize(
    "override",
    ["x", "", "=", "=1", ".=1", "a..b=1", ".train=1", "train.=1", "train", " =1", "--x", "a b"],
)
def test_what_is_no_override_is_one_line(override: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY.SUBKEY=VALUE") as caught:
        parse_config(TINY, [override])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("index", ["1", "-1", "x", "²", "१", "9" * 5000, "0x0", "00001"])
@pytest.mark.parametrize("rest", ["", ".size"])
def test_items_that_are_not_there(index: str, rest: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an item of a list of 1 \(from 0\)") as caught:
        parse_config(TINY, [f"data.train.{index}{rest}=3"])
    assert len(str(caught.value)) < 500


def test_what_a_recipe_leaves_out_begins_with_its_defaults() -> None:
    config = parse_config(
        {}, ["data.eval.0.size=7", "sft.steps=3", "data.train.0.params.a.b=[x, 1]"]
    )
    assert config.data.eval[0].size == 7 and config.data.eval[0].seed == 1  # the default's
    assert config.sft is not None and config.sft.steps == 3
    assert config.data.train[0].params == {"a": {"b": ["x", 1]}}
    assert RunConfig().data.train[0].params == {}


@pytest.mark.parametrize("raw", [{"train": 5}, {"train": [1]}, {"data": {"train": [None, 3]}}])
def test_overrides_below_what_a_recipe_spoils(raw: dict[str, Any]) -> None:
    key = "train.steps" if "train" in raw else "data.train.1.size"
    before = copy.deepcopy(raw)
    with pytest.raises(ConfigError, match=rf"^config: {key}: "):
        parse_config(raw, [f"{key}=1"])
    assert raw == before  # the caller's


def test_of_one_key_twice_the_last_wins() -> None:
    assert parse_config(TINY, ["train.steps=2", "train.steps=3"]).train.steps == 3


PATHS = [k for k in TEXTS if k.endswith(("path", "output", "python", "sync_dir", "convert_from"))]


@pytest.mark.parametrize("key", PATHS)
def test_paths_begin_at_home(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shell leaves ``~`` alone behind ``key=``, and a recipe never meets a shell."""
    assert len(PATHS) == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    cases = {"~/a b": f"{tmp_path}/a b", "a/~b": "a/~b"}
    if not allows_null(FIELDS[key]):  # else ~ is null
        cases["~"] = str(tmp_path)
    for text, expected in cases.items():
        value: Any = parse_config(TINY, [f"{key}={text}"])
        for part in key.split("."):
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        assert value == expected
    with pytest.raises(ConfigError, match=f"{key}: got '~nobody-here/x'.*no user 'nobody-here'"):
        parse_config(TINY, [f"{key}=~nobody-here/x"])
    assert not os.path.exists("~")


def test_every_section_is_strict() -> None:
    assert Section.model_config["strict"] and Section.model_config["extra"] == "forbid"


PAIRS = sorted(key for key, field in FIELDS.items() for k in kinds(field.annotation)
               if get_origin(k) is tuple)  # fmt: skip


@pytest.mark.parametrize("key", PAIRS)
def test_an_item_of_a_pair_that_the_recipe_leaves_out(key: str) -> None:
    raw = copy.deepcopy(TINY)
    for item in (0, 1):
        apply_override(raw, f"{key}.{item}=0.{item + 1}", RunConfig)
    node: Any = raw
    for part in key.split("."):
        node = node[part]
    assert node == [0.1, 0.2]
    for wrong in ("2", "-1", "x"):
        with pytest.raises(ConfigError, match=rf"{key}.{wrong}: .*not an item of a list of 2"):
            apply_override(raw, f"{key}.{wrong}=0.5", RunConfig)
    with pytest.raises(ConfigError, match=rf"{key}: got \[0.5\]; takes a list of 2"):
        parse_config(copy.deepcopy(TINY), [f"{key}=[0.5]"])


SPELLINGS = {
    "slashes": lambda parts: "/".join(parts),
    "colons": lambda parts: ":".join(parts),
    "brackets": lambda parts: parts[0] + "".join(f"[{part}]" for part in parts[1:]),
    "quoted": lambda parts: parts[0] + "".join(f'["{part}"]' for part in parts[1:]),
    "capitals": lambda parts: ".".join(parts).upper(),
    "a flag": lambda parts: "--" + ".".join(parts),
    "a sign": lambda parts: "+" + ".".join(parts),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_other_spellings_of_a_key_are_told_the_right_one(how: str) -> None:
    """Every key as other programs write it: the line names the key, or its beginning."""
    for key in FIELDS:
        given = SPELLINGS[how](key.split("."))
        if given == key:
            continue
        with pytest.raises(ConfigError) as caught:
            parse_config(copy.deepcopy(TINY), [f"{given}=1"])
        found = re.search(r"did you mean ([\w.]+)\?", str(caught.value))
        assert found, str(caught.value)
        begun = key.split(".")[: len(found[1].split("."))]
        assert found[1] == ".".join(begun), str(caught.value)


def test_a_dotted_key_in_a_file_is_told_where_it_stands() -> None:
    for key in FIELDS:
        *above, last = key.split(".")
        if above and "0" not in above:
            with pytest.raises(ConfigError, match=f"write {last} in a line of its own below"):
                parse_config({**copy.deepcopy(TINY), key: 1})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(PLAIN), st.integers(1000, 10**6), st.data())
def test_a_number_or_word_as_text_is_told_how_to_write_it(
    key: str, number: int, data: st.DataObject
) -> None:
    kind = kinds(FIELDS[key].annotation)[0]
    if kind is bool:
        given, right = data.draw(st.sampled_from([("yes", "true"), ("Off", "false")]))
    else:
        given, right = data.draw(st.sampled_from([(f"{number:_}", str(number)), ("'7'", "7")]))
    with pytest.raises(ConfigError, match=f"; write {right}(, without quotes)?$"):
        parse_config(copy.deepcopy(TINY), [f"{key}={given}"])
