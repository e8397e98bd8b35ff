"""What ``siri-train`` says where only the kernels are installed."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.commands.requirements import missing_packages

LINES = [
    "torch>=2.11",
    'triton>=3.6; platform_system == "Linux"',
    'Absent_One>=5.16; extra == "train"',
    'absent-two[more]>=1; extra == "train"',
    "torch>=2.11; extra == 'train'",
    'absent-on-linux>=0.8.5; (platform_system == "Linux") and extra == "train"',
    'another>=1; extra == "trl"',
    'mentioned; extra == "trains"',
]


@pytest.mark.parametrize(
    "command", [["train", "demo"], ["doctor"], ["export", "runs/x", "--which", "low"]]
)
def test_what_is_missing_is_one_line_before_any_work(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: LINES)
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == (
        "siri-train: the trainer needs packages that are not installed: Absent_One, absent-two; "
        "pip install 'siri-kernels[train]' brings them\n"
    )


def test_help_needs_none_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: LINES)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0 and "recipe" in capsys.readouterr().out


def test_a_tree_that_is_not_installed_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert missing_packages() == []
