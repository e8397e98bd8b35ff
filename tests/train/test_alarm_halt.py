"""Alarms in a run: its files, ``monitor.halt_on``, ``--halt-on``, resume; and the new figures."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.config.alarms import AlarmsConfig
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config, parse_config
from siri_train.monitor.alarms import ALARMS, Raised, alarm, require_known
from siri_train.monitor.repetition import repetitive
from siri_train.registry import names as registry
from siri_train.train import train
from siri_train.trainer.alarmed import Alarmed, AlarmHalt
from siri_train.trainer.response_form import response_form


@pytest.fixture(autouse=True)
def always_on() -> Iterator[None]:
    """An alarm that is true of every step, and no change for other tests."""
    before = [(one, dict(one.data)) for one in registry._ALL]

    @alarm("always", cause="step {n}", action="look")
    def always(row: Any, history: Any) -> Raised | None:
        return Raised(row["step"], n=row["step"])

    yield
    for one, data in before:
        one.data = data


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_stops_only_at_the_alarms_that_are_named(tiny: Any) -> None:
    folder = train(tiny("train.steps=2", "monitor.halt_on=[grad-norm-spike]"))
    (row,) = [row for row in rows(folder / "alarms.jsonl") if row["alarm"] == "always"]
    assert (row["step"], row["state"], row["since"], row["age"]) == (0, "raised", 0, 0)
    shutil.rmtree(folder)
    with pytest.raises(AlarmHalt, match="^always: step 0"):
        train(tiny("monitor.halt_on=[grad-norm-spike, always]"))
    assert len(rows(folder / "metrics.jsonl")) == 1


def test_an_alarm_that_is_on_when_a_run_continues_stops_it_too(tiny: Any) -> None:
    folder = train(tiny("train.steps=2"))
    with pytest.raises(AlarmHalt, match="always"):
        train(tiny("train.steps=4", "monitor.halt_on=[always]"))
    of_it = [row for row in rows(folder / "alarms.jsonl") if row["alarm"] == "always"]
    assert [(row["step"], row["state"]) for row in of_it] == [(0, "raised"), (2, "ongoing")]


def test_a_continued_run_writes_the_alarms_of_one_without_a_break(tiny: Any) -> None:
    @alarm("sometimes", cause="{n}", action="look", clear_after=2)
    def sometimes(row: Any, history: Any) -> Raised | None:
        return Raised(row["step"], n=row["step"]) if row["step"] in (0, 2) else None

    @alarm("held", cause="{n} of {count}", action="look", on="evaluation", clear_after=1)
    def held(row: Any, evaluations: Any) -> Raised | None:
        found = Raised(row["step"], n=row["step"], count=len(evaluations))
        return found if row["step"] in (2, 4, 6) else None

    options = ("eval.every=2", "eval.at_start=true", "data.eval.0.size=2")
    folder = train(tiny(*options, "train.steps=8"))
    whole = rows(folder / "alarms.jsonl")
    shutil.rmtree(folder)
    for steps in (2, 4, 6, 8):
        train(tiny(*options, f"train.steps={steps}"))
    own = [
        (row["alarm"], row["step"], row["state"], row["value"])
        for row in whole
        if row["alarm"] in ("sometimes", "held")
    ]
    assert own == [
        ("sometimes", 0, "raised", 0),
        ("held", 1, "raised", 2),
        ("sometimes", 2, "ongoing", 2),
        ("held", 3, "ongoing", 4),
        ("sometimes", 4, "cleared", 2),
        ("held", 5, "ongoing", 6),
        ("held", 7, "cleared", 6),
    ]
    assert rows(folder / "alarms.jsonl") == whole


def test_an_evaluation_may_stop_a_run_and_its_checkpoint_is_good(tiny: Any) -> None:
    @alarm("held", cause="after {n} steps", action="look", on="evaluation")
    def held(row: Any, evaluations: Any) -> Raised | None:
        return Raised(row["step"], n=row["step"]) if row["step"] == 2 else None

    config = tiny("eval.every=1", "checkpoint.every=1", "train.steps=4", "monitor.halt_on=[held]")
    with pytest.raises(AlarmHalt, match="^held: after 2 steps; look$"):
        train(config)
    assert (config.run_dir / "checkpoints" / "step_000002" / "config.json").is_file()
    assert len(rows(config.run_dir / "metrics.jsonl")) == 2
    train(config)  # that evaluation is done, so the run goes on
    assert len(rows(config.run_dir / "metrics.jsonl")) == 4


def test_names_of_alarms_are_checked_before_the_run(tiny: Any) -> None:
    config = tiny("monitor.halt_on=[grad-norm-spyke]")
    with pytest.raises(ConfigError, match=r"monitor\.halt_on: got .*did you mean grad-norm-spike"):
        train(config)
    assert not config.run_dir.exists()
    with pytest.raises(ConfigError, match="takes the name of an alarm"):
        tiny("monitor.halt_on=['no name']")
    with pytest.raises(ConfigError, match="--halt-on: got"):
        require_known(["nan"], "--halt-on")
    alarm("mine", cause="", action="")(lambda row, history: None)
    require_known(["mine", *ALARMS])


def test_thresholds_are_checked(tiny: Any) -> None:
    assert tiny("monitor.alarms.clip_frac=0.5").monitor.alarms.clip_frac == 0.5
    for wrong in ("clip_frac=1.5", "grad_norm_spike=1", "clip_fraq=0.1", "rollout_kl=0"):
        with pytest.raises(ConfigError, match="monitor.alarms."):
            tiny(f"monitor.alarms.{wrong}")


def test_a_threshold_of_the_recipe_reaches_the_checks(tiny: Any) -> None:
    quiet = ("monitor.alarms.rollout_ratio=1.000000001", "monitor.alarms.rollout_kl=1e-20")
    folder = train(tiny("train.steps=1", *quiet))
    assert "sampler-mismatch" in [row["alarm"] for row in rows(folder / "alarms.jsonl")]


@pytest.mark.parametrize("names", [["always"], ["grad-norm-spike", "always"]])
def test_halt_on_of_the_command_line(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(tiny("monitor.halt_on=[repetition]").to_yaml())
    options = [word for name in names for word in ("--halt-on", name)]
    assert main(["train", str(recipe), *options, "train.steps=3"]) == 1
    assert "siri-train train: always: step 0; look" in capsys.readouterr().err
    written = load_config(tiny().run_dir / "config.yaml").monitor
    assert written.halt_on == ["repetition", *names] and not written.halt_on_alarm
    assert main(["train", str(recipe), "--halt-on", "alwais"]) == 1
    assert "did you mean always?" in capsys.readouterr().err


def test_without_an_alarm_nothing_ends() -> None:
    Alarmed().halt()


def plain_repetitive(ids: list[int]) -> bool:
    """The definition, token by token."""
    for period in range(1, 33):
        again = max(32, 3 * period)
        if len(ids) >= again + period and all(
            ids[-place] == ids[-place - period] for place in range(1, again + 1)
        ):
            return True
    return False


def test_loops_are_those_of_the_definition() -> None:
    rng = random.Random(0)
    drawn: list[list[int]] = [[], [5] * 32, [5] * 33]
    for _ in range(600):
        period, length = rng.randint(1, 40), rng.randint(0, 200)
        loop = [rng.randrange(3) for _ in range(period)]
        ids = [rng.randrange(50) for _ in range(rng.randint(0, 50))]
        ids += (loop * (length // period + 1))[:length]
        if rng.random() < 0.3 and ids:
            ids[-rng.randint(1, min(len(ids), 60))] = 99
        drawn.append(ids)
    found = repetitive(drawn).tolist()
    assert found == [plain_repetitive(ids) for ids in drawn]
    assert 100 < sum(found) < 500
    assert found[:3] == [False, False, True]
    assert repetitive([]).shape == (0,)


def batch(texts: list[str], truncated: list[bool], ids: list[list[int]]) -> Any:
    completions = [
        SimpleNamespace(token_ids=one, truncated=cut)
        for one, cut in zip(ids, truncated, strict=True)
    ]
    return SimpleNamespace(seen=[SimpleNamespace(completions=completions, texts=texts)])


def test_form_of_responses() -> None:
    loop, other = [1, 2] * 20, [*range(40)]
    texts = ["a</think>b", "no mark", "cut", "</think>"]
    drawn = batch(texts, [False, False, True, False], [[*loop, 0], other, loop, other])
    assert response_form(drawn, "required") == {
        "repetitive_frac": 0.5,
        "think_mismatch_frac": pytest.approx(1 / 3),
    }
    assert response_form(drawn, "none")["think_mismatch_frac"] == pytest.approx(2 / 3)
    assert response_form(drawn, "optional")["think_mismatch_frac"] == 0
    cut = batch(["x"], [True], [[1]])
    assert response_form(cut, "required") == {"repetitive_frac": 0.0, "think_mismatch_frac": None}


def test_rows_have_the_form(tiny: Any) -> None:
    for row in rows(train(tiny("train.steps=2")) / "metrics.jsonl"):
        assert 0 <= row["repetitive_frac"] <= 1
        assert row["think_mismatch_frac"] is None or 0 <= row["think_mismatch_frac"] <= 1
        assert not math.isnan(row["repetitive_frac"])


def test_defaults_halt_at_nothing() -> None:
    monitor = parse_config({"name": "x"}).monitor
    assert monitor.halt_on == [] and not monitor.halt_on_alarm


def test_a_row_shows_the_alarms_of_its_rollout() -> None:
    """As ``RolloutBatch.alarms`` decides, by what ``step_metrics`` writes."""
    limits, rng = AlarmsConfig(), random.Random(0)
    for _ in range(300):
        answers, mean = rng.randint(1, 5000), rng.uniform(1, 9000)
        unjudged = rng.choice([0, answers // 100, answers // 100 + 1, rng.randint(0, answers)])
        tokens = round(answers * mean)
        row = {"unjudged": unjudged, "tokens": tokens, "response_len_mean": tokens / answers}
        shown = ALARMS["answers-not-judged"].shown
        assert shown is not None and shown(row, limits) == (unjudged > 0.01 * answers)
    for name, key in (
        ("prompts-failed", "groups_failed"),
        ("non-finite-logprobs", "rollout_retries"),
    ):
        shown = ALARMS[name].shown
        assert shown is not None and shown({key: 1}, limits)
        assert not shown({key: 0}, limits) and not shown({}, limits)
