"""The committed ablations: each is a plan that can run, and results are copied."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.workloads import evidence
from siri_train.config.base import ConfigError


@pytest.mark.parametrize("name", evidence.PARTS)
def test_every_part_is_a_plan(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ablate", *evidence.PARTS[name].arguments, "--out", str(tmp_path), "--dry-run"]
    assert evidence.main(arguments) == 0
    assert " runs of " in capsys.readouterr().out


def test_results_are_copied_under_the_parts_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ablate(arguments: list[str]) -> int:
        folder = Path(arguments[arguments.index("--out") + 1])
        folder.mkdir(parents=True)
        (folder / "ablate.md").write_text("table")
        (folder / "ablate.json").write_text("{}")
        assert arguments[-2:] == ["--jobs", "3"]
        return 1

    monkeypatch.setattr(evidence, "main", ablate)
    out = tmp_path / "out"
    assert evidence.make("controls-tokens", tmp_path / "runs", out, 3) == 1
    assert sorted(path.name for path in out.iterdir()) == [
        "evidence_controls_tokens.json", "evidence_controls_tokens.md",
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "ends", "parts"), [(143, SystemExit, 1), (1, ConfigError, 2)])
def test_a_signal_ends_all_parts_and_a_failure_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    status: int, ends: type[BaseException], parts: int,
) -> None:  # fmt: skip
    begun: list[str] = []
    monkeypatch.setattr(evidence, "main", lambda words: begun.append(words[0]) or status)
    given = argparse.Namespace(names=["controls", "rivals"], runs=tmp_path, out=tmp_path, jobs=1)
    with pytest.raises(ends):
        evidence.run(given)
    assert len(begun) == parts


@pytest.mark.parametrize(("first", "status"), [(0, 3), (1, 1)])
def test_what_must_be_there_first_is_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, status: int
) -> None:
    begun: list[str] = []

    def command(words: list[str]) -> int:
        begun.append(words[0])
        return first if words[0] == "sft" else 3

    monkeypatch.setattr(evidence, "main", command)
    assert evidence.make("language-model", tmp_path, tmp_path, 2) == status
    assert begun == ["sft", "ablate"][: 2 - first]
