"""Every key has bounds, names itself when they are broken, and what is taken can be planned."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.commands.dry_run import dry_run
from siri_train.config.base import ConfigError
from siri_train.config.data import SourceConfig
from siri_train.config.recipe import load_config, parse_config
from siri_train.config.run import RunConfig
from siri_train.data.demo_task.arithmetic import TaskConfig
from siri_train.data.sources import read_sources
from siri_train.schedule import LengthSchedule
from tests.train.conftest import TINY
from tests.train.fields import FIELDS, allows_null, bounds, kinds, set_at

BATTERY = [
    *(math.nan, math.inf, -math.inf, -1, -0.5, 0, 1, 0.5, 2, 1e30, -1e30, 1e-320, 2**31, 2**63),
    *(
        10**100,
        10**5000,
        True,
        False,
        None,
        "",
        "x",
        "5",
        "1e3",
        "a\0b",
        "a\nb",
        "\udcff",
        "~nobody/x",
    ),
    *([], {}, [None], [[]], [1.5], ["x"], {"x": 1}, {"": None}, [{}], "x" * 5000, object()),
]
NUMBERS = {key: found for key, field in FIELDS.items() if (found := bounds(field))}


def message_of(raw: dict[str, Any]) -> str | None:
    """The one line of a refusal; None where the configuration is taken."""
    try:
        parse_config(raw)
    except ConfigError as error:
        text = str(error)
        assert text.startswith("config: ") and len(text) < 2000
        assert text.isprintable(), text
        return text.removeprefix("config: ")
    return None


def test_all_sections_are_looked_at() -> None:
    assert len(FIELDS) > 130 and len(NUMBERS) > 70
    for key in ("sft.betas", "data.train.0.seed", "model.scratch.heads", "rollout.server.retries"):
        assert key in NUMBERS
    assert "loss.rollout_correction.high" in NUMBERS


@pytest.mark.draw(30)
@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_every_number_has_both_bounds_and_keeps_them(key: str) -> None:
    for kind, low, high, low_out, high_out in NUMBERS[key]:
        assert low is not None and high is not None, f"{key} has no bound on one side"
        assert -1e30 < low < high < 1e30
        step = 1 if kind is int else max(abs(high), 1e-3) * 1e-6
        beyond = [high + step, low - step, -(2.0**70) if kind is float else -(2**70)]
        beyond += [high] * high_out + [low] * low_out
        for value in beyond:
            wrapped = wrap(key, value)
            message = message_of(set_at(copy.deepcopy(TINY), key, wrapped))
            assert message is not None and message.startswith(key), (key, value, message)
            assert "takes" in message


def wrap(key: str, value: Any) -> Any:
    """A number as the key takes it: in a list, or a pair, or alone."""
    for kind in kinds(FIELDS[key].annotation):
        if get_origin(kind) is tuple:
            return [value, value]
        if get_origin(kind) is list:
            return [value]
    return value


@pytest.mark.draw(40)
@pytest.mark.parametrize("key", sorted(FIELDS))
def test_a_wrong_value_is_one_line_that_names_the_key(key: str) -> None:
    taken = [
        kind if get_origin(kind) is None else get_origin(kind)
        for kind in kinds(FIELDS[key].annotation)
    ]
    for value in BATTERY:
        message = message_of(set_at(copy.deepcopy(TINY), key, copy.deepcopy(value)))
        if message is None:  # then it is of a type that the key takes; nothing is converted
            if value is None:
                assert allows_null(FIELDS[key]), key
            elif isinstance(value, str):
                assert str in taken or "Literal" in str(taken), (key, value)
                assert not set(value) & {"\0", "\udcff"}
            elif isinstance(value, bool):
                assert bool in taken, (key, value)
            elif isinstance(value, int):
                assert int in taken or float in taken, (key, value)
            elif isinstance(value, float):
                assert float in taken, (key, value)
            else:
                assert isinstance(value, (list, dict))
        elif ".params" not in key:
            section = key.rpartition(".")[0]
            named = message.startswith((key, f"{section}: " if section else key))
            parts = set(key.split("."))
            assert named or parts & set(message.replace(":", " ").replace(".", " ").split()), (
                message
            )


def edge(key: str, top: bool) -> Any:
    """The outermost value that a key takes."""
    kind, low, high, low_out, high_out = NUMBERS[key][0]
    end, out = (high, high_out) if top else (low, low_out)
    step = 1 if kind is int else 1e-3
    return wrap(key, end + (-step if top else step) * out)


@pytest.mark.draw(2)
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("top", [True, False], ids=["most", "least"])
def test_what_is_taken_can_be_planned(
    top: bool, part: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outermost values pass the dry run, or are one line: nothing is left to the libraries."""
    monkeypatch.chdir(tmp_path)
    planned = 0
    for key in sorted(NUMBERS)[part::8]:
        if key.endswith(".size") and top:
            continue  # it generates a million questions
        raw = set_at(copy.deepcopy(TINY), key, edge(key, top))
        if message_of(raw) is not None:  # another key stands against it
            continue
        try:
            dry_run(parse_config(raw))
            planned += 1
        except ConfigError as error:
            assert ":" in str(error)
    assert planned > 3
    assert list(tmp_path.iterdir()) == []


VALUES = st.sampled_from(sorted(NUMBERS)).flatmap(lambda key: st.tuples(st.just(key), inside(key)))


def inside(key: str) -> st.SearchStrategy[Any]:
    """Values within a key's bounds."""
    kind, low, high, low_out, high_out = NUMBERS[key][0]
    if kind is int:
        return st.integers(math.ceil(low) + low_out, math.floor(high) - high_out)
    return st.floats(low, high, exclude_min=low_out, exclude_max=high_out)


TEXTS = [key for key, field in FIELDS.items() if kinds(field.annotation)[0] is str]


@pytest.mark.parametrize("key", TEXTS)
def test_a_refusal_can_be_printed(key: str) -> None:
    for odd in ("\U00018cd6", "a\x1b[31mb", "\u202ea", "a\u2028b", "\ufeff", "\ud800"):
        message_of(set_at(copy.deepcopy(TINY), key, wrap(key, odd)))  # looks at the message


@pytest.mark.costly
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(VALUES, max_size=4),
    st.lists(
        st.tuples(
            st.sampled_from(TEXTS),
            st.sampled_from(
                ["on", "1e3", "0x10", "~", "null", "#", "####", "a: b", "a\nb", " x", "é"]
            )
            | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
        ),
        max_size=4,
    ),
)
def test_what_is_written_is_the_same_configuration(
    tmp_path_factory: Any, numbers: list[Any], texts: list[Any]
) -> None:
    raw = copy.deepcopy(TINY)
    for key, value in itertools.chain(numbers, texts):
        changed = set_at(copy.deepcopy(raw), key, wrap(key, value))
        if message_of(changed) is None:
            raw = changed
    config = parse_config(raw)
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(path)
    assert again == config and isinstance(again, RunConfig)
    assert again.to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    "key", [k for k, f in FIELDS.items() if "Literal" in str(f.annotation) and k.count(".") < 4]
)
def test_a_misspelt_choice_gets_the_nearest(key: str) -> None:
    choices = [
        c for kind in kinds(FIELDS[key].annotation) for c in get_args(kind) if isinstance(c, str)
    ]
    for choice in choices:
        message = message_of(
            set_at(
                copy.deepcopy(TINY), key, choice[:-1] + "_" if len(choice) > 4 else choice.upper()
            )
        )
        assert message is not None and message.startswith(f"{key}: got ")
        assert all(c in message for c in choices)


@pytest.mark.parametrize("name", [*(f.name for f in dataclasses.fields(TaskConfig)), "x", "size"])
def test_parameters_of_the_embedded_task(name: str) -> None:
    """They are no section, so the task itself names what it refuses."""
    taken = 0
    for value in (*BATTERY[:-1], 3, 5, 17, 18, [0.5, 1], [2.0], [True]):
        raw = set_at(copy.deepcopy(TINY), "data.train.0.params", {name: value})
        try:
            assert len(read_sources(parse_config(raw).data.train, "train", "data.train")) == 64
            taken += 1
        except ConfigError as error:
            assert name in str(error) or "data.train.0.params: takes" in str(error), error
    assert taken if hasattr(TaskConfig(), name) else not taken


def test_more_questions_than_there_are_end_at_once() -> None:
    few = {"min_operations": 1, "max_operations": 1}
    source = SourceConfig(kind="embedded", size=10**6, params=few)
    with pytest.raises(ConfigError, match="fewer than 1000000 different questions"):
        read_sources([source], "train", "data.train")


@pytest.mark.parametrize("key", ["max_len", "min_len", "cycle"])
@pytest.mark.parametrize("value", [2**53 + 2, 2**63, 10**400, 10**4000])
def test_a_schedule_keeps_to_what_its_formulas_hold(key: str, value: int) -> None:
    sizes = {"max_len": 2**53, "min_len": 8, "cycle": 2**53}
    assert LengthSchedule("cosine", **sizes)(2**40) > 8
    with pytest.raises(ValueError, match=f"{key}: got .*up to 2") as caught:
        LengthSchedule("cosine", **{**sizes, key: value})
    assert len(str(caught.value)) < 200


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 1024), st.integers(1, 2**14), st.integers(1, 2**18))
def test_a_model_from_scratch_has_a_size_that_fits(layers: int, quarter: int, inner: int) -> None:
    """The shares of one key alone are allowed; all at their bounds would fill any machine."""
    hidden = 8 * quarter if quarter <= 2**13 else 2**16
    size = {"layers": layers, "hidden_size": hidden, "intermediate_size": inner}
    raw = {"model": {"path": "scratch", "scratch": size}}
    weights = layers * (3 * hidden**2 + 3 * hidden * inner)  # 4 heads, 2 of keys
    if weights > 10**9:
        with pytest.raises(ConfigError, match=r"model.scratch.*takes at most 10\*\*9"):
            parse_config(raw)
    else:
        parse_config(raw)
