"""The loop for Lightning, with the real Lightning (``make test-peers``)."""

from __future__ import annotations

import pytest

from tests.test_examples import learns, run

pytest.importorskip("lightning", reason="Lightning is not installed (make test-peers)")


def test_loop_learns(monkeypatch):
    learns(run("lightning_module", monkeypatch, 20))
