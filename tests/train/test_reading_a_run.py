"""docs/reading-a-run.md: every answer is that of the committed run, and its figures its logs'."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.train.reading_a_run import ARCHIVE, BLOCK, PAGE, answers, filled, rows, unpacked


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    with unpacked(tmp_path_factory.mktemp("demo")) as run:
        yield run.resolve(), answers(run)


def test_every_answer_is_that_of_the_run(demo) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert {match[2] for match in BLOCK.finditer(page)} == set(demo[1])
    assert page == filled(page, demo[1]), "run python -m tests.train.reading_a_run"


def test_ten_questions() -> None:
    numbers = re.findall(r"^### (\d+)\. .*\?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]


def test_the_figures_are_in_the_logs(demo) -> None:
    """Read from the files again, without the verdict's own code."""
    run, found = demo
    evals = {row["step"]: row for row in rows(run / "siri" / "eval.jsonl")}
    for step, share in re.findall(r"\(step (\d+)\), within 52 tokens: ([\d.]+) %",
                                  found["accuracy"]):  # fmt: skip
        assert f"{100 * evals[int(step)]['sets']['test']['accuracy'][-1]:.1f}" == share
    start = evals[0]["sets"]["test"]["accuracy"][-1]
    last = max(evals)
    rise = 100 * (evals[last]["sets"]["test"]["accuracy"][-1] - start)
    assert f"Against the start: rose, {rise:+.1f} points" in found["accuracy"]
    constant = {row["step"]: row for row in rows(run / "constant" / "eval.jsonl")}
    apart = 100 * (evals[last]["sets"]["test"]["accuracy"][0]
                   - constant[last]["sets"]["test"]["accuracy"][0])  # fmt: skip
    assert f"| {apart:+.1f} |".replace("-", "−") in found["swing"]
    step, length = re.findall(r"shortest at step (\d+) \(\d+ steps later\): ([\d.]+) tokens",
                              found["turns"])[0]  # fmt: skip
    assert f"{evals[int(step)]['tokens']:.1f}" == length  # at the top: the set that selects
    named = [int(one) for one in re.findall(r"--which (\d+)", found["ship"])]
    kept = {int(path.name[5:]) for path in (run / "siri" / "checkpoints").glob("step_*")}
    assert len(named) == 2 and set(named) <= kept
    metrics = rows(run / "siri" / "metrics.jsonl")
    tokens = [int(one.replace(",", "")) for one in re.findall(r"\| ([\d,]{6,}) \|", found["cost"])]
    assert sum(tokens) == sum(row["tokens"] + row["tokens_discarded"] for row in metrics)
    assert f"{metrics[60]['cap']} tokens" in found["responses"]


def test_the_archive_is_small_and_holds_no_weights(demo) -> None:
    assert ARCHIVE.stat().st_size < 400_000
    names = [path.name for path in demo[0].rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".safetensors", ".pt"))]
    config = (demo[0] / "siri" / "config.yaml").read_text(encoding="utf-8")
    assert "runs/demo" in config
    for path in demo[0].rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"/(work|home|root|tmp)/", text), path
    manifest = json.loads((demo[0] / "siri" / "checkpoints" / "manifest.json").read_text())
    assert manifest["siri-low"]
    assert Path(PAGE.parent / "demo-run.tar.xz") == ARCHIVE
