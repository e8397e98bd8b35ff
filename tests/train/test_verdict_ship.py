"""Which checkpoint to ship: chosen among those on disk, by the selecting set, exportable."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from siri_train.cli import main
from siri_train.config.recipe import parse_config
from siri_train.train import train
from tests.train.conftest import TINY
from tests.train.verdict_runs import found, keep, write_evals, write_metrics

QUESTIONS = 400


def right(count: int) -> np.ndarray:
    return np.arange(QUESTIONS) < count


def make(folder: Path, at: dict[int, tuple[int, int, float]], kept: tuple[int, ...]) -> None:
    """Evaluations: step to right answers of 400 at the full and low budget, and tokens."""
    write_metrics(folder, [20.0] * 48)
    write_evals(
        folder,
        {step: {52: right(full), 20: right(low)} for step, (full, low, _) in at.items()},
        tokens={step: one[2] for step, one in at.items()},
    )
    if kept:
        keep(folder, *kept)


def test_strong_and_cheap_differ(tmp_path: Path) -> None:
    make(tmp_path, {0: (160, 20, 40.0), 12: (340, 300, 18.0), 24: (390, 150, 22.0),
                    36: (345, 260, 19.0), 48: (389, 140, 21.0)}, (12, 24, 36, 48))  # fmt: skip
    verdict, _ = found(tmp_path)
    strong, cheap = verdict.ship
    # 389 of 400 is not told apart from 390, less than a point below, and shorter
    assert (strong.step, cheap.step) == (48, 12) and not verdict.same
    assert "4 evaluated checkpoints" in strong.why and "step 24: 97.5 %" in strong.why
    assert strong.accuracy == 389 / 400 and strong.budget == 52 and cheap.budget == 20
    assert cheap.accuracy == 0.75 and "highest accuracy within 20 tokens" in cheap.why
    assert strong.command == f"siri-train export {shlex.quote(str(tmp_path))} --which 48"
    assert Path(strong.path or "").is_dir()


def test_a_shorter_one_that_is_worse_is_not_taken(tmp_path: Path) -> None:
    make(tmp_path, {12: (330, 300, 10.0), 24: (390, 150, 22.0)}, (12, 24))
    strong = found(tmp_path)[0].ship[0]
    assert strong.step == 24 and "cannot be told apart" not in strong.why


def test_the_others_alike_are_counted(tmp_path: Path) -> None:
    """The best one is never counted among those that cannot be told apart from it."""
    for others in range(4):
        folder = tmp_path / str(others)
        at = {12: (390, 300, 10.0)} | {24 + k: (389, 200, 20.0 + k) for k in range(others)}
        make(folder, at | {47: (200, 100, 30.0)}, tuple(at) + (47,))
        why = found(folder)[0].ship[0].why
        assert ("cannot be told apart" in why) == (others > 0), why
        if others:
            noun = "1 other cannot" if others == 1 else f"{others} others cannot"
            assert noun in why


def test_the_same_checkpoint_is_said_once(tmp_path: Path) -> None:
    make(tmp_path, {12: (390, 300, 10.0), 24: (300, 200, 22.0)}, (12, 24))
    verdict, _ = found(tmp_path)
    assert verdict.same and {one.step for one in verdict.ship} == {12}


def test_only_what_is_on_disk_and_what_is_gone_is_named(tmp_path: Path) -> None:
    make(tmp_path, {12: (395, 300, 10.0), 24: (300, 200, 22.0), 48: (310, 210, 22.0)}, (24, 48))
    verdict, _ = found(tmp_path)
    assert {one.step for one in verdict.ship} <= {24, 48}
    assert "Step 12 was better there (98.8 %) and is not on disk" in verdict.ship[0].why
    nothing = tmp_path / "nothing"
    make(nothing, {12: (395, 300, 10.0), 24: (300, 200, 22.0)}, ())
    strong = found(nothing)[0].ship[0]
    assert strong.step == 12 and strong.path is None and not strong.command
    assert "not on disk any more" in strong.why and "checkpoint.best" in strong.why


def test_a_better_run_beside_it_is_named(tmp_path: Path) -> None:
    make(tmp_path / "siri", {24: (300, 100, 22.0), 48: (310, 110, 22.0)}, (24, 48))
    write_metrics(tmp_path / "constant-20", [20.0] * 48, shape="constant", caps=(20, 20))
    write_evals(tmp_path / "constant-20", {48: {52: right(300), 20: right(290)}})
    strong, cheap = found(tmp_path)[0].ship
    assert "constant-20 (72.5 %, 20.0 tokens)" in cheap.why
    assert "More accurate" not in strong.why


def test_one_budget(tmp_path: Path) -> None:
    write_metrics(tmp_path, [20.0] * 48)
    counts = {12: (385, 12.0), 24: (395, 22.0), 48: (320, 9.0)}
    write_evals(tmp_path, {step: {52: right(one[0])} for step, one in counts.items()},
                tokens={step: one[1] for step, one in counts.items()})  # fmt: skip
    keep(tmp_path, *counts)
    strong, cheap = found(tmp_path)[0].ship
    assert (strong.step, cheap.step) == (24, 12)
    assert "Of 3 evaluated checkpoints, 2 are at most 5 points below the best" in cheap.why


def test_selected_by_the_selecting_set(tmp_path: Path) -> None:
    write_metrics(tmp_path, [20.0] * 48)
    config = (tmp_path / "config.yaml").read_text().replace("select: null", "select: pick")
    (tmp_path / "config.yaml").write_text(config)
    rows = []
    for step, shown, pick in ((24, 0.99, 0.5), (48, 0.6, 0.9)):
        sets = {
            key: {"accuracy": [share], "accuracy_interval": [[share - 0.01, share + 0.01]],
                  "tokens": 20.0}
            for key, share in (("test", shown), ("pick", pick))
        }  # fmt: skip
        rows.append({"step": step, "name": None, "budgets": [32], "sets": sets, "set": "pick"})
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keep(tmp_path, 24, 48)
    strong = found(tmp_path)[0].ship[0]
    assert strong.step == 48 and strong.accuracy == 0.6
    assert "on the set pick" in strong.why and "On test: 60.0 %." in strong.why


def test_no_evaluation_no_checkpoint(tmp_path: Path) -> None:
    write_metrics(tmp_path, [20.0] * 48)
    verdict, _ = found(tmp_path)
    assert verdict.ship == () and "No checkpoint to recommend" in verdict.advice


def test_the_command_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(parse_config(copy.deepcopy(TINY), ["output=runs/it's one", "train.steps=2"]))
    capsys.readouterr()
    assert main(["report", "runs/it's one", "--json"]) == 0
    ship = json.loads(capsys.readouterr().out)["ship"]
    assert ship and all(one["step"] == 2 for one in ship)
    words = shlex.split(ship[0]["command"])
    assert words[0] == "siri-train" and main(words[1:]) == 0
    exported = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert (exported / "model.safetensors").is_file()
    assert main(["report", "runs/it's one"]) == 0  # the page with the verdict
    page = Path("runs/it's one/report.html").read_text(encoding="utf-8")
    assert "Which checkpoint to ship" in page


def test_a_run_that_made_the_model_worse_says_so(tmp_path: Path) -> None:
    make(tmp_path / "worse", {0: (300, 20, 40.0), 24: (200, 150, 22.0)}, (24,))
    strong, cheap = found(tmp_path / "worse")[0].ship
    assert "The model before training is more accurate within 52 tokens: 75.0 %." in strong.why
    assert "before training" not in cheap.why
    make(tmp_path / "none", {0: (300, 20, 40.0), 24: (0, 0, 22.0)}, (24,))
    verdict = found(tmp_path / "none")[0]
    assert not verdict.ship and "right answer" in verdict.advice


@pytest.mark.parametrize("name", ["-r", "a b", "it's `x` $HOME"])
def test_the_command_names_the_folder_in_a_shell(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path(name), {0: (160, 20, 40.0), 24: (390, 150, 22.0)}, (24,))
    words = shlex.split(found(Path(name))[0].ship[0].command)
    assert words[:2] == ["siri-train", "export"] and words[3:] == ["--which", "24"]
    assert Path(words[2]) == Path(name) and words[2][0] != "-"
