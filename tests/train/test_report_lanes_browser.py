"""Alarm lanes and the drawn front in a browser: values under the pointer, zoom, other axes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from siri_train.report.alarm_episodes import episodes
from siri_train.report.data import read_run_folder
from tests.train.browser import BROWSER
from tests.train.report_content import write_folder, write_run
from tests.train.test_report_browser import look

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


@pytest.mark.draw(1, "lanes")
def test_a_lane_tells_its_episode_at_every_zoom(tmp_path: Path) -> None:
    seed = time.time_ns()
    write_run(tmp_path, "cosine", random.Random(seed), steps=200, cycle=60)
    found = episodes(read_run_folder(tmp_path).runs[0].alarms)
    one = max(found, key=lambda one: (one.until or 200) - one.since)
    middle = (one.since + (one.until or 200)) / 2 / 200
    out = look(tmp_path, f"""
        const svg = plot('Alarms'), names = axis(svg, 'y-axis');
        const tell = (share) => {{ at(svg, share, 'pointermove'); return $('#tip').innerText; }};
        out.names = names; out.told = tell({middle});
        drag(svg, {max(0.0, middle - 0.2)}, {min(1.0, middle + 0.2)});
        out.zoomed = axis(svg, 'y-axis'); out.x = axis(svg, 'x-axis');
        out.again = tell({0.5 if 0.2 <= middle <= 0.8 else middle});
        svg.dispatchEvent(new MouseEvent('dblclick'));
        out.back = axis(svg, 'y-axis');
    """)  # fmt: skip
    assert sorted(out["names"]) == sorted({one.name for one in found}), seed
    assert out["zoomed"] == out["back"] == out["names"], seed
    word = f"since {one.since}" if one.until is None else f"{one.since} to {one.until}"
    assert one.name in out["told"] and word in out["told"], seed
    if 0.2 <= middle <= 0.8:
        assert word in out["again"], seed


@pytest.mark.draw(1, "lanes")
def test_the_front_says_which_points_are_dominated(tmp_path: Path) -> None:
    write_folder(tmp_path, time.time_ns())
    out = look(tmp_path, """
        const spots = $$('#plane .wide circle.less');
        out.beaten = spots.map((spot) => spot.classList.contains('beaten'));
        out.told = spots.map((spot) => spot.getAttribute('aria-label').includes('dominated'));
        out.wide = ['front', 'best', 'word-groups', 'costs'].map((id) => {
          const box = document.getElementById(id);
          return box.getBoundingClientRect().right <= innerWidth && box.innerText.length > 50;
        });
    """)  # fmt: skip
    assert out["beaten"] == out["told"] and True in out["beaten"]
    assert out["wide"] == [True] * 4
