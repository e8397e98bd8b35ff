"""The committed ablations: each is a plan that can run, and results are copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.workloads import evidence


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
