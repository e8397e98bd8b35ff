"""The report of a GPU run: from a recorded rehearsal, and from records made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.gpu import predictions, report, verdicts
from bench.gpu.predictions import PREDICTIONS, Prediction
from bench.gpu.records import Records, read
from bench.gpu.report import result_of, write

REHEARSAL = Path(__file__).parent / "gpu_rehearsal"  # of `scripts/gpu_run.sh first --rehearse`


def recorded(folder: Path, gpu: str = "NVIDIA H100 80GB HBM3") -> Records:
    """A first call that has begun."""
    file = Records(folder / "first.jsonl", {"call": "first"})
    facts = {"gpu": gpu, "driver": "580", "cores": 16, "python": "3.12.3", "commit": "abc",
             "versions": {"torch": "2.11.0", "trl": "not installed"}, "source": "def"}  # fmt: skip
    file.write("environment", **facts)
    return file


def number(file: Records, key: str, value: float) -> None:
    file.write("number", key=key, value=value, unit="ratio", part=key.partition(".")[0])


def test_a_recorded_rehearsal_becomes_tables(tmp_path, capsys):
    assert command.main(["report", str(REHEARSAL), "--out", str(tmp_path)]) == 0
    assert "predictions: " in capsys.readouterr().out
    text = (tmp_path / "gpu.md").read_text()
    for title in ("Predictions", "Parts", "Rates", "Values against float64", "Head", "Tests",
                  "Losses and advantages", "Training step", "Peers"):  # fmt: skip
        assert f"## {title}\n" in text
    assert "None of these figures is a result" in text
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["rehearsal"] and result["calls"][0]["versions"]["torch"]
    assert {p["outcome"] for p in result["predictions"]} <= {"hit", "missed", "not measured"}
    assert len(result["predictions"]) == len(PREDICTIONS)


def test_a_rehearsal_never_stands_among_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "first.jsonl").write_text((REHEARSAL / "first.jsonl").read_text())
    command.main(["report", str(folder)])
    assert (folder / "gpu.md").exists() and not (tmp_path / "results").exists()
    with pytest.raises(SystemExit, match="no records"):
        command.main(["report", str(tmp_path / "empty")])


def test_results_go_to_the_device_s_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    recorded(tmp_path / "out")
    command.main(["report", str(tmp_path / "out")])
    assert (tmp_path / "results" / "nvidia-h100-80gb-hbm3" / "gpu.json").exists()


def test_hit_missed_and_not_measured(tmp_path):
    file = recorded(tmp_path)
    number(file, "a.x", 1.05)
    number(file, "a.y", 1.5)
    number(file, "a.z", 0.5)
    file.write("end", part="b", status="killed", why="over its limit of 9 s")
    file.write("end", part="c", status="missing", why="no fused kernel in siri_kernels yet")
    file.write("end", part="head", status="done", why="")
    given = [
        Prediction("inside", "a.x", 1.0, 1.1),
        Prediction("above", "a.y", 1.0, 1.2),
        Prediction("below", "a.z", 1.0, 1.2),
        Prediction("killed", "b.x", 1.0, 1.2),
        Prediction("missing", "c.x", 1.0, 1.2),
        Prediction("done without", "worst.x", 1.0, 1.2),
        Prediction("never ran", "d.x", 1.0, 1.2),
        Prediction("other card", "a.x", 1.0, 1.2, device="H200"),
        Prediction("past", "", 1.0, 1.2, why="rewritten"),
        Prediction("zero", "a.y", 0.0, 0.0),
    ]
    found = verdicts.judged(list(read(tmp_path)), given)
    got = {v.prediction.name: (v.outcome, v.text) for v in found}
    none = verdicts.NONE
    assert got == {
        "inside": ("hit", ""),
        "above": ("missed", "25% above the range"),
        "below": ("missed", "50% below the range"),
        "killed": (none, "part b: killed, over its limit of 9 s"),
        "missing": (none, "part c: missing, no fused kernel in siri_kernels yet"),
        "done without": (none, "part head is done without this figure"),
        "never ran": (none, "part d did not run"),
        "other card": (none, "for an H200"),
        "past": (none, "rewritten"),
        "zero": ("missed", "1.5 above the range"),
    }


def test_the_second_call_counts_and_the_first_is_kept(tmp_path):
    number(recorded(tmp_path / "first"), "head.both/product_bf16.1536", 2.0)
    second = Records(tmp_path / "second" / "second.jsonl", {"call": "second"})
    number(second, "head.both/product_bf16.1536", 1.6)
    records = list(read(tmp_path / "first", tmp_path / "second"))
    figure = result_of(records)["figures"]["head.both/product_bf16.1536"]
    assert figure["value"] == 1.6 and figure["values"] == [2.0, 1.6]
    (verdict,) = [v for v in verdicts.judged(records)
                  if v.prediction.key == "head.both/product_bf16.1536"
                  and v.prediction.device == "H100"
                  and v.prediction.source.endswith("corrected")]  # fmt: skip
    assert verdict.outcome == "hit" and verdict.values == (2.0, 1.6)


def test_losses_stand_beside_wins_and_what_is_wrong_is_named(tmp_path):
    file = recorded(tmp_path)
    times = {"seconds_cold": {"median": 2e-4}}, {"seconds_cold": {"median": 1e-4}}
    row = {
        "bytes": 1e6, "missing": {"TRL": "not installed"}, "yardsticks": {"copy": times[1]},
        "contenders": {"ours": times[0], "eager": times[1], "verl": {"wrong": "far off"}},
    }  # fmt: skip
    file.write("row", part="losses", name="loss: 1024 tokens", clock="cold", result=row)
    file.write("check", part="values", name="9000 lists", ok=False, wrong=["d_hidden"])
    file.write("failed", part="head", step="head 3584", why="OutOfMemoryError: no memory")
    file.write("left_out", part="head", step="worst case", why="3 s were left")
    file.write("test_failed", part="tests", test="a.py::b", message="boom")
    file.write("tests", part="tests", passed=3, failed=1, skipped=0, exit=1)
    text = write(list(read(tmp_path)), tmp_path / "out")
    assert "| eager | 100 | 0.5 |" in text and "| ours | 200 | 1 |" in text
    for piece in ("far off", "d_hidden", "no memory", "left out: 3 s were left", "boom"):
        assert piece in text


def test_predictions_are_named_once_and_measured_by_keys_the_parts_write():
    names = [(p.name, p.device, p.source) for p in PREDICTIONS]
    assert len(names) == len(set(names))
    assert all(p.low <= p.high and p.source and bool(p.key) != bool(p.why) for p in PREDICTIONS)
    # The same keys at the sizes of a rehearsal, the shape being their last part.
    written = {r["key"].rpartition(".")[0] for r in read(REHEARSAL) if r["what"] == "number"}
    absent = {p.key for p in PREDICTIONS if p.key and p.key.rpartition(".")[0] not in written}
    only_on_a_gpu = ("rates.addmm_over", "rates.read_share", "rates.addmm_fp32", "head.fold_ms",
                     "fused.", "repeats.", "screen.", "values.")  # fmt: skip
    assert not {key for key in absent if not key.startswith(only_on_a_gpu)}
    assert predictions.about(2.0) == (1.9, 2.1)
