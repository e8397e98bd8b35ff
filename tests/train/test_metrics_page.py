"""docs/metrics.md and docs/alarms.md: every key and every alarm that the code writes, no other."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Any

import pytest

from siri_train.commands.sft import supervise
from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor import alarms
from siri_train.rollout.batch import RolloutBatch
from siri_train.train import train
from siri_train.trainer import sas
from siri_train.trainer.metrics import METRIC_KEYS
from siri_train.trainer.phase_switches import MASKED, PENALTY

DOCS = Path(__file__).parents[2] / "docs"
METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")
SWITCHES = (MASKED, PENALTY)
ALARMS = (DOCS / "alarms.md").read_text(encoding="utf-8")


def keys_of(section: str, table: int = 0) -> list[str]:
    """The first column of a table below a heading of docs/metrics.md, in order."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", METRICS, re.M | re.S)
    return re.findall(r"^\| `(.+?)` \|", re.split(r"^\|---.*$", text, flags=re.M)[table + 1], re.M)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that writes every file and passes every kind of named checkpoint."""
    from siri_train.config.recipe import parse_config
    from tests.train.conftest import TINY

    folder = tmp_path_factory.mktemp("metrics-page") / "run"
    tiny = ["model.scratch={layers: 1, hidden_size: 16, intermediate_size: 32, heads: 2}"]
    tiny += ["sft={steps: 3}", "train.steps=5", "checkpoint.lag=1", "checkpoint.best=accuracy"]
    tiny += ["checkpoint.lag_window=1", "eval.every=1"]
    config = parse_config(TINY, [f"output={folder}", *tiny])
    supervise(config)
    return train(config)


def test_metrics_page_has_the_keys_of_a_row_in_their_order(run: Path) -> None:
    assert keys_of("metrics.jsonl") == list(METRIC_KEYS)
    for row in rows(run / "metrics.jsonl"):
        assert list(row) == list(METRIC_KEYS)


def test_page_has_the_keys_that_only_some_losses_write() -> None:
    from siri_train.config.loss import LossConfig
    from siri_train.trainer.update import _extra_metrics

    assert _extra_metrics(LossConfig()) == []
    every = LossConfig(kl_coef=0.1, off_policy_threshold=1.0)
    assert keys_of("metrics.jsonl", 1) == [*_extra_metrics(every), sas.METRIC, *SWITCHES]


def test_null_is_where_the_page_says_so(run: Path) -> None:
    """A key whose last column is empty has a value in every row."""
    table = re.findall(r"^\| `(\w+)` \|(?:[^|]|\\\|)*\|(?:[^|]|\\\|)*\|(.*)\|$", METRICS, re.M)
    never = {key for key, null in table if not null.strip()} & set(METRIC_KEYS)
    assert len(never) > 20
    for row in rows(run / "metrics.jsonl"):
        assert {key for key, value in row.items() if value is None} <= set(METRIC_KEYS) - never


def test_page_has_the_keys_of_every_other_file(run: Path) -> None:
    for row in rows(run / "eval.jsonl"):
        assert set(row) == set(keys_of("eval.jsonl"))
    for row in rows(run / "eval_questions.jsonl"):
        assert set(row) == set(keys_of("eval_questions.jsonl"))
    for row in rows(run / "sft.jsonl"):
        assert set(row) == set(keys_of("sft.jsonl"))
    for path in (run / "rollouts").iterdir():
        for row in rows(path):
            assert set(row) == set(keys_of("rollouts"))
    for entry in json.loads((run / "summary.json").read_text()):
        assert set(entry) == set(keys_of("summary.json"))
    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    assert set(manifest) == set(keys_of("manifest.json"))
    of_end = keys_of("manifest.json", table=1)
    assert manifest["cycles"]
    for end in manifest["cycles"]:
        assert set(end) == set(of_end)
    for name in set(manifest) - {"cycles"}:
        assert set(manifest[name]) == set(of_end) - {"which", "cycle"}


def test_page_has_the_keys_of_named_sets(tiny: Any) -> None:
    sources = "[{kind: embedded, size: 8, seed: 1, name: test}, {kind: embedded, size: 8, seed: 2, "
    sources += "name: validation}]"
    config = tiny(f"data.eval={sources}", "eval.select=validation", "train.steps=4")
    folder = train(config)
    keys, more = keys_of("eval.jsonl"), keys_of("eval.jsonl", table=1)
    of_set = keys[keys.index("accuracy") :]
    for row in rows(folder / "eval.jsonl"):
        assert set(row) == {*keys, *more} and row["set"] == "validation"
        assert {key: row[key] for key in of_set} == row["sets"]["validation"]
        assert list(row["sets"]) == ["test", "validation"]
        assert all(list(figures) == of_set for figures in row["sets"].values())
    entries = json.loads((folder / "summary.json").read_text())
    assert {entry["name"] for entry in entries} >= {"start", "siri-low"}
    of_run = {"name", "step", "path", "trained_tokens", "train_seconds"}
    of_entry = set(keys_of("summary.json")) - of_run
    for entry in entries:
        assert set(entry) == {*keys_of("summary.json"), *keys_of("summary.json", table=1)}
        assert all(set(figures) == of_entry for figures in entry["sets"].values())
        assert {key: entry[key] for key in of_entry} == entry["sets"]["test"]


NEW = {
    "response_len_hist", "token_groups", "ranks", "tokens_right", "tokens_wrong",
    "repetitive_frac", "think_mismatch_frac",
}  # fmt: skip


def healthy() -> dict[str, list[str]]:
    """Key of ``metrics.jsonl`` to the cells behind it, of the table of healthy ranges."""
    (text,) = re.findall(
        r"^## What healthy looks like\n(.*?)^The evaluations:", METRICS, re.M | re.S
    )
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.M)
    return {key: [cell.strip() for cell in rest.split("|")] for key, rest in found}


def test_page_says_of_every_key_what_healthy_looks_like() -> None:
    keys = [*METRIC_KEYS, *keys_of("metrics.jsonl", 1)]
    table = healthy()
    assert set(keys) <= set(table) and set(table) - set(keys) <= NEW
    assert [key for key in table if key in keys] == keys  # the order of the record
    assert all(len(cells) == 4 and cells[0] for cells in table.values())
    of_eval = set(keys_of("eval.jsonl")) - {"step", "name", "budgets"}
    listed = set(keys_of("What healthy looks like", table=1))
    assert of_eval <= listed and listed - of_eval <= NEW


def test_page_says_what_the_console_and_the_charts_show() -> None:
    from siri_train.monitor.figures import KEYS
    from siri_train.report.charts import SPECS

    table = healthy()
    of_console = {cells[2]: key for key, cells in table.items() if cells[2]}
    named = {name: key for name, key in of_console.items() if name not in ("step", "phase")}
    assert named == KEYS
    for spec in SPECS:
        for key, _ in spec.metrics:
            assert table[key][3], f"{key} has a chart: write yes into its last column"


def test_alarm_page_has_every_alarm_and_no_other() -> None:
    names = re.findall(r"^\| `([\w-]+)` \|", ALARMS, re.M)
    assert len(names) == len(set(names)) > 5
    assert set(names) == set(alarms.ALARMS)  # with those of rollout/batch.py


def test_every_alarm_says_cause_and_action_in_one_line() -> None:
    for name, entry in alarms.ALARMS.items():
        details = {field: 1.5 for _, field, _, _ in Formatter().parse(entry.cause) if field}
        row = entry.entry(alarms.Raised(3, **details))
        assert row["alarm"] == name == entry.name and row["value"] == 3
        assert row["cause"] and row["action"]
        assert "\n" not in row["cause"] + row["action"]


def threshold(name: str) -> str:
    """The column "raised when" of an alarm."""
    (text,) = re.findall(rf"^\| `{name}` \| ((?:[^|]|\\\|)*) \|", ALARMS, re.M)
    return text


def test_the_page_has_every_threshold_with_its_default() -> None:
    read = {key for entry in alarms.ALARMS.values() for key in entry.limits}
    assert read == set(AlarmsConfig.model_fields)
    for key in sorted(read):  # those that several alarms share stand in one row, or below the table
        default = getattr(AlarmsConfig(), key)
        said = [f"`{key}` ({one}" for one in (f"{default:g}", f"{default:.0%}".replace("%", " %"))]
        assert any(one in ALARMS for one in said), key


QUIET: dict[str, Any] = {
    "step": 30, "cap": 8, "truncated_frac": 0.5, "groups_all_zero": 0.5, "grad_norm": 1.0,
    "reward_mean": 0.5, "skipped_updates": 0, "rollout_kl": 0.0, "rollout_ratio_max": 1.0,
}  # fmt: skip
HISTORY = [QUIET] * 20


def raised(history: list[dict[str, Any]], **changes: Any) -> list[str]:
    found = alarms.check({**QUIET, **changes}, history)
    of_state = {"state", "since", "age"}
    assert all(set(alarm) == set(keys_of("alarms.jsonl")) - of_state for alarm in found)
    return [alarm["alarm"] for alarm in found]


@pytest.mark.parametrize(
    ("name", "said", "below", "above"),
    [
        ("mostly-truncated", "is 1", {"truncated_frac": 0.999}, {"truncated_frac": 1.0}),
        ("all-zero-rewards", "is 1", {"groups_all_zero": 0.999}, {"groups_all_zero": 1.0}),
        ("non-finite-gradient", "above 0", {"skipped_updates": 0}, {"skipped_updates": 1}),
        ("sampler-mismatch", "(0.05)", {"rollout_kl": 0.05}, {"rollout_kl": 0.0501}),
        ("sampler-mismatch", "\\|`rollout_kl`\\|", {"rollout_kl": -0.05}, {"rollout_kl": -0.0501}),
        (
            "sampler-mismatch",
            "(10),",
            {"rollout_ratio_max": 10.0},
            {"rollout_ratio_max": 10.01},
        ),
        ("sampler-mismatch", "NaN", {}, {"rollout_kl": math.nan}),
        (
            "grad-norm-spike",
            "`grad_norm_spike` (20) times",
            {"grad_norm": 20.0},
            {"grad_norm": 20.01},
        ),
    ],
)
def test_thresholds_are_those_of_the_page(
    name: str, said: str, below: dict[str, Any], above: dict[str, Any]
) -> None:
    assert raised(HISTORY, **below) == []
    assert raised(HISTORY, **above) == [name]
    assert said in threshold(name)
    assert all(key in threshold(name) for key in above)
    if name == "grad-norm-spike":
        assert raised(HISTORY[1:], **above) == []
        assert "last 50" in threshold(name) and "at least 20" in threshold(name)


def test_alarms_of_a_batch_are_those_of_the_page() -> None:
    def batch(**options: Any) -> list[str]:
        found = RolloutBatch(0, 8, **{"wanted": 1, **options}).alarms()
        keys = set(keys_of("alarms.jsonl")) - {"step", "state", "since", "age"}
        assert all(set(alarm) == keys for alarm in found)
        return [alarm["alarm"] for alarm in found]

    def group(rewards: list[float]) -> Any:
        grades = [
            SimpleNamespace(reward=r, right=None if math.isnan(r) else r == 1) for r in rewards
        ]
        return SimpleNamespace(position=0, grades=grades, informative=len(set(rewards)) > 1)

    right = group([0.0] + [1.0] * 99)
    assert batch(groups=[right], dynamic=True) == []
    assert batch(groups=[right], failures=[("q", "why")]) == ["prompts-failed"]
    assert batch(groups=[right], retries=1) == ["non-finite-logprobs"]
    assert batch(groups=[group([math.nan] + [1.0] * 99)]) == []
    assert batch(groups=[group([math.nan] * 2 + [1.0] * 98)]) == ["answers-not-judged"]
    assert f"{AlarmsConfig().unjudged:.0%}".replace("%", " %") in threshold("answers-not-judged")
    assert batch(groups=[group([1.0, 1.0])], dynamic=True) == ["few-informative-groups"]
    assert batch(groups=[group([1.0, 1.0])]) == []
