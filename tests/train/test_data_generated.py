"""Many generated questions, or such as are never done: a line meanwhile, an end, and interrupts."""

from __future__ import annotations

import random
import signal
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from siri_train.config.base import ConfigError
from siri_train.config.data import SourceConfig
from siri_train.data import questions
from siri_train.data.sources import encode_questions, read_sources
from siri_train.monitor import progress
from siri_train.trainer.interrupts import Interrupted, interrupting


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``hanging(index)``: reasoning-gym makes no question from there on (None: all)."""
    released = threading.Event()

    class Dataset:
        def __init__(self, last: int | None) -> None:
            self.last = last

        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == self.last:
                released.wait(600)
            return {"question": f"{index} + 0", "answer": str(index)}

    def stops_at(index: int | None) -> None:
        module = ModuleType("reasoning_gym")
        module.create_dataset = lambda *_, **__: Dataset(index)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "reasoning_gym", module)

    yield stops_at
    released.set()


def source(size: int) -> list[SourceConfig]:
    params = {"max_terms": 10**12}
    return [SourceConfig(kind="reasoning_gym", task="chain_sum", size=size, params=params)]


@pytest.mark.draw(1)
@pytest.mark.parametrize("seed", range(4))
def test_params_that_never_end(hanging: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 300)
    index = rng.randrange(size)
    hanging(index)
    monkeypatch.setattr(questions, "_PATIENCE", 0.4)
    with pytest.raises(ConfigError) as caught:
        read_sources(source(size), "train", "data.train")
    assert str(caught.value) == (
        "data.train.0: reasoning-gym task chain_sum: parameters {'max_terms': 1000000000000}: "
        f"no question in 0 s ({index} of {size} made); give smaller params"
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(hanging: Any, monkeypatch: pytest.MonkeyPatch, signum: int) -> None:
    hanging(3)
    monkeypatch.setattr(progress.Notice, "__call__", lambda *_: signal.raise_signal(signum))
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    own = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kind = KeyboardInterrupt if signum == signal.SIGINT else Interrupted
    try:
        with pytest.raises(kind), interrupting():
            read_sources(source(9), "train", "data.train")
    finally:
        signal.signal(signal.SIGINT, outer)
        signal.signal(signal.SIGTERM, own)


@pytest.mark.parametrize("kind", ["embedded", "reasoning_gym"])
def test_long_work_says_how_far_it_is(
    hanging: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:  # fmt: skip
    """As if every line were due."""
    hanging(None)
    clock = iter(range(0, 10**9, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    given = [SourceConfig(kind="embedded", size=700)] if kind == "embedded" else source(700)
    found = read_sources(given, "train", "data.train")
    said = capsys.readouterr().out.splitlines()
    assert kind != "embedded" or said
    assert all(
        line.startswith("data.train.0.size: ") and " of 700 questions made" in line for line in said
    )
    encode_questions(found[:3], _Tokenizer(), tiny().data)
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "data: 0 of 3 prompts encoded", "data: 1 of 3 prompts encoded, about 24 s left",
    ]  # fmt: skip


class _Tokenizer:
    eos_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, 2]}


def test_quick_work_says_nothing(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    read_sources([SourceConfig(kind="embedded", size=300)], "train", "data.train")
    assert capsys.readouterr().out == ""
