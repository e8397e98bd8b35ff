"""Bad inputs of every kind give one line that names the thing and a remedy; nothing is written."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import DRAW
from tests.train.bad_inputs.bed import RECIPE, Bad, answer, faults
from tests.train.bad_inputs.families import FAMILIES

EACH = 3
"""Inputs of each family in the ordinary run, drawn anew each day; the slow mark takes all."""


def check(inputs: list[Bad]) -> None:
    wrong = []
    for bad in inputs:
        found = faults(bad, answer(bad), remedy=True)
        wrong += [f"{bad.family}/{bad.name}: {fault}" for fault in found]
    assert not wrong, "\n".join([f"{len(wrong)} faults of {len(inputs)} inputs:", *wrong])


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_inputs_are_refused_in_one_line(family: str) -> None:
    inputs = list(FAMILIES[family]())
    check(random.Random(f"{DRAW} {family}").sample(inputs, min(EACH, len(inputs))))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_inputs_are_refused_in_one_line(family: str) -> None:
    check(list(FAMILIES[family]()))


def test_there_are_a_thousand_and_no_two_are_the_same() -> None:
    inputs = {name: list(family()) for name, family in FAMILIES.items()}
    assert sum(map(len, inputs.values())) >= 1000
    for name, found in inputs.items():
        assert {bad.family for bad in found} == {name}
        assert len({(bad.name, bad.argv) for bad in found}) == len(found)


# What the judge must see, or no answer could be wrong.


def refused(argv: list[str]) -> int:
    print("siri-train train: train.steps: got 'x', takes a whole number", file=sys.stderr)
    return 1


def accepted(argv: list[str]) -> int:
    return 0


def two_lines(argv: list[str]) -> int:
    print("a library warns", file=sys.stderr)
    return refused(argv)


def below_python(argv: list[str]) -> int:
    os.write(2, b"a library written in C warns\n")
    return refused(argv)


def silent(argv: list[str]) -> int:
    return 1


def traceback(argv: list[str]) -> int:
    raise KeyError("train.steps")


def other_name(argv: list[str]) -> int:
    print("siri-train train: schedule.cycle: got 'x', takes a whole number", file=sys.stderr)
    return 1


def no_remedy(argv: list[str]) -> int:
    print("siri-train train: run/given: train.steps: the file is missing", file=sys.stderr)
    return 1


def coloured(argv: list[str]) -> int:
    print("siri-train train: train.steps: got '\x1b[31m', takes a whole number", file=sys.stderr)
    return 1


def writes_a_file(argv: list[str]) -> int:
    Path("run").mkdir()
    return refused(argv)


def touches_a_file(argv: list[str]) -> int:
    os.utime(RECIPE, (1, 1))
    return refused(argv)


def crashes(argv: list[str]) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def hangs(argv: list[str]) -> int:
    signal.pause()
    return 1


SEEN: dict[Callable[[list[str]], int], str] = {
    accepted: "accepted",
    two_lines: "2 lines on stderr",
    below_python: "2 lines on stderr",
    silent: "0 lines on stderr",
    traceback: "traceback",
    other_name: "does not name",
    no_remedy: "names no remedy",
    coloured: "control characters",
    writes_a_file: "wrote ['run']",
    touches_a_file: f"wrote ['{RECIPE}']",
    crashes: "died of signal 11",
    hangs: "too slow",
}


@pytest.mark.draw(4)
@pytest.mark.parametrize("main", SEEN)
def test_the_bed_sees_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[list[str]], int]
) -> None:
    monkeypatch.setattr("siri_train.cli.main", main)
    bad = Bad("family", "name", ("train", RECIPE, "train.steps=x"), ("train.steps",))
    (fault, *_) = faults(bad, answer(bad, limit=0.5 if main is hangs else 300.0), remedy=True)
    assert SEEN[main] in fault


def test_the_bed_takes_a_right_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siri_train.cli.main", refused)
    bad = Bad("family", "name", ("train", RECIPE, "train.steps=x"), ("train.steps",))
    assert faults(bad, answer(bad), remedy=True) == []
