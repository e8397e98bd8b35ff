"""Trackers without their packages: what is sent, what a failing one costs, what is missing."""

from __future__ import annotations

import builtins
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siri_train.config.base import ConfigError
from siri_train.monitor import trackers
from siri_train.monitor.tracked_values import PHASES, Totals, histogram, numbers
from siri_train.monitor.trackers import Tracker, Trackers
from siri_train.train import train
from siri_train.trainer.metrics import METRIC_KEYS
from tests.train.report_page import metric


def test_numbers_are_flat_and_named_by_budget() -> None:
    figures = {"tokens": 7, "token_groups": {"wait": {"all": 1.0, "right": None, "wrong": 2.0}}}
    row = {
        "step": 3, "name": "siri-low", "budgets": [8, 16], "accuracy": [0.25, 0.5],
        "accuracy_interval": [[0, 1], [0.25, 0.75]], "tokens_interval": [6, 8], "loss": None,
        "phase": "expansion", "pass_at": {"1": [0.25, 0.5], "2": [0.5, None]}, **figures,
        "sets": {"test": {"accuracy": [0.1, 0.2], **figures}},
    }  # fmt: skip
    assert numbers("eval", row) == {
        "eval/accuracy@8": 0.25, "eval/accuracy@16": 0.5, "eval/tokens": 7.0,
        "eval/accuracy_interval/low@8": 0.0, "eval/accuracy_interval/high@8": 1.0,
        "eval/accuracy_interval/low@16": 0.25, "eval/accuracy_interval/high@16": 0.75,
        "eval/tokens_interval/low": 6.0, "eval/tokens_interval/high": 8.0, "eval/phase": 1.0,
        "eval/pass_at_1@8": 0.25, "eval/pass_at_1@16": 0.5, "eval/pass_at_2@8": 0.5,
        "eval/token_groups/wait/all": 1.0, "eval/token_groups/wait/wrong": 2.0,
        "eval/test/accuracy@8": 0.1, "eval/test/accuracy@16": 0.2, "eval/test/tokens": 7.0,
        "eval/test/token_groups/wait/all": 1.0, "eval/test/token_groups/wait/wrong": 2.0,
    }  # fmt: skip


def leaves(value: Any) -> list[float]:
    """All numbers in a record, however deep."""
    if isinstance(value, dict):
        return [n for key, item in value.items() if key not in LEFT_OUT for n in leaves(item)]
    if isinstance(value, list):
        return [n for item in value for n in leaves(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


LEFT_OUT = ("step", "budgets", "response_len_hist")


def drawn(rng: random.Random, depth: int, budgets: list[int]) -> Any:
    """Any value that a record may have one day."""
    kind = rng.randrange(8 if depth else 4)
    if kind < 4:
        return [None, "text", rng.randint(-9, 10**9), rng.gauss(0, 1)][kind]
    if kind == 4:
        return {f"k{i}": drawn(rng, depth - 1, budgets) for i in range(rng.randint(0, 3))}
    if kind == 5:
        return [rng.random() for _ in budgets]
    return [drawn(rng, depth - 1, budgets) for _ in range(rng.randint(0, 3))]


def test_no_number_of_a_record_is_forgotten() -> None:
    """Any key, also one that a later version adds, arrives once under a name of its own."""
    rng = random.Random()
    for _ in range(300):
        budgets = sorted(rng.sample(range(1, 9999), rng.randint(1, 4)))
        one = {f"new{i}": drawn(rng, 3, budgets) for i in range(rng.randint(1, 6))}
        one["accuracy_interval"] = [[rng.random(), rng.random()] for _ in budgets]
        one["tokens_interval"] = [rng.random(), rng.random()]
        one["pass_at"] = {str(2**k): [rng.random() for _ in budgets] for k in range(3)}
        row = {"step": 3, "budgets": budgets, **one, "sets": {"a": one, "b": one}}
        found = numbers("eval", row)
        assert sorted(found.values()) == sorted(leaves(row))
        assert all(name.startswith("eval/") for name in found)


def test_every_key_of_the_metrics_arrives() -> None:
    from siri_train.schedule import LengthSchedule

    row: dict[str, Any] = {key: 1.5 for key in METRIC_KEYS if key != "token_groups"}
    row |= metric(LengthSchedule("cosine", 32, 16, 30), 3) | {"phase": "compression", "ranks": 2}
    row |= {"response_len_hist": {"width": 4, "counts": [1, 0, 3]}}
    there = numbers("train", row)
    nulls = {key for key, value in row.items() if value is None}
    assert {f"train/{key}" for key in row if key not in {*LEFT_OUT, *nulls}} == set(there)
    assert there["train/phase"] == PHASES["compression"] == -1.0
    lengths = histogram(row)
    assert lengths is not None and lengths.edges == [0, 4, 8, 12] and lengths.counts == (1, 0, 3)
    for bad in (None, {}, {"width": 4}, {"width": "x", "counts": [1]}, {"width": 4, "counts": [0]}):
        assert histogram({"response_len_hist": bad}) is None


def collected() -> tuple[Tracker, list[tuple[Any, ...]]]:
    sent: list[tuple[Any, ...]] = []
    return Tracker(
        "one",
        lambda step, values: sent.append(("log", step, values)),
        lambda: None,
        lambda step, name, lengths: sent.append(("histogram", step, name, lengths.counts)),
        lambda step, title, text: sent.append(("text", step, title, text)),
    ), sent


def test_token_groups_go_by_phase_and_correctness() -> None:
    tracker, sent = collected()
    opened = Trackers([tracker])
    phases = [random.choice(["compression", "expansion", "constant"]) for _ in range(20)]
    for step, phase in enumerate(phases):
        groups = {"wait": {"all": random.random(), "right": random.random(), "wrong": None}}
        opened.log("train", {"step": step, "phase": phase, "token_groups": groups}, step + 1)
        (kind, _, values) = sent[-1]
        assert kind == "log" and values["train/token_groups/wait/all"] == groups["wait"]["all"]
        named = {
            name: value
            for name, value in values.items()
            if name.startswith(("train/compression/", "train/expansion/"))
        }
        wanted = {
            f"train/{phase}/token_groups/wait/{key}": groups["wait"][key]
            for key in ("all", "right")
        }
        assert named == ({} if phase == "constant" else wanted), phases


def test_alarms_are_one_while_they_are_true() -> None:
    tracker, sent = collected()
    trackers = Trackers([tracker], known=["old"])
    spike = {"step": 4, "alarm": "spike", "value": 30.0, "cause": "c", "action": "a"}
    trackers.log_alarms([{**spike, "state": "raised", "since": 4, "age": 0}], [], 5)
    for age in (1, 2):
        trackers.log_alarms([], [SimpleNamespace(name="spike", age=age)], 5 + age)
    trackers.log_alarms([{**spike, "state": "cleared", "since": 4, "age": 3}], [], 8)
    trackers.log_alarms([], [], 9)
    trackers.log_alarms([spike], [], 10)  # a row without a state is a raise
    logs = {step: values for kind, step, values in (s for s in sent if s[0] == "log")}
    assert [logs[step]["alarms/spike"] for step in range(5, 11)] == [1, 1, 1, 0, 0, 1]
    assert all(values["alarms/old"] == 0 for values in logs.values())
    assert logs[5]["alarms/spike/value"] == 30.0 and logs[5]["alarms/spike/since"] == 4
    assert [logs[step]["alarms/spike/age"] for step in (5, 6, 7, 8)] == [0, 1, 2, 3]
    assert [s[1:] for s in sent if s[0] == "text"] == [
        (5, "ALARM spike", "c; a"),
        (8, "alarm spike is over", "after 3 steps"),
        (10, "ALARM spike", "c; a"),
    ]


def test_no_alarm_sends_nothing_and_lengths_go_as_a_histogram() -> None:
    tracker, sent = collected()
    plain = Tracker("plain", lambda step, values: None, lambda: None)
    trackers = Trackers([plain, tracker])
    trackers.log_alarms([], [], 1)
    assert sent == []
    trackers.log("train", {"step": 0, "response_len_hist": {"width": 2, "counts": [3, 1]}}, 1)
    assert ("histogram", 1, "train/response_len_hist", (3, 1)) in sent
    assert trackers.opened == [plain, tracker]


def test_totals_continue_after_a_resume(tmp_path: Path) -> None:
    rng = random.Random()
    path, rows = tmp_path / "metrics.jsonl", []
    for step in range(20):
        times = {"time_rollout": rng.random(), "time_train": rng.random()}
        rows.append({"step": step, "tokens": rng.randint(1, 99), "ranks": 4, **times})
        if step % 2:
            rows[-1]["tokens_discarded"] = rng.randint(1, 9)
    whole = Totals(price=2.0)
    for row in rows:
        last = whole.add(row)
    seconds = sum(row["time_rollout"] + row["time_train"] for row in rows)
    tokens = sum(row["tokens"] + row.get("tokens_discarded", 0) for row in rows)
    assert last == pytest.approx(
        {
            "train/total_tokens": tokens,
            "train/total_seconds": seconds,
            "train/total_cost": 8.0 * seconds / 3600,
        }
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    resumed = Totals.of(path, 12, 2.0)
    for row in rows[12:]:
        assert resumed.add(row)
    assert resumed.values("eval") == pytest.approx(whole.values("eval"))
    assert "eval/total_cost" not in Totals.of(path, 12).values("eval")
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:5], *rows[6:12]]) + "{")
    gap = Totals.of(path, 12, 2.0)
    assert gap.add(rows[12]) == {} and math.isfinite(gap.tokens)


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


@pytest.mark.parametrize("price", [None, 0.0, 3.25])
def test_the_recipes_price_reaches_the_trackers(
    price: float | None, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    opened = Tracker("wandb", lambda step, values: sent.append((step, values)), lambda: None)
    monkeypatch.setattr(trackers, "_wandb", lambda config, step: opened)
    monkeypatch.setattr(trackers, "PACKAGES", {})
    given = "null" if price is None else price
    folder = train(tiny("monitor.wandb=ab", f"monitor.price_per_gpu_hour={given}", "train.steps=2"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    hours = sum(row["ranks"] * (row["time_rollout"] + row["time_train"]) for row in rows) / 3600
    costs = [values["train/total_cost"] for _, values in sent if "train/total_cost" in values]
    assert costs[-1:] == ([] if price is None else [pytest.approx(price * hours, abs=1e-6)])
