"""The launcher of several ranks: it reports a crash of native code and tries once more.

A failure of our code is not tried again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torchrun import torchrun

_RANK = """
import os, pathlib, sys
folder, how, times = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
there = len(list(folder.glob("launch*")))
assert there == 0, "the folder is not as it was"
(folder / f"launch{os.environ['RANK']}").touch()
count = folder.with_name("count")
made = int(count.read_text()) if count.exists() else 0
count.write_text(str(made + 1))
if made < times:
    os.abort() if how == "abort" else sys.exit("ours")
"""


@pytest.mark.costly
@pytest.mark.draw(1)
@pytest.mark.parametrize(
    ("how", "times", "launches"), [("abort", 1, 2), ("abort", 9, 2), ("exit", 1, 1)]
)
def test_a_crash_is_tried_once_more_and_told(
    tmp_path: Path, how: str, times: int, launches: int
) -> None:
    folder, script = tmp_path / "folder", tmp_path / "rank.py"
    folder.mkdir()
    script.write_text(_RANK)

    def launch() -> int:
        arguments = (str(script), str(folder), how, str(times))
        return torchrun(*arguments, folder=folder, ranks=1, timeout=300).returncode

    if how == "abort":
        with pytest.warns(UserWarning, match="(?s)launched again.*Fatal Python error: Aborted"):
            status = launch()
    else:
        status = launch()
    assert (tmp_path / "count").read_text() == str(launches)
    assert (status == 0) == (launches > times)
