"""Damaged logs, configurations, states: a run continues with a notice, or one line refuses."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.checkpoint import save_load, trainer_state
from siri_train.checkpoint.save_load import load_state
from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.monitor.alarms.history import MOST_ROWS
from siri_train.monitor.run_logs import gaps, keep_records, of_evaluation
from siri_train.report import write_report
from siri_train.train import train
from siri_train.trainer import run as run_module
from siri_train.trainer.run import Run
from tests.train.conftest import TINY
from tests.train.test_checkpoint import rows

LOGS = ("metrics.jsonl", "eval.jsonl", "alarms.jsonl")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    return train(parse_config(copy.deepcopy(TINY), [f"output={output}", "train.steps=2"]))


@pytest.fixture
def run(tiny: Any, trained: Path) -> Path:
    return shutil.copytree(trained, tiny().run_dir)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
NO_ROW = (
    st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\n", b"") + b"\xff")
    | JSON.filter(lambda v: not isinstance(v, dict)).map(lambda v: json.dumps(v).encode())
    | JSON.filter(lambda v: type(v) is not int or v < 0).map(
        lambda v: json.dumps({"step": v}).encode()
    )
    | st.sampled_from(
        [b"{}", b"[" * 50_000, b'{"step": 1' + b"0" * 5000 + b"e}", b'{"a": ' * 30_000]
    )
)
ROW = st.integers(0, 9).map(lambda step: json.dumps({"step": step, "é": "名"}, ensure_ascii=False))


@pytest.mark.costly
@given(st.lists(ROW.map(str.encode) | NO_ROW, max_size=8), st.integers(0, 10))
@settings(derandomize=True, max_examples=80, deadline=None)
def test_good_rows_stay_as_they_are_and_damaged_ones_are_kept_beside(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], below: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    path = folder / "alarms.jsonl"
    before = b"".join(line + b"\n" for line in lines)
    path.write_bytes(before)
    good = [line for line in lines if line.startswith(b'{"step": ') and "é".encode() in line]
    kept = [line for line in good if json.loads(line)["step"] < below]
    found, notices = keep_records(path, below)
    assert found == [json.loads(line) for line in kept]
    assert path.read_bytes() == b"".join(line + b"\n" for line in kept)
    damaged = len([line for line in lines if line.strip()]) - len(good)
    aside = folder / "alarms.jsonl.damaged"
    if damaged:
        assert len(notices) == 1 and f" {damaged} damaged line" in notices[0]
        assert "\n" not in notices[0] and aside.read_bytes() == before
    else:
        assert not notices and not aside.exists()
    shutil.rmtree(folder)


def test_half_a_line_at_the_end_is_nothing_to_tell(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 0, "grad_norm": 1.0}\n{"step": 1, "grad_norm": 2.0}'
    for cut in range(31, len(whole)):
        path.write_bytes(whole[:cut])
        assert keep_records(path, below=1) == ([{"step": 0, "grad_norm": 1.0}], [])
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@given(st.sets(st.integers(0, 12)), st.integers(0, 12))
@settings(derandomize=True)
def test_gaps_name_what_is_missing(steps: set[int], below: int) -> None:
    missing = [step for step in range(below) if step not in steps]
    words = gaps(steps, below)
    named: set[int] = set()
    for part in words.removeprefix("steps ").removeprefix("step ").replace(" and ", ", ").split(
        ", "
    ):  # fmt: skip
        if part and part != "others":
            first, _, last = part.partition(" to ")
            named |= set(range(int(first), int(last or first) + 1))
    assert named == set(missing) or ("others" in words and named < set(missing))


def odd_rows(name: str) -> list[bytes]:
    """Lines of every kind that are no row of that file; two have a step, but not the rest."""
    good = {"step": 0, "budgets": [1], "accuracy": [0.5], "accuracy_interval": [[0, 1]],
            "pass_at_k": [1], "tokens": 2.0, "backtrack_per_1k": 0.0, "name": None}  # fmt: skip
    lines = [b"5", b"\xe9\xff", b"[" * 30_000, b'{"step": null}', b'{"step": "1"}', b'{"step": -1}',
             b'{"step": 0.5}', b'{"a": 1}', b'"step"', b"null", b'{"step": true}']  # fmt: skip
    if name == "metrics.jsonl":
        lines += [b'{"step": 0, "grad_norm": "x"}', b'{"step": 0, "grad_norm": [1]}']
    if name == "eval.jsonl":
        assert of_evaluation(good)
        for key in good:
            if key not in ("step", "name"):
                # 400 digits end format(); NaN and infinity were never written for a share.
                shares = key not in ("tokens", "backtrack_per_1k")
                odd = [10**400, [10**400]] + ([[math.nan], [-math.inf]] if shares else [])
                for value in ("x", [], None, ["x"], *odd):
                    lines.append(json.dumps({**good, key: value}).encode())
                rest = {k: v for k, v in good.items() if k != key}
                lines.append(json.dumps(rest).encode())
    return lines


@pytest.mark.draw(1)
@pytest.mark.parametrize("name", LOGS)
def test_a_run_goes_on_over_a_damaged_log(
    run: Path, tiny: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = run / name
    before = path.read_bytes() if path.exists() else b""
    odd = odd_rows(name)
    random.Random(1).shuffle(odd)
    damaged = b"\n".join([*odd, before.rstrip(b"\n"), *odd, b""])
    path.write_bytes(damaged)
    good = rows(run / "metrics.jsonl") if name != "metrics.jsonl" else None
    recipe = run.parent / "recipe.yaml"
    recipe.write_text(tiny("train.steps=3").to_yaml())
    assert main(["train", str(recipe)]) == 0
    out = capsys.readouterr()
    assert f"{2 * len(odd)} damaged lines left out" in out.out and "Traceback" not in out.err
    assert (run / f"{name}.damaged").read_bytes() == damaged
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [0, 1, 2]
    assert [row["step"] for row in rows(run / "eval.jsonl")] == [0, 2, 3]
    assert good is None or rows(run / "metrics.jsonl")[:2] == good


CONFIGS = {
    "no YAML": b"[\n", "no text": b"\xe9\xff", "no mapping": b"- 1\n", "a word": b"seed\n",
    "no date": b"seed: 2024-99-99\n", "nested": b"{a: " * 5000, "a tag": b"!!python/object:os.x {}",
    "empty": b"", "no seed": b"name: x\n", "a seed of text": b"seed: 'x'\n",
    "an odd key": b"? {a: 1}\n: 2\n", "a NUL": b"seed: \x00\n",
    "a bomb": b"\n".join(
        [b"a0: &a0 {x: 1}"] + [b"a%d: &a%d {%s}" % (i, i, b", ".join(
            b"k%d: *a%d" % (k, i - 1) for k in range(9))) for i in range(1, 12)]),
    "a bomb for a seed": b"\n".join(
        [b"a0: &a0 [x]"] + [b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9))
                            for i in range(1, 12)] + [b"seed: *a11"]),
    "itself": b"&a {x: *a}",
}  # fmt: skip


def test_a_damaged_configuration_is_kept_and_told(
    run: Path, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("train.steps=2")
    for number, (kind, content) in enumerate(CONFIGS.items(), start=1):
        (run / "config.yaml").write_bytes(content)
        run_module.compare_with_before(config)
        out = capsys.readouterr().out
        kept = run / ("config.yaml.damaged" + (f"-{number}" if number > 1 else ""))
        assert out.count("\n") == 1 and kept.name in out, (kind, out)
        assert kept.read_bytes() == content
    train(config)
    assert (run / "config.yaml").read_text() == config.to_yaml()


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def damages(state: dict[str, Any], trap: str) -> dict[str, Any]:
    """What ``trainer_state.pt`` may hold: every part missing, of other kinds, odd inside."""
    found: dict[str, Any] = {"a program": Evil(trap), "one inside": {**state, "rng": Evil(trap)}}
    for odd in ([1], "x", 5, None, torch.zeros(2)):
        found[f"a {type(odd).__name__}"] = odd
    for key in ("step", "optimizer", "rng"):
        found[f"no {key}"] = {k: v for k, v in state.items() if k != key}
        for odd in ("x", -1, 1.5, True, [], {}, torch.zeros(3)):
            found[f"{key} {odd!r}"] = {**state, key: odd}
    found["rng None"] = {**state, "rng": None}
    found["another step"] = {**state, "step": state["step"] + 1}
    for key in ("torch", "python", "cuda"):
        for odd in ("x", None, torch.zeros(3), torch.zeros(3, dtype=torch.uint8), [[1], [2], 3]):
            found[f"rng {key} {odd!r}"] = {**state, "rng": {**state["rng"], key: odd}}
    optimizer = state["optimizer"]
    for key in ("state", "param_groups"):
        for odd in ("x", None, [], [{}], {0: {}}, {"a": 1}):
            found[f"optimizer {key} {odd!r}"] = {**state, "optimizer": {**optimizer, key: odd}}
    for key in ("lr", "betas", "eps", "weight_decay", "params"):
        for odd in ("x", None, [], ("x", "y"), {}):
            changed = copy.deepcopy(optimizer)
            changed["param_groups"][0][key] = odd
            found[f"group's {key} {odd!r}"] = {**state, "optimizer": changed}
    for key in ("step", "exp_avg", "exp_avg_sq"):
        for odd in ("x", 1.0, torch.zeros(3, 3, 3), None):
            changed = copy.deepcopy(optimizer)
            changed["state"][0][key] = odd
            found[f"{key} {type(odd).__name__}"] = {**state, "optimizer": changed}
    # A GPU's state says nothing where there is none, and no state is a parameter's beginning.
    fine = ("rng cuda [", "optimizer state {0", "optimizer state {'a'")
    return {k: v for k, v in found.items() if not k.startswith(fine)}


@pytest.mark.costly
def test_odd_states_are_refused_in_one_line_and_nothing_runs(
    run: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints" / "step_000002"
    path, trap = newest / "trainer_state.pt", str(tmp_path / "trap")
    state = torch.load(path, weights_only=True)
    with Run.open(tiny("train.steps=2")) as opened:
        optimizer, model = opened.optimizer, opened.policy.model
    assert load_state(newest, optimizer, model) == 2
    for kind, odd in damages(state, trap).items():
        torch.save(odd, path)
        with pytest.raises(ConfigError) as caught:
            load_state(newest, optimizer, model)
        line = str(caught.value)
        assert "\n" not in line and str(path) in line and "--resume PATH" in line, (kind, line)
    for content in (b"", b"x" * 100, torch.zeros(1).numpy().tobytes(), path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"trainer_state\.pt: cannot be resumed from"):
            trainer_state.read(path)
    assert not Path(trap).exists()

    torch.save(Evil(trap), path)
    index = json.loads((newest / "checkpoint.json").read_text())
    index["files"]["trainer_state.pt"] = save_load.size_and_crc(path)
    (newest / "checkpoint.json").write_text(json.dumps(index))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny("train.steps=3").to_yaml())
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(["train", str(recipe)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "could run any program" in error
    assert not Path(trap).exists()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 50_000, b"\xff", b'{"format": 1}',
    b'{"format": 1, "files": 5}', b'{"format": 1, "files": {"x": 5}}',
    b'{"format": 1, "files": {"x": ["a", 1]}}', b'{"format": 1, "files": {"x": [1, 2, 3]}}',
    b'{"format": 1, "files": {}, "step": "x"}', b'{"format": {}, "files": {}}',
])  # fmt: skip
def test_odd_indices_are_refused(run: Path, tiny: Any, content: bytes) -> None:
    (run / "checkpoints" / "step_000002" / "checkpoint.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"checkpoint\.json|trainer_state\.pt is missing"):
        run_module.resume_from(tiny("train.steps=3"), "auto")


@pytest.mark.costly
def test_a_hole_in_the_metrics_is_told(
    run: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run / "checkpoints" / "step_000001"
    other = ("schedule.cycle=2", "checkpoint.every=0")  # step 1 is siri-low by this schedule
    new = train(tiny("train.steps=2", f"output={tmp_path / 'new'}", *other), resume=str(source))
    assert [row["step"] for row in rows(new / "eval.jsonl")] == [2]
    ends = json.loads((new / "checkpoints" / "manifest.json").read_text())["cycles"]
    assert all((new / end["path"]).is_dir() for end in ends)
    assert "metrics.jsonl is missing, and with it step 0, so" in capsys.readouterr().out
    (run / "metrics.jsonl").unlink()
    train(tiny("train.steps=3"))
    assert "metrics.jsonl is missing, and with it steps 0 to 1, so" in capsys.readouterr().out
    train(tiny("train.steps=4"))  # the message about the missing rows comes again
    assert "holds no rows of steps 0 to 1, so" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"already done 2 steps, train\.steps is 1"):
        train(tiny("train.steps=1", f"output={tmp_path / 'x'}"),
              resume=str(run / "checkpoints" / "step_000002"))  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_rows_of_a_long_run_are_not_kept_in_memory(tiny: Any) -> None:
    with Run.open(tiny("train.steps=2000", "eval.at_start=false")) as opened:
        row = {"truncated_frac": 0.0, "groups_all_zero": 0.0, "grad_norm": 1.0, "cap": 5,
               "response_len_mean": 3.0, "accuracy": 0.5}  # fmt: skip
        for step in range(300):
            opened.record({"step": step, **row, "nested": [row] * 100})
        assert len(opened.folder.rows) == 300
        assert all(set(kept) == {"step", *row} for kept in opened.folder.rows)
        opened.folder.rows *= 20
        opened.record({"step": 300, **row, "grad_norm": 1000.0})  # the alarm sees enough of them
        assert len(opened.folder.rows) == MOST_ROWS < 6000
    folder = tiny().run_dir
    assert [r["alarm"] for r in rows(folder / "alarms.jsonl")] == ["grad-norm-spike"]
    assert len(rows(folder / "metrics.jsonl")) == 301
    kept, _ = keep_records(folder / "metrics.jsonl", below=301, last=50)
    assert [row["step"] for row in kept] == [*range(251, 301)]


@given(st.data())
@settings(derandomize=True, max_examples=40, deadline=None)
def test_a_report_is_written_over_anything(trained: Path, data: st.DataObject) -> None:
    """Values of a run's files replaced by drawn ones, files replaced by bytes, or gone."""
    folder = trained.parent / "report"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("step_*"))
    shutil.copytree(trained / "rollouts", folder / "rollouts", dirs_exist_ok=True)
    names = [*LOGS[:2], "summary.json", "checkpoints/manifest.json", "config.yaml",
             "rollouts/step_000000.jsonl"]  # fmt: skip
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)):
        path = folder / name
        how = data.draw(st.sampled_from(["values", "values", "bytes", "gone", "folder", "json"]))
        text = path.read_text() if path.is_file() else "{}"
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if how == "values":
            changed = []
            for line in text.splitlines() if name.endswith("l") else [text]:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                for part in row if isinstance(row, list) else [row]:
                    if isinstance(part, dict) and part:
                        part[data.draw(st.sampled_from(sorted(part)))] = data.draw(JSON)
                changed.append(json.dumps(row))
            path.write_text("\n".join(changed))
        elif how == "bytes":
            path.write_bytes(data.draw(st.binary(max_size=40)))
        elif how == "json":
            path.write_text("\n".join(json.dumps(v) for v in data.draw(st.lists(JSON, max_size=3))))
        elif how == "folder":
            path.mkdir()
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
