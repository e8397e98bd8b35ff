"""The verdict on odd folders: damaged, old, going on, several runs, nothing at all."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from siri_train.cli import main
from siri_train.report import write_report
from siri_train.report.data import read_run_folder
from siri_train.report.verdict import judge
from siri_train.report.verdict.text import verdict_text
from tests.train.report_page import HOSTILE, check, jsonl, make_demo
from tests.train.verdict_runs import found, keep, write_evals, write_metrics

KEYS = ["state", "length", "accuracy", "entropy", "turns", "truncation", "groups", "mismatch",
        "alarms"]  # fmt: skip


def whole(folder: Path, seed: int = 0, steps: int = 72) -> Path:
    """A run with all its files."""
    rng = np.random.default_rng(seed)
    write_metrics(folder, (20 + rng.standard_normal(steps)).tolist(), rollout_kl=1e-3)
    names = {0: "start", 12: "siri-low", 24: "siri-high", 36: "siri-low", 48: "siri-high"}
    answers = {step: {52: rng.random(80) < 0.6, 20: rng.random(80) < 0.3}
               for step in range(0, steps + 1, 4)}  # fmt: skip
    tokens = {step: 20 + abs(step % 24 - 16) / 4 for step in answers}
    write_evals(folder, answers, names=names, tokens=tokens)
    keep(folder, 24, 36, 48, steps)
    return folder


def test_findings_and_state(tmp_path: Path) -> None:
    verdict, findings = found(whole(tmp_path))
    assert list(findings) == KEYS
    assert (verdict.state, verdict.step, verdict.steps) == ("finished", 72, 72)
    assert findings["state"].title == "Finished: 72 steps"
    low = findings["turns"].figures["turns"]
    assert [(one["end"], one["lag"]) for one in low if one["which"] == "siri-low"] == [
        (12, 4), (36, 4), (60, 4)
    ]  # fmt: skip
    assert "checkpoint.lag_window" in findings["turns"].text


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_run_of_few_steps(steps: int, tmp_path: Path) -> None:
    write_metrics(tmp_path, [20.0] * steps, steps=48)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')  # the run goes on, and this line is being written
    verdict, findings = found(tmp_path)
    assert (verdict.state, verdict.step, verdict.steps) == ("unfinished", steps, 48)
    assert findings["state"].title == f"Not finished: {steps} of 48 steps"
    assert findings["length"].status == findings["entropy"].status == "missing"
    check(write_report(tmp_path))


def test_an_empty_folder_has_no_verdict_on_its_page(tmp_path: Path) -> None:
    verdict, findings = found(tmp_path)
    assert findings["state"].title == "Nothing recorded yet" and not verdict.ship
    page = check(write_report(tmp_path))
    assert not [attrs for _, attrs in page.tags if attrs.get("id") == "verdict"]


def test_any_damage_leaves_a_verdict(tmp_path: Path) -> None:
    """Lines torn, values of the wrong kind, files removed: never an error, never NaN."""
    for seed in range(25):
        rng = random.Random(seed)
        folder = whole(tmp_path / str(seed), seed, 30)
        for name in ("metrics.jsonl", "eval.jsonl", "eval_questions.jsonl", "config.yaml",
                     "checkpoints/manifest.json"):  # fmt: skip
            path = folder / name
            if rng.random() < 0.15:
                path.unlink()
                continue
            if path.suffix != ".jsonl":
                path.write_text(rng.choice(["", "[", "null", '{"cycles": 3}', "a: [1", "3"]))
                continue
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for _ in range(rng.randint(1, 20)):
                row = rng.choice(rows)
                key = rng.choice(list(row))
                row[key] = rng.choice([None, "x", float("nan"), float("inf"), -1, 10**400, [], {},
                                       True, [None, 3], HOSTILE, -0.0, 1e99])  # fmt: skip
            lines = [json.dumps(row) for row in rows]
            lines[rng.randrange(len(lines))] = rng.choice(["", "{", "nul", "[]"])
            path.write_text("\n".join(lines))
        verdict, findings = found(folder)
        assert list(findings) == KEYS
        for one in findings.values():
            assert "could not be judged" not in one.text, (seed, one.text)
            assert not re.search(r"\bnan\b|\binf\b|None", one.text + one.title), (seed, one.text)
        assert verdict_text(verdict)


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    kept = ("step", "cycle", "phase", "cap", "response_len_mean", "entropy", "truncated_frac")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    jsonl(folder / "metrics.jsonl", [{key: row[key] for key in kept} for row in rows])
    (folder / "eval_questions.jsonl").unlink()
    (folder / "config.yaml").unlink()
    (folder / "checkpoints" / "manifest.json").unlink()
    verdict, findings = found(folder)
    assert (verdict.step, verdict.steps, verdict.state) == (72, None, "unfinished")
    assert findings["groups"].status == findings["mismatch"].status == "missing"
    assert findings["accuracy"].figures["comparisons"][0]["paired"] is False
    assert verdict.ship and not verdict.ship[0].command and verdict.ship[0].path
    assert "manifest.json is missing" in verdict.ship[0].why


def test_alarms_old_and_new(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    old = [{"step": step, "alarm": "grad-norm-spike", "cause": "c", "action": "a"}
           for step in (3, 9, 71)]  # fmt: skip
    jsonl(folder / "alarms.jsonl", old)
    one = found(folder)[1]["alarms"]
    assert (one.figures["count"], one.figures["first"]) == (3, 3)
    assert one.figures["ongoing"] == ["grad-norm-spike"] and one.status == "bad"
    new = [{"step": 4, "alarm": "a", "state": "raised", "since": 4, "age": 0},
           {"step": 6, "alarm": "a", "state": "ongoing", "since": 4, "age": 2},
           {"step": 7, "alarm": "b", "state": "raised", "since": 7, "age": 0},
           {"step": 9, "alarm": "a", "state": "cleared", "since": 4, "age": 5},
           {"step": 20, "alarm": "a", "state": "raised", "since": 20, "age": 0},
           {"step": 21, "alarm": "a", "state": "cleared", "since": 20, "age": 1}]  # fmt: skip
    jsonl(folder / "alarms.jsonl", new)
    one = found(folder)[1]["alarms"]
    assert one.figures["names"] == {"a": 2, "b": 1} and one.figures["ongoing"] == ["b"]
    assert (
        one.title == "3 alarms raised, 1 goes on at the end"
        and "The first is a at step 4" in one.text
    )
    (folder / "alarms.jsonl").write_text("")
    assert found(folder)[1]["alarms"].status == "good"


@pytest.mark.parametrize(
    ("late", "before", "after", "status", "words"),
    [
        (0.5, 0.5, 0.5, "good", "stayed in its band"),
        (0.02, 0.3, 0.95, "good", "no collapse"),
        (0.02, 0.9, 0.2, "bad", "collapsed"),
        (3.0, 0.9, 0.2, "bad", "above it"),
        (3.0, 0.5, None, "unclear", "above it"),
    ],
)
def test_entropy(
    late: float, before: float, after: float | None, status: str, words: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    values = np.where(np.arange(72) < 24, 0.5, late) + 0.02 * rng.standard_normal(72)
    write_metrics(tmp_path, [20.0] * 72, entropy=np.abs(values).tolist())
    if after is not None:
        count = np.arange(400)
        write_evals(tmp_path, {0: {52: count < 400 * before}, 72: {52: count < 400 * after}},
                    names={72: "siri-high"})  # fmt: skip
    one = found(tmp_path)[1]["entropy"]
    assert one.status == status and words in one.title, one.title
    if late != 0.5:
        assert 24 <= one.figures["left_at"] <= 26


@pytest.mark.parametrize("seed", range(4))
def test_a_collapse_is_seen_also_where_entropy_fell_far_in_the_first_cycle(
    seed: int, tmp_path: Path
) -> None:
    """Half of what was seen beyond it would be a band down to 0, which nothing leaves."""
    rng = np.random.default_rng(seed)
    top, end = rng.uniform(0.8, 2.0), rng.uniform(0.15, 0.3)
    values = np.concatenate([np.linspace(top, end, 24), np.geomspace(end, 0.01, 48)])
    write_metrics(tmp_path, [20.0] * 72, entropy=values.tolist())
    count = np.arange(400)
    write_evals(tmp_path, {0: {52: count < 200}, 48: {52: count < 200}, 72: {52: count < 60}},
                names={48: "siri-high"})  # fmt: skip
    one = found(tmp_path)[1]["entropy"]
    assert one.figures["band"][0] > 0 and one.figures["left_to"] == "below"
    assert one.status == "bad" and "collapsed" in one.title


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_much_truncation_is_not_called_good(share: float, tmp_path: Path) -> None:
    write_metrics(tmp_path, [20.0] * 48, truncated_frac=share)
    assert found(tmp_path)[1]["truncation"].status == ("good" if share < 0.5 else "unclear")


def test_noise_seldom_leaves_the_band(tmp_path: Path) -> None:
    left = runs = 0
    for seed in range(12):
        for memory in (0.0, 0.5, 0.8):
            rng = np.random.default_rng(seed)
            values, now = [], 0.0
            for _ in range(72):
                now = memory * now + (1 - memory**2) ** 0.5 * rng.standard_normal()
                values.append(0.5 + 0.05 * now)
            write_metrics(tmp_path, [20.0] * 72, entropy=values)
            left += found(tmp_path)[1]["entropy"].figures["left_at"] is not None
            runs += 1
    assert left <= 0.1 * runs


def test_odd_health_is_said(tmp_path: Path) -> None:
    write_metrics(tmp_path, [20.0] * 48, truncated_frac=0.97, groups_all_zero=0.96,
                  groups_all_one=0.0, rollout_kl=0.2, rollout_ratio_max=1.5)  # fmt: skip
    findings = found(tmp_path)[1]
    assert [findings[key].status for key in ("truncation", "groups", "mismatch")] == ["bad"] * 3
    assert "too hard" in findings["groups"].text and "0.2 nats" in findings["mismatch"].text


def test_several_runs_and_one_inside_another(tmp_path: Path) -> None:
    make_demo(tmp_path / "demo")
    whole(tmp_path / "demo" / "controls" / "deep")
    verdict, _ = found(tmp_path / "demo")
    assert verdict.run == "SIRI"
    assert set(verdict.others) == {"constant (constant cap 32)", "deep"}
    outer = whole(tmp_path / "siri")
    whole(outer / "siri")
    verdict, _ = found(outer)
    assert verdict.run == "SIRI (the folder itself)" and verdict.others == ("siri",)


def test_the_folder_of_an_ablation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arm in ("siri", "constant-max"):
        for seed in (0, 1):
            place = tmp_path / arm / "m" / f"seed-{seed}"
            write_metrics(place, [20.0] * 48, shape="cosine" if arm == "siri" else "constant")
            rng = np.random.default_rng(seed)
            write_evals(place, {48: {52: rng.random(60) < 0.5}}, names={48: "siri-high"})
    verdict, findings = found(tmp_path)
    assert verdict.run == "siri/m (2 seeds)"
    assert verdict.others == ("constant-max/m (constant cap 52, 2 seeds)",)
    (one,) = findings["accuracy"].figures["comparisons"]
    assert one["paired"] and one["seeds"] == [2, 2]
    assert main(["report", str(tmp_path), "--text"]) == 0
    assert "siri/m (2 seeds): finished, 48 of 48 steps" in capsys.readouterr().out


def test_text_for_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole(tmp_path / "run")
    assert main(["report", str(folder), "--text"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and not (folder / "report.html").exists()
    for line in out.splitlines():
        assert len(line) <= 80 or line.strip().startswith(("siri-train export", "path:")), line
    for width in (40, 80, 120):
        text = verdict_text(judge(read_run_folder(folder)), width)
        words = " ".join(text.split())
        assert " ".join(out.split()) == words or width != 80
        assert all(len(line) <= width or "/" in line for line in text.splitlines())
        assert not any(line.lstrip().startswith("%") for line in text.splitlines())
    coloured = verdict_text(judge(read_run_folder(folder)), colour=True)
    assert re.sub(r"\x1b\[\d+m", "", coloured) == out.rstrip("\n")


def test_json_is_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole(tmp_path / "run")
    assert main(["report", str(folder), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row == json.loads(json.dumps(judge(read_run_folder(folder)).to_json()))
    assert row["schema"] == 2 and [one["key"] for one in row["findings"]] == KEYS
    assert {one["for"] for one in row["ship"]} == {"strong", "cheap"}


@pytest.mark.parametrize("flag", ["--text", "--json"])
def test_errors_are_one_line(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, words in ((tmp_path / "no", "is not a folder"), (tmp_path, "holds no run")):
        assert main(["report", str(folder), flag]) == 1
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1


def test_the_page_says_what_the_verdict_says(tmp_path: Path) -> None:
    verdict, findings = found(whole(tmp_path))
    page = check(write_report(tmp_path))
    text = " ".join(page.text.split())
    for one in findings.values():
        assert one.title in text and " ".join(one.text.split()) in text
    assert verdict.ship[0].command in text
    order = [attrs["data-finding"] for _, attrs in page.tags if "data-finding" in attrs]
    assert order == KEYS
