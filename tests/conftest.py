"""Where the peers are set up, a file of tests that skips for want of one is an error; Hypothesis
judges no test by its time; where nothing of ours is installed, what cannot run is skipped."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Generator

import pytest

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # an environment of a peer's own
    pass
else:
    # How long an example, or drawing one, takes is the other processes' business.
    settings.register_profile(
        "any load", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("any load")


def absent_dependency(report: pytest.CollectReport) -> str | None:
    """The package for want of which a file could not be collected, on a machine (one lent with a
    GPU, say) that runs the tree as it is and lacks some of the trainer's dependencies.

    Where the project is installed its dependencies are too, and one that is missing is an error.
    """
    found = re.findall(
        r"^E +ModuleNotFoundError: No module named '(\w+)", report.longreprtext, re.M
    )
    if not found or importlib.util.find_spec(found[-1]) is not None:
        return None
    try:
        importlib.metadata.distribution("siri-kernels")
    except importlib.metadata.PackageNotFoundError:
        return found[-1]
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """``make test-peers`` sets ``SIRI_PEERS=1``: TRL, verl and Liger are there, or it fails."""
    report = yield
    if report.outcome == "failed" and (absent := absent_dependency(report)):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {absent} is not installed")
    if report.outcome == "skipped" and os.environ.get("SIRI_PEERS") == "1":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: SIRI_PEERS=1 and yet skipped ({why})"
    return report
