"""Each row against each contender; ``python -m bench`` runs it."""

from __future__ import annotations

from typing import Any

import pytest

from bench.conftest import CLOCK


@pytest.mark.benchmark(timer=CLOCK)
def test_kernels(case: Any, contender: str, session: Any, benchmark: Any) -> None:
    """Correctness was checked before anything was timed; a wrong contender has no time."""
    row = session.row(case)
    if isinstance(row, str):
        pytest.skip(row)
    if contender in row["missing"]:
        pytest.skip(row["missing"][contender])
    entry = row["contenders"][contender]
    if "wrong" in entry:
        if contender.startswith("ours"):
            pytest.fail(entry["wrong"])
        pytest.skip(entry["wrong"])
    seconds = entry[f"seconds_{session.device.clock}"]["all"]
    benchmark.group = case.name
    benchmark.extra_info |= {"peak_mib": entry["peak_mib"], "errors": entry["errors"]}
    CLOCK.load(seconds)
    benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)
