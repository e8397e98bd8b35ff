"""Trackers without their packages: what is sent, what a failing one costs, what is missing."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest

from siri_train.config.base import ConfigError
from siri_train.monitor import trackers
from siri_train.monitor.trackers import Tracker, Trackers, numbers
from siri_train.train import train


def test_numbers_are_flat_and_named_by_budget() -> None:
    row = {
        "step": 3, "name": "siri-low", "budgets": [8, 16], "accuracy": [0.25, 0.5],
        "accuracy_interval": [[0, 1], [0, 1]], "tokens": 7, "loss": None, "phase": "expansion",
    }  # fmt: skip
    assert numbers("eval", row) == {
        "eval/accuracy@8": 0.25, "eval/accuracy@16": 0.5, "eval/tokens": 7.0,
    }  # fmt: skip


def test_a_failing_tracker_is_switched_off_and_the_run_goes_on(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: dict[str, list[int]] = {"good": [], "bad": []}
    closed = []

    def log_bad(step: int, values: dict[str, float]) -> None:
        sent["bad"].append(step)
        if step == 2:
            raise ConnectionError("no route")

    pair = [
        Tracker("bad", log_bad, lambda: closed.append("bad")),
        Tracker("good", lambda step, _: sent["good"].append(step), lambda: closed.append("good")),
    ]
    monkeypatch.setattr(Trackers, "open", classmethod(lambda cls, config, start: cls(pair)))
    run = train(tiny("train.steps=3", "eval.at_start=false"))
    assert sent["bad"] == [1, 2] and closed == ["good"]
    # Steps 1 to 3; evaluated at 2 (siri-low) and 3 (the last).
    assert sent["good"] == [1, 2, 2, 3, 3]
    out = capsys.readouterr().out
    assert "monitor.bad: switched off, metrics.jsonl goes on: ConnectionError: no route" in out
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]


@pytest.mark.parametrize("name", sorted(trackers.PACKAGES))
def test_a_missing_package_is_named_before_anything_is_written(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = builtins.__import__

    def absent(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.split(".")[0] == name or module == trackers.PACKAGES[name]:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr(trackers.importlib, "import_module", absent)
    config = tiny(f"monitor.{name}={'true' if name == 'tensorboard' else 'project'}")
    with pytest.raises(ConfigError, match=rf"monitor\.{name}: No module.*siri-kernels\[loggers\]"):
        train(config)
    assert not config.run_dir.exists()


def test_a_tracker_that_cannot_open_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any, start_step: int) -> Tracker:
        raise ValueError("project name is taken")

    monkeypatch.setattr(trackers, "_wandb", fail)
    monkeypatch.setattr(trackers, "require_packages", lambda monitor: None)
    with pytest.raises(ConfigError, match=r"monitor\.wandb: .*ValueError: project name is"):
        Trackers.open(tiny("monitor.wandb=ab"), 0)
