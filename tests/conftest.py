"""Where the peers are set up, a file of tests that skips for want of one is an error; Hypothesis
judges no test by its time."""

from __future__ import annotations

import os
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


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """``make test-peers`` sets ``SIRI_PEERS=1``: TRL, verl and Liger are there, or it fails."""
    report = yield
    if report.outcome == "skipped" and os.environ.get("SIRI_PEERS") == "1":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: SIRI_PEERS=1 and yet skipped ({why})"
    return report
