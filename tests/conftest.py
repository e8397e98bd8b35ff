"""Where the peers are set up, a file of tests that skips for want of one is an error; Hypothesis
judges no test by its time; where nothing of ours is installed, what cannot run is skipped; of a
wide matrix ``make test`` runs a part that is drawn anew each day."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import importlib.util
import os
import random
import re
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from typing import Any

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

# Processes that tests start, and `make test-slow` in the same run of .ci/run, draw the same.
DRAW = os.environ.setdefault("SIRI_TEST_DRAW", datetime.date.today().isoformat())


def drawn(cases: Sequence[Mapping[str, int]], count: int, seed: str) -> set[int]:
    """The numbers of about ``count`` of the cases.

    Args:
        cases: of each case a number for each parameter's value, the same for the same value.
        count: cases to draw. There are more where values would be missing: a parameter of at most
            ``count`` values has each of them in a drawn case.
        seed: the same cases are drawn with the same seed.
    """
    order = list(range(len(cases)))
    random.Random(seed).shuffle(order)
    values: dict[str, set[int]] = defaultdict(set)
    for case in cases:
        for name, value in case.items():
            values[name].add(value)
    small = {name for name, found in values.items() if len(found) <= count}
    chosen: set[int] = set()
    seen: set[tuple[str, int]] = set()
    for number in order:
        new = {(name, value) for name, value in cases[number].items() if name in small} - seen
        if new:
            chosen.add(number)
            seen |= new
    others = [number for number in order if number not in chosen]
    return chosen.union(others[: max(0, count - len(chosen))])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What ``@pytest.mark.draw(count)`` leaves out is slow: ``make test-slow`` runs it, and three
    of four cases that are ``@pytest.mark.costly``. Tests that are named on the command line all
    run.

    ``draw(count)`` is for the cases of one test, ``draw(count, "name")`` for all tests of a file
    with this name together: whoever runs the file has all of them, so everybody draws the same.
    """
    if DRAW == "all" or config.option.keyword or any("::" in arg for arg in config.args):
        return
    families: dict[tuple[str, int, bool], list[Any]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("costly") is not None:
            if random.Random(f"{DRAW} {item.nodeid}").random() > 1 / 4:
                item.add_marker(pytest.mark.slow)
        mark = item.get_closest_marker("draw")
        if mark is not None:
            count, *named = mark.args
            file, test = item.nodeid.partition("[")[0].split("::", 1)
            families[f"{file}::{named[0] if named else test}", count, bool(named)].append(item)
    for (name, count, named), family in families.items():
        # The values of a parameter are the same objects in all cases of a test.
        cases = [
            {} if named else {key: id(value) for key, value in item.callspec.params.items()}
            for item in family
        ]
        chosen = drawn(cases, count, f"{DRAW} {name}")
        for number, item in enumerate(family):
            if number not in chosen:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """A million objects of imported modules, which stay: a collection in a test skips them."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(
            f"A part of each wide matrix ran, drawn with SIRI_TEST_DRAW={DRAW}; =all runs all."
        )


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
