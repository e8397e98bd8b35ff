"""Makes tables of a GPU run's records and compares them with the predictions.

Folders are those of the first and, if there was one, of the second call, in this order. Writes
``gpu.json`` and ``gpu.md`` to ``bench/results/<device>/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu import report_tables
from bench.gpu.records import Record, read
from bench.gpu.verdicts import gpu_name, judged, numbers
from bench.results_io import RESULTS, save, slug


def result_of(records: Sequence[Record]) -> dict[str, Any]:
    """Everything that the tables show, as one object.

    Where both calls measured a figure, all of its values are kept; the last one counts.
    """
    calls = [r for r in records if r["what"] == "environment"]
    ends = [r for r in records if r["what"] == "end"]
    return {
        "device": gpu_name(records) or "no GPU",
        "rehearsal": any(r.get("rehearsal") for r in calls),
        "calls": calls,
        "parts": {r["part"]: _without(r) for r in ends},
        "all_parts": [_without(r) for r in ends],
        "figures": {
            key: {"value": found[-1]["value"], "unit": found[-1].get("unit", ""),
                  "values": [r["value"] for r in found],
                  **{k: v for k, v in found[-1].items() if k in ("p20", "p80", "rounds")}}
            for key, found in numbers(records).items()
        },
        "predictions": [
            {"name": v.prediction.name, "key": v.prediction.key, "low": v.prediction.low,
             "high": v.prediction.high, "source": v.prediction.source,
             "device": v.prediction.device, "outcome": v.outcome, "text": v.text,
             "values": list(v.values)}
            for v in judged(records)
        ],
        **{
            name: [_without(r) for r in records if r["what"] == what]
            for name, what in (
                ("checks", "check"), ("failures", "failed"), ("errors", "error"),
                ("left_out", "left_out"), ("tests", "tests"), ("failed_tests", "test_failed"),
                ("tiles", "tile"), ("kernels", "kernels"), ("rows", "row"), ("steps", "step"),
                ("full_steps", "step_full"), ("peers", "peer"), ("clocks", "clocks"),
                ("devices", "device"),
            )
        },
    }  # fmt: skip


def _without(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "what"}


def write(records: Sequence[Record], out: Path) -> str:
    """Write ``gpu.json`` and ``gpu.md`` to ``out``; the Markdown."""
    result = result_of(records)
    text = report_tables.markdown(result)
    save(out / "gpu.json", result)
    (out / "gpu.md").write_text(text, encoding="utf-8")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench report``."""
    parser.add_argument("folder", type=Path, nargs="+", help="of the first call, of the second")
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>")


def run(given: argparse.Namespace) -> None:
    """``python -m bench report FOLDER...``.

    Raises:
        SystemExit: the folders hold no records.
    """
    records = list(read(*given.folder))
    if not records:
        raise SystemExit(f"bench report: no records in {', '.join(map(str, given.folder))}")
    rehearsal = any(r["what"] == "environment" and r.get("rehearsal") for r in records)
    name = gpu_name(records)
    # A rehearsal at tiny sizes on a CPU is never written among the results.
    out = given.out or (RESULTS / slug(name) if name and not rehearsal else given.folder[0])
    write(records, out)
    counts: dict[str, int] = {}
    for verdict in judged(records):
        counts[verdict.outcome] = counts.get(verdict.outcome, 0) + 1
    print(f"{out / 'gpu.md'}: predictions: " + ", ".join(f"{n} {k}" for k, n in counts.items()))
