"""Two results side by side."""

from __future__ import annotations

import json

import pytest

from bench.__main__ import main
from bench.reports import compare

A = {"device": "x", "rows": {"one": {"ms": [1.0, 4.0], "ok": True, "all": [9, 8]}, "gone": 3}}
B = {"device": "y", "rows": {"one": {"ms": [2.0, 4.0], "ok": False}, "new": 0.5}}


def test_ratios_settings_and_what_is_missing():
    text = compare.compared(A, B, 1.0)
    assert "device: x | y" in text
    assert "| rows / one / ms [0] | 1 | 2 | 2.000 |" in text
    assert "ms [1]" not in text and "ok" not in text and "all" not in text
    assert "Only in A: rows / gone" in text and "Only in B: rows / new" in text


def test_small_changes_can_be_left_out():
    near = {"rows": {"a": 100, "b": 1.0, "c": 0.0}}
    far = {"rows": {"a": 101, "b": 0.5, "c": 1.0}}
    text = compare.compared(near, far, 1.5)
    assert "rows / a" not in text and "| rows / b | 1 | 0.5 | 0.500 |" in text
    assert "| rows / c | 0 | 1 |  |" in text


def test_files(tmp_path, capsys):
    for name, value in (("a", A), ("b", B)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "2.000" in capsys.readouterr().out
    (tmp_path / "b.json").write_text("[1]")
    for bad in ("b.json", "none.json"):
        with pytest.raises(SystemExit, match=f"{bad} is no result of the bench"):
            main(["compare", str(tmp_path / "a.json"), str(tmp_path / bad)])
