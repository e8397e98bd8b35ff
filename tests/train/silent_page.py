"""Fixtures of the tests in a browser: one page, which may neither write messages nor fetch."""

from __future__ import annotations

from collections.abc import Iterator

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
