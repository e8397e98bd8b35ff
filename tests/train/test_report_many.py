"""Many runs on one page: bounds of size and work, looks that differ, runs to switch on."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest

from siri_train.report import write_report
from siri_train.report.data import read_run_folder
from siri_train.report.many import LEAST_VALUES, MOST_SHOWN, limit, waiting
from siri_train.report.markup import source
from siri_train.report.records import Run, RunFolder
from siri_train.report.run_looks import COLOURS, PATTERNS, colours
from tests.train.browser import BROWSER, browser
from tests.train.report_page import check, evaluation, jsonl
from tests.train.report_runs import metrics
from tests.train.silent_page import work_to_open

SEEDS = [time.time_ns() + k for k in range(3)]
_SEEN_AS = (  # linear RGB as seen: usual, protanopia, deuteranopia, tritanopia (Machado 2009)
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
              [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
              [-0.011820, 0.042940, 0.968881]]),
    np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
              [0.004733, 0.691367, 0.303900]]),
)  # fmt: skip
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    share = _TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    root = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def write(folder: Path, seed: int, count: int, steps: int, every: int = 40) -> Path:
    rng = random.Random(seed)
    for place in range(count):
        run = folder / f"run{place:02d}"
        jsonl(run / "metrics.jsonl", metrics(rng, steps, 640 if steps > 640 else 8))
        jsonl(run / "eval.jsonl", [evaluation(t, None, rng.uniform(0.3, 0.9), rng.uniform(9, 30))
                                   for t in range(0, steps + 1, every)])  # fmt: skip
    return folder


def test_no_two_runs_look_alike() -> None:
    runs = [Run(f"run{place}", Path(f"run{place}")) for place in range(48)]
    looks = colours(RunFolder(Path("x"), runs, [], [])).values()
    assert len(set(looks)) == 48
    style = source("content.css")
    for pattern in PATTERNS[1:]:
        assert f".curve.{pattern} {{" in style and f".swatch.{pattern} {{" in style
    dashes = re.findall(r"\.curve\.p\d \{ stroke-dasharray: ([\d ]+)", style)
    assert len(set(dashes)) == len(PATTERNS) - 1


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_differ_for_every_kind_of_eye_and_can_be_read(mode: str) -> None:
    light, dark = source("style.css").split("@media (prefers-color-scheme: dark)", 1)
    known = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light if mode == "light" else dark))
    chosen = {name: linear(known[name]) for name in (*COLOURS, "control")}
    for (one, first), (two, second) in itertools.combinations(chosen.items(), 2):
        apart = min(np.linalg.norm(lab(eye @ first) - lab(eye @ second)) for eye in _SEEN_AS)
        assert apart >= 23, (mode, one, two, apart)
    luminance = np.array([0.2126, 0.7152, 0.0722])
    card = float(luminance @ linear(known["card"]))
    for name, rgb in chosen.items():
        low, high = sorted((card, float(luminance @ rgb)))
        assert (high + 0.05) / (low + 0.05) >= (4.2 if name == "control" else 4.5), (mode, name)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_limit_keeps_short_lists_whole_and_all_within_the_bound(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.choice([rng.randint(0, 9), rng.randint(100, 5000)]) for _ in range(99)]
    whole, thinned = sum(lengths), rng.randint(99 * LEAST_VALUES, sum(lengths))
    assert limit(lengths, whole, thinned) is None
    most = limit(lengths, whole - 1, thinned)
    assert most is not None
    kept = sum(min(length, most) for length in lengths)
    assert thinned - len(lengths) <= kept <= thinned, (seed, most)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_most_accurate_are_shown_first(tmp_path: Path, seed: int) -> None:
    count = random.Random(seed).randint(MOST_SHOWN + 1, 30)
    folder = read_run_folder(write(tmp_path, seed, count, 8, 4))
    hidden = waiting(folder)
    best = [run.evals[-1].best or 0.0 for run in folder.runs]
    shown = set(range(count)) - hidden
    assert len(shown) == MOST_SHOWN
    assert min(best[k] for k in shown) >= max(best[k] for k in hidden), seed
    few = read_run_folder(write(tmp_path / "few", seed, MOST_SHOWN, 4, 2))
    assert waiting(few) == frozenset()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_thinned_is_as_logged_and_said(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    count, steps_done, bound = rng.randint(2, 14), rng.randint(300, 500), 6_000
    for name, value in (("WHOLE_VALUES", bound), ("THINNED_VALUES", bound)):
        monkeypatch.setattr(f"siri_train.report.embedded.{name}", value)
    path = write_report(write(tmp_path, seed, count, steps_done))
    page = check(path)
    logs = {one.parent.name: [json.loads(line) for line in one.open()]
            for one in tmp_path.glob("*/metrics.jsonl")}  # fmt: skip
    steps, runs = page.data["steps"], page.data["axes"]["runs"]
    (chart,) = (one for one in page.data["charts"] if one["title"] == "Entropy")
    for line in chart["lines"]:
        rows = logs[runs[line["run"]]["label"]]
        at = steps[line["x"]]
        assert [rows[step]["entropy"] for step in at] == pytest.approx(line["y"], rel=1e-5)
        values = [row["entropy"] for row in rows]
        assert min(line["y"]) == pytest.approx(min(values), rel=1e-5), seed
        assert max(line["y"]) == pytest.approx(max(values), rel=1e-5), seed
        assert at[-1] == steps_done - 1 and len(line["mean"]) == len(at) < steps_done
    values = sum(len(line["y"]) for one in page.data["charts"] for line in one["lines"])
    lines = sum(len(one["lines"]) for one in page.data["charts"])
    assert values < 1.1 * max(bound, lines * (LEAST_VALUES + 15)), (seed, values)
    assert "each curve has about" in " ".join(page.text.split())


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_thirty_long_runs_open_at_once(tmp_path: Path) -> None:
    path = write_report(write(tmp_path, SEEDS[0], 30, 2000))
    assert path.stat().st_size < 5_000_000
    for width in (1200, 390):
        with browser() as page:
            assert work_to_open(page, path, width) < 2.0, SEEDS[0]
            assert page.messages == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_reader_picks_runs_and_points_at_their_names(tmp_path: Path) -> None:
    rng = random.Random(SEEDS[0])
    count = MOST_SHOWN + rng.randint(2, 8)
    path = write_report(write(tmp_path, SEEDS[0], count, 60, 20))
    hidden = waiting(read_run_folder(tmp_path))
    drawn = """[...document.querySelectorAll('figure[data-chart]')]
      .find((one) => one.querySelector('h3').textContent === 'Entropy')
      .querySelectorAll('.wide .strong:not(.off) polyline').length"""
    with browser() as page:
        page.size(1200)
        page.open(path.as_uri())
        page.wait("document.documentElement.classList.contains('live')")
        assert page.do(drawn) == MOST_SHOWN, SEEDS[0]
        assert page.do("document.querySelector('#shown').textContent") == (
            f"{MOST_SHOWN} of {count} shown")  # fmt: skip
        place = rng.choice(sorted(hidden))
        page.do(f"document.querySelector('#tools [data-run=\"{place}\"]').click()")
        assert page.do(drawn) == MOST_SHOWN + 1
        page.do("document.querySelector('#all-runs').click()")
        assert page.do(drawn) == count
        unseen = "document.querySelectorAll('#plane .wide g[data-run].off').length"
        assert page.do(unseen) == 0
        page.do("document.querySelector('#first-runs').click()")
        assert page.do(drawn) == MOST_SHOWN and page.do(unseen) == len(hidden)
        shown = rng.choice(sorted(set(range(count)) - hidden))
        page.do(f"""document.querySelector('#tools [data-run="{shown}"]')
          .dispatchEvent(new Event('pointerenter'))""")
        picked = page.do("""[...document.querySelectorAll('.wide .plot.picking')]
          .map((one) => one.querySelectorAll('.strong.picked').length)""")
        assert picked and set(picked[1:]) <= {0, 1, 2} and sum(picked) > 0
        page.do(f"""document.querySelector('#tools [data-run="{shown}"]')
          .dispatchEvent(new Event('pointerleave'))""")
        assert page.do("document.querySelectorAll('.picking, .picked').length") == 0
        page.do("document.querySelector('#no-runs').click()")
        assert page.do(drawn) == 0
        assert page.messages == []
