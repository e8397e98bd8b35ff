"""``make test-peers`` cannot pass without the peers; ``make test`` and ``make test-slow`` together
run every case of a wide matrix."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import drawn


@pytest.mark.costly
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


@pytest.mark.parametrize("seed", range(20))
def test_a_part_is_drawn_that_has_every_value_of_the_small_parameters(seed):
    draw = random.Random(seed)
    sizes = [draw.randrange(1, 9) for _ in range(draw.randrange(1, 4))]
    cases = [
        dict(zip("abc", values, strict=False)) for values in itertools.product(*map(range, sizes))
    ]
    count = draw.randrange(1, len(cases) + 2)
    chosen = drawn(cases, count, str(seed))
    assert chosen == drawn(cases, count, str(seed)) and chosen <= set(range(len(cases)))
    assert min(count, len(cases)) <= len(chosen) <= max(count, sum(sizes))
    for name, size in zip("abc", sizes, strict=False):
        if size <= count:
            assert {cases[number][name] for number in chosen} == set(range(size))


def test_other_days_draw_other_cases():
    cases = [{"a": value} for value in range(50)]
    assert len({frozenset(drawn(cases, 10, str(day))) for day in range(20)}) > 10


def test_what_make_test_leaves_out_make_test_slow_runs(tmp_path):
    conftest = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    marks = "[pytest]\nmarkers =\n  slow: s\n  draw: d\n  costly: c\naddopts = -m 'not slow' -v\n"
    (tmp_path / "pytest.ini").write_text(marks, encoding="utf-8")
    (tmp_path / "test_wide.py").write_text(
        "import pytest\n"
        "@pytest.mark.draw(3)\n"
        "@pytest.mark.parametrize('b', 'xyz')\n"
        "@pytest.mark.parametrize('a', range(9))\n"
        "def test_wide(a, b): assert (a, b) != (4, 'z')\n"
        "@pytest.mark.draw(1, 'pair')\n"
        "def test_one(): pass\n"
        "@pytest.mark.draw(1, 'pair')\n"
        "@pytest.mark.parametrize('a', [1])\n"
        "def test_two(a): pass\n"
        "@pytest.mark.costly\n"
        "@pytest.mark.parametrize('a', range(60))\n"
        "def test_costly(a): pass\n",
        encoding="utf-8",
    )

    (tmp_path / "runs.py").write_text(
        "import pytest\n"
        "for arguments in ([], ['-m', 'slow'], ['test_wide.py::test_wide[4-z]']):\n"
        "    print('RUN')\n"
        "    pytest.main(['-p', 'no:cacheprovider', *arguments])\n",
        encoding="utf-8",
    )
    run = subprocess.run(
        [sys.executable, "runs.py"],
        cwd=tmp_path,
        env={**os.environ, "SIRI_TEST_DRAW": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    def ran(output):
        failed = "::test_wide[4-z] FAILED" in output
        assert ("drawn with SIRI_TEST_DRAW=1" in output) == failed
        return {f"{a}-{b}" for a in range(9) for b in "xyz" if f"::test_wide[{a}-{b}] " in output}

    outputs = run.stdout.split("RUN")[1:]
    pairs = [("::test_one " in out, "::test_two[1] " in out) for out in outputs]
    assert sorted(pairs[:2]) == [(False, True), (True, False)] and not any(pairs[2])
    costly = [{a for a in range(60) if f"::test_costly[{a}] " in out} for out in outputs]
    assert 5 < len(costly[0]) < 25 and costly[1] == {*range(60)} - costly[0] and not costly[2]
    quick, slow, named = map(ran, outputs)
    assert len(quick) == 3 and {name[-1] for name in quick} == set("xyz")
    assert len(slow) == 24 and not quick & slow and named == {"4-z"}
