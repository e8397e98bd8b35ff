"""Fixtures of the tests in a browser: one page, which may neither write messages nor fetch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.browser import Page, browser


@pytest.fixture(scope="module", name="page")
def opened() -> Iterator[Page]:
    """One browser for the tests of a file."""
    with browser() as one:
        yield one


@pytest.fixture(autouse=True)
def silent(page: Page) -> Iterator[None]:
    """No test may leave a message in the console, nor fetch anything but files."""
    page.messages.clear()
    page.requests.clear()
    page.size(1200)
    yield
    assert page.messages == []
    assert all(one.startswith("file:") for one in page.requests)


def work_to_open(page: Page, path: Path, width: int) -> float:
    """Open a report of a run.

    Args:
        page: of a browser that has opened nothing yet.
        path: of the report.
        width: of the window, in pixels.

    Returns:
        Seconds of processor time until it is live: not by the clock, as other programs may have
        the machine.
    """
    page.size(width)
    page.call("Performance.enable")
    page.open(path.as_uri())
    page.wait("document.documentElement.classList.contains('live')")
    known = page.call("Performance.getMetrics")["metrics"]
    return float({one["name"]: one["value"] for one in known}["ProcessTime"])
