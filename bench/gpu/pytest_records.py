"""A pytest plugin: a JSON line for each test that fails, and counts as the tests go by.

``GPU_RECORDS`` is the file, ``GPU_EVERY`` the keys of each line. A run that is killed leaves the
counts of a second before.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.records import Records

# Time is short: tests that run kernels come first, those that a machine without a GPU can run last.
LAST = ("test_aot", "distributed", "sharded", "parity", "real_model", "interpreted", "compiled")


def rank(name: str) -> int:
    """0, 1 or 2: how early a test of this name runs."""
    if any(word in name for word in LAST):
        return 2
    return 0 if "triton" in name else 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In this order, in every process the same; a file's tests stay in theirs."""
    items.sort(key=lambda item: rank(item.nodeid))


class Writer:
    """Counts outcomes; with xdist only in the process that hands the tests out."""

    def __init__(self, records: Records) -> None:
        self.records, self.counts = records, {"passed": 0, "failed": 0, "skipped": 0}
        self.slowest: list[tuple[float, str]] = []
        self.reasons: dict[str, int] = {}
        self.written = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A phase of a test: its call, or whatever else did not pass."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.when == "call":
            self.slowest = sorted([*self.slowest, (report.duration, report.nodeid)])[-15:]
        if report.outcome == "skipped":
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.reasons[str(why)[:200]] = self.reasons.get(str(why)[:200], 0) + 1
        if report.outcome == "failed":
            self.failed(report)
        if time.monotonic() - self.written > 1:
            self.written = time.monotonic()
            self.records.write("tests_so_far", **self.counts)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that could not be collected."""
        if report.failed:
            self.counts["failed"] += 1
            self.failed(report)

    def failed(self, report: Any) -> None:
        """A line with the name and the end of the message."""
        crash = getattr(report.longrepr, "reprcrash", None)
        text = str(report.longrepr)
        self.records.write(
            "test_failed", test=report.nodeid, when=getattr(report, "when", "collection"),
            message=str(crash.message if crash else text)[:600], end=text[-1500:],
        )  # fmt: skip

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """The counts of the whole run."""
        self.records.write(
            "tests", **self.counts, exit=int(exitstatus),
            slowest=[{"test": n, "seconds": s} for s, n in reversed(self.slowest)],
            skipped_because=self.reasons,
        )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Register the writer, but not in xdist's workers."""
    file = os.environ.get("GPU_RECORDS")
    if file and not hasattr(config, "workerinput"):
        every = json.loads(os.environ.get("GPU_EVERY", "{}"))
        config.pluginmanager.register(Writer(Records(Path(file), every)), "gpu_records")
