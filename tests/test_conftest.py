"""``make test-peers`` cannot pass without the peers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("asked", "code"), [("1", 2), ("0", 0)])
def test_an_absent_peer_is_an_error_where_peers_are_asked_for(tmp_path, asked, code):
    """2: pytest stops at a file it cannot collect."""
    conftest = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    absent = "import pytest\npytest.importorskip('no_such_peer', reason='it is not installed')\n"
    (tmp_path / "test_absent.py").write_text(absent, encoding="utf-8")
    (tmp_path / "test_there.py").write_text("def test_there(): pass\n", encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "SIRI_PEERS": asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stdout
    assert ("yet skipped" in run.stdout) == (asked == "1")
