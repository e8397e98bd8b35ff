"""TensorBoard, W&B and Trackio, the real packages without a network, read back from the disk."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siri_train.config.recipe import parse_config
from siri_train.monitor.tracked_values import numbers
from siri_train.train import train
from tests.train.conftest import TINY

pytest.importorskip("tensorboard", reason="the trackers are not installed (make test-peers)")
wandb = pytest.importorskip("wandb")
trackio = pytest.importorskip("trackio")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from trackio.sqlite_storage import SQLiteStorage  # noqa: E402
from wandb.proto import wandb_internal_pb2  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of 3 steps, stopped and resumed after step 2, with all three trackers."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for limit in ("WANDB__SERVICE_WAIT", "WANDB_INIT_TIMEOUT"):  # seconds; 30 and 90
            patch.setenv(limit, "600")
        # Read when trackio is imported, which pytest has done.
        patch.setattr("trackio.sqlite_storage.TRACKIO_DIR", folder / "trackio")
        for steps in (2, 3):
            trackers = ["monitor.tensorboard=true", "monitor.wandb=one", "monitor.trackio=two"]
            overrides = [f"output={folder / 'run'}", f"train.steps={steps}", *trackers]
            train(parse_config(copy.deepcopy(TINY), overrides))
        yield folder


RAISED = {"step": 0, "alarm": "all-truncated", "state": "raised", "since": 0, "age": 0,
          "value": 1.0, "cause": "no response finishes", "action": "raise the cap"}  # fmt: skip
GROUPS = {"wait": {"all": 12.5, "right": 11.0, "wrong": None}}
LENGTHS = {"width": 4, "counts": [1, 0, 3]}


@pytest.fixture(scope="module", autouse=True)
def more(folder: Path) -> None:
    """What this run does not have: an alarm, lengths, token groups, sent by the same trackers."""
    from siri_train.monitor.trackers import Trackers

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        trackers = ["monitor.tensorboard=true", "monitor.wandb=one", "monitor.trackio=two"]
        overrides = [f"output={folder / 'run'}", *trackers]
        opened = Trackers.open(parse_config(copy.deepcopy(TINY), overrides), 3)
        row = {"step": 3, "phase": "expansion", "token_groups": GROUPS}
        opened.log("train", {**row, "response_len_hist": LENGTHS}, 4)
        opened.log_alarms([RAISED], [], 4)
        opened.log_alarms([{**RAISED, "state": "cleared", "age": 1}], [], 5)
        assert len(opened.opened) == 3  # none was switched off
        opened.close()


def expected(folder: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """The caps and the accuracies at the smaller budget by step, from the JSONL files."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]

    caps = [(row["step"] + 1, row["cap"]) for row in rows("metrics.jsonl")]
    accuracies = [(row["step"], row["accuracy"][0]) for row in rows("eval.jsonl")]
    assert [step for step, _ in caps] == [1, 2, 3]
    assert [step for step, _ in accuracies] == [0, 2, 3]
    return caps, accuracies


def test_tensorboard(folder: Path) -> None:
    caps, accuracies = expected(folder)
    events = EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/cap")] == caps
    found = [(e.step, e.value) for e in events.Scalars("eval/accuracy@24")]
    assert dict(found) == pytest.approx(dict(accuracies))
    tags = events.Tags()
    assert {"config/text_summary", "alarms/text_summary"} <= set(tags["tensors"])
    said = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("alarms/text_summary")]
    assert said[0] == "**ALARM all-truncated**: no response finishes; raise the cap"
    assert [e.value for e in events.Scalars("alarms/all-truncated")] == [1.0, 0.0]
    assert {name for name in sent(folder) if name not in tags["scalars"]} == set()
    lengths = events.Histograms("train/response_len_hist")[-1]
    assert (lengths.step, lengths.histogram_value.num) == (4, 4)
    assert list(lengths.histogram_value.bucket_limit) == [4, 8, 12]
    assert list(lengths.histogram_value.bucket) == LENGTHS["counts"]


def sent(folder: Path) -> set[str]:
    """The name of every number in the run's files, and of what was sent besides."""
    names = {"train/token_groups/wait/all", "train/token_groups/wait/right"}
    names |= {f"train/expansion/token_groups/wait/{key}" for key in ("all", "right")}
    names |= {f"alarms/all-truncated{key}" for key in ("", "/value", "/age", "/since")}
    for file, group in (("metrics.jsonl", "train"), ("eval.jsonl", "eval")):
        for line in (folder / "run" / file).read_text().splitlines():
            names |= numbers(group, json.loads(line)).keys()
            names |= {f"{group}/total_tokens", f"{group}/total_seconds"}
    return names


def test_trackio(folder: Path) -> None:
    caps, accuracies = expected(folder)
    (run,) = SQLiteStorage.get_runs("two")  # resumed, not a second one
    logs = SQLiteStorage.get_logs("two", run)
    assert [(r["step"], r["train/cap"]) for r in logs if "train/cap" in r] == caps
    found = [(r["step"], r["eval/accuracy@24"]) for r in logs if "eval/accuracy@24" in r]
    assert dict(found) == pytest.approx(dict(accuracies))
    assert SQLiteStorage.get_run_config("two", run)["rollout"]["group_size"] == 4
    assert sent(folder) <= {name for log in logs for name in log}
    assert [r["alarms/all-truncated"] for r in logs if "alarms/all-truncated" in r] == [1.0, 0.0]
    (lengths,) = [r for r in logs if r["step"] == 4 and "train/response_len_hist" in r]
    assert lengths["train/response_len_hist"]["values"] == LENGTHS["counts"]
    alerts = SQLiteStorage.get_alerts("two", run)
    assert {one["title"] for one in alerts} >= {"ALARM all-truncated"}


def test_wandb(folder: Path) -> None:
    caps, accuracies = expected(folder)
    rows, runs, alerts = [], set(), []
    for file in sorted((folder / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
            elif record.WhichOneof("record_type") == "alert":
                alerts.append((record.alert.title, record.alert.text))
            elif record.WhichOneof("record_type") == "run":
                runs.add((record.run.project, record.run.run_id, record.run.display_name))
    ((project, _, name),) = runs  # both parts are one run
    assert (project, name) == ("one", "tiny")
    assert ("ALARM all-truncated", "step 4: no response finishes; raise the cap") in alerts
    assert [r["alarms/all-truncated"] for r in rows if "alarms/all-truncated" in r] == [1.0, 0.0]
    assert sent(folder) <= {name for row in rows for name in row}
    names = {"train/response_len_hist", "train/response_len_hist/values"}  # a nested key or a value
    (found,) = [r[name] for r in rows if r.get("step") == 4 for name in names & r.keys()][:1]
    assert (found["values"] if isinstance(found, dict) else found) == LENGTHS["counts"]
    assert [(r["step"], r["train/cap"]) for r in rows if "train/cap" in r] == caps
    found = [(r["step"], r["eval/accuracy@24"]) for r in rows if "eval/accuracy@24" in r]
    assert dict(found) == pytest.approx(dict(accuracies))


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of W&B's file: a header of 7 bytes, then LevelDB's log format in 32 KiB blocks."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
