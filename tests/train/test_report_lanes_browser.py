"""Alarm lanes and the drawn front in a browser: values under the pointer, zoom, other axes."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from siri_train.report import write_report
from siri_train.report.alarm_episodes import episodes
from siri_train.report.data import read_run_folder
from siri_train.report.page import build_page
from siri_train.report.several import read_several
from tests.train.browser import BROWSER, browser
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


@pytest.mark.draw(1, "lanes")
def test_all_sections_fit_every_width_and_lanes_move_with_the_axis(tmp_path: Path) -> None:
    seed = time.time_ns()
    path = write_report(write_folder(tmp_path, seed, price=3.0, ranks=2))
    bar = "document.querySelector('[data-lanes] .strong polyline').getAttribute('points')"
    with browser() as page:
        for width, dark in ((1200, False), (390, True), (360, False)):
            page.size(width, dark=dark)
            page.open(path.as_uri())
            reach = page.do("document.documentElement.scrollWidth")
            assert reach <= width, (seed, width, reach)
            cut = page.do("""[...document.querySelectorAll('#word-groups svg text')]
                .filter((text) => text.getBoundingClientRect().width > 0)
                .filter((text) => text.getBoundingClientRect().right > innerWidth).length""")
            assert cut == 0, (seed, width)
        page.size(1200)
        before = page.do(bar)
        page.do("""{ const axis = document.getElementById('axis'); axis.value = 'tokens';
            axis.dispatchEvent(new Event('change', {bubbles: true})); }""")
        assert page.do(bar) != before, seed
        assert page.messages == [], seed


@pytest.mark.draw(1, "lanes")
def test_the_plane_tells_every_point_by_key(tmp_path: Path) -> None:
    seed = time.time_ns()
    path = write_report(write_folder(tmp_path, seed))
    told = "document.getElementById('tip').textContent"
    for_all = "document.querySelectorAll('#plane .wide circle')"
    with browser() as page:
        page.size(1200)
        page.open(path.as_uri())
        wanted = page.do(f"[...{for_all}].map((one) => one.getAttribute('aria-label'))")
        page.do("document.querySelector('#plane .wide svg.plot').focus()")
        page.key("Home")
        found = [page.do(told)]
        for _ in wanted[1:]:
            page.key("ArrowRight")
            found.append(page.do(told))
        assert sorted(found) == sorted(wanted), seed
        tokens = [float(re.search(r"([\d,.]+) tokens", text)[1]) for text in found]  # type: ignore[index]
        assert tokens == sorted(tokens), seed
        page.key("Escape")
        assert page.do("document.getElementById('tip').style.visibility") == "hidden"
        assert page.messages == [], seed


@pytest.mark.draw(1, "lanes")
def test_a_run_that_is_switched_off_leaves_the_plane(tmp_path: Path) -> None:
    seed = time.time_ns()
    write_folder(tmp_path, seed)
    folder = read_several([tmp_path / name for name in ("siri", "constant", "short")], "t")
    (tmp_path / "page.html").write_text(build_page(folder))
    seen = """[...document.querySelectorAll('#plane .wide circle, #plane .wide text.label')]
        .filter((one) => one.getBoundingClientRect().width > 0)
        .map((one) => one.getAttribute('aria-label') ?? one.textContent)"""
    with browser() as page:
        page.size(1200)
        page.open((tmp_path / "page.html").as_uri())
        before = page.do(seen)
        for run in folder.runs:
            assert any(text.startswith(f"{run.label} ") for text in before), seed
            press = (
                f"document.querySelector('#tools [data-run=\"{folder.runs.index(run)}\"]').click()"
            )
            page.do(press)
            left = [text for text in before if not text.startswith(f"{run.label} ")]
            assert page.do(seen) == left, seed
            page.do(press)
        assert page.do(seen) == before and page.messages == [], seed


@pytest.mark.draw(1, "lanes")
@pytest.mark.parametrize("width", [390, 320])
def test_nothing_is_wider_than_a_small_screen(tmp_path: Path, width: int) -> None:
    path = write_report(write_folder(tmp_path, time.time_ns()))
    wide = """[...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll, svg'))
        .filter((one) => one.getBoundingClientRect().right > innerWidth).map((one) => one.id)"""
    broken = """[...document.querySelectorAll('.tools label')].filter((label) => {
        const words = document.createRange();
        words.selectNode(label.firstChild.firstChild ?? label.firstChild);
        return words.getClientRects().length > 1; }).map((label) => label.textContent)"""
    with browser() as page:
        page.size(width)
        page.open(path.as_uri())
        page.do("document.querySelectorAll('main details').forEach((one) => { one.open = true; })")
        assert page.do(wide) == [] and page.do(broken) == []
