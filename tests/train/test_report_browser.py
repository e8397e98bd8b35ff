"""The page in a browser: what the pointer, the keys and the tools above the charts do.

Skipped where no Chromium is installed; test_report.py looks at the page without one.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from siri_train.report import write_report
from siri_train.report.markup import fingerprint
from tests.train.report_page import HOSTILE, jsonl, make_demo

BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")

BEFORE = """
window.refused = []; window.failed = [];
addEventListener('securitypolicyviolation', (e) => refused.push(e.effectiveDirective));
addEventListener('error', (e) => failed.push(e.message));
"""
TOOLS = """
SVGElement.prototype.setPointerCapture = () => {};  // there is no real pointer to capture
const $ = (what) => document.querySelector(what);
const $$ = (what) => [...document.querySelectorAll(what)];
const chart = (title) => $$('figure[data-chart]')
  .find((figure) => figure.querySelector('h3').textContent === title);
const plot = (title) => chart(title).querySelector('.wide svg.plot');
const inner = (svg) => [...svg.querySelectorAll('svg.data')].at(-1);
const part = (svg, line, name) => svg.querySelector(`.${name}[data-line="${line}"]`);
const corners = (svg, line, name) => [...part(svg, line, name).querySelectorAll('polyline')]
  .flatMap((p) => p.getAttribute('points').split(' ')).length;
const axis = (svg, name) => [...svg.querySelectorAll(`.${name} text`)].map((t) => t.textContent);
const at = (svg, share, kind, up = 0.5) => {
  const box = inner(svg).getBoundingClientRect(), all = svg.getBoundingClientRect();
  const size = svg.viewBox.baseVal, layer = inner(svg);
  const [x, y, w, h] = ['x', 'y', 'width', 'height'].map((k) => Number(layer.getAttribute(k)));
  svg.dispatchEvent(new PointerEvent(kind, {bubbles: true, isPrimary: true, button: 0, pointerId: 1,
    clientX: all.left + (x + share * w) / size.width * all.width,
    clientY: all.top + (y + up * h) / size.height * all.height}));
};
const drag = (svg, a, b) => {
  at(svg, a, 'pointerdown', 0.3); at(svg, b, 'pointermove', 0.6); at(svg, b, 'pointerup', 0.6);
};
const slide = (value) => {
  $('#smooth').value = value; $('#smooth').dispatchEvent(new Event('input'));
};
"""


def look(folder: Path, script: str) -> dict:
    """What ``script`` puts into ``out`` on the folder's page, opened in a browser of 1200 x 900.

    The page keeps its policy; only the hashes of the test's own scripts are added to it.
    """
    page = write_report(folder).read_text(encoding="utf-8")
    after = (
        f"{TOOLS}const out = {{}};\n{script}\nout.refused = refused; out.failed = failed;\n"
        "const told = document.createElement('pre'); told.id = 'told';\n"
        "told.textContent = JSON.stringify(out); document.body.append(told);"
    )
    for own in (BEFORE, after):
        page = page.replace("; base-uri", f" {fingerprint(own)}; base-uri", 1)
    page = page.replace("<title>", f"<script>{BEFORE}</script><title>", 1)
    page = page.replace("</body>", f"<script>{after}</script></body>")
    path = folder / "looked_at.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), "--no-sandbox", "--disable-gpu", "--headless", "--window-size=1200,900",
         "--virtual-time-budget=2000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    out = json.loads(html.unescape(found[1]))
    assert out.pop("refused") == [] and out.pop("failed") == []
    return out


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return make_demo(tmp_path / "demo", 300)


@pytest.mark.draw(2, "browser")
def test_values_under_the_pointer(demo: Path) -> None:
    rows = [json.loads(line) for line in (demo / "siri" / "metrics.jsonl").open()]
    out = look(demo, """
        const svg = plot('Entropy');
        at(svg, 0.5, 'pointermove');
        out.tip = $('#tip').innerText; out.seen = $('#tip').style.visibility;
        const length = plot('Cap and response length');
        at(length, 0.2, 'pointermove'); out.length = $('#tip').innerText;
        at(length, 0.2, 'pointerleave'); out.gone = $('#tip').style.visibility;
        length.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
        out.keys = $('#tip').innerText;
    """)  # fmt: skip
    step = int(re.search(r"step (\d+)", out["tip"])[1])  # type: ignore[index]
    assert abs(step - 150) <= 1 and out["seen"] == "visible" and out["gone"] == "hidden"
    assert "0.7" in out["tip"] and "SIRI" in out["tip"] and "constant" in out["tip"]
    step = int(re.search(r"step (\d+)", out["length"])[1])  # type: ignore[index]
    assert f"{rows[step]['cap']}" in out["length"]
    assert float(f"{rows[step]['response_len_mean']:.4g}") == float(
        re.search(r"SIRI mean\s+([\d.]+)", out["length"])[1]  # type: ignore[index]
    )
    assert "step " in out["keys"] and out["keys"] != out["length"]


@pytest.mark.draw(2, "browser")
def test_zoom_shows_a_section_in_all_charts_and_comes_back(demo: Path) -> None:
    out = look(demo, """
        const svg = plot('Gradient norm'), other = plot('Cap and response length');
        const views = () => [inner(svg), inner(other)].map((l) => l.getAttribute('viewBox'));
        const texts = () => [axis(svg, 'x-axis'), axis(svg, 'y-axis'), axis(other, 'x-axis')];
        out.before = [views(), texts()];
        drag(svg, 0.25, 0.5);
        out.zoomed = [views(), texts()]; out.fields = [$('#from').value, $('#to').value];
        out.marked = svg.classList.contains('zoomed');
        out.wide = [...svg.querySelectorAll('.selected')].length;
        svg.dispatchEvent(new MouseEvent('dblclick'));
        out.after = [views(), texts()];
        $('#from').value = 100; $('#from').dispatchEvent(new Event('change'));
        out.typed = axis(other, 'x-axis');
        $('#whole').click(); out.again = [views(), texts()];
    """)  # fmt: skip
    assert out["before"] == out["after"] == out["again"]
    first, last = map(int, out["fields"])
    assert abs(first - 75) <= 2 and abs(last - 150) <= 2 and out["marked"] and out["wide"] == 0
    for view, was in zip(out["zoomed"][0], out["before"][0], strict=True):
        assert float(view.split()[2]) == pytest.approx(float(was.split()[2]) / 4, rel=0.1)
    for texts in (out["zoomed"][1][0], out["zoomed"][1][2]):
        assert texts and all(first <= int(text) <= last for text in texts)
    assert out["typed"][0] == "100"


@pytest.mark.draw(2, "browser")
def test_curves_and_runs_are_switched_on_and_off(demo: Path) -> None:
    out = look(demo, """
        const figure = chart('Cap and response length'), svg = plot('Cap and response length');
        const seen = (line) => getComputedStyle(part(svg, line, 'strong')).display;
        const keys = [...figure.querySelectorAll('button.key')];
        out.names = keys.map((k) => k.textContent.trim());
        keys[1].click();
        out.off = [0, 1, 2, 3].map(seen);
        out.pressed = keys.map((k) => k.getAttribute('aria-pressed'));
        at(svg, 0.5, 'pointermove'); out.tip = $('#tip').innerText;
        keys[1].click(); out.on = [0, 1, 2, 3].map(seen);
        const run = $$('.tools [data-run]')[1]; run.click();
        out.run = [0, 1, 2, 3].map(seen); out.label = run.textContent.trim();
        out.path = $$('#plane [data-run="1"]').map((p) => getComputedStyle(p).display);
        run.click(); out.back = [0, 1, 2, 3].map(seen);
    """)  # fmt: skip
    assert out["names"] == ["SIRI mean", "SIRI cap", "constant mean", "constant cap"]
    shown = "inline"
    assert out["off"] == [shown, "none", shown, shown]
    assert out["pressed"] == ["true", "false", "true", "true"]
    assert "SIRI cap" not in out["tip"] and "SIRI mean" in out["tip"]
    assert out["on"] == out["back"] == [shown] * 4
    assert out["label"] == "constant" and out["run"] == [shown, shown, "none", "none"]
    assert len(out["path"]) >= 2 and set(out["path"]) == {"none"}


@pytest.mark.draw(2, "browser")
def test_smoothing_is_a_mean_that_can_be_set_and_undone(demo: Path) -> None:
    rows = [json.loads(line) for line in (demo / "siri" / "metrics.jsonl").open()]
    out = look(demo, """
        const svg = plot('Gradient norm');
        const values = () => { at(svg, 0.5, 'pointermove'); return $('#tip').innerText; };
        out.rest = [$('#window').textContent, values()];
        slide(1); out.none = [$('#window').textContent, values(), corners(svg, 0, 'faint')];
        slide(60); out.more = [$('#window').textContent, values(), corners(svg, 0, 'faint'),
          corners(svg, 0, 'strong'), corners(plot('Cap and response length'), 1, 'faint')];
        slide(0); out.undone = [$('#window').textContent, values()];
    """)  # fmt: skip
    assert out["rest"][0] == out["undone"][0] == "as drawn" and out["rest"][1] == out["undone"][1]
    assert out["none"][0] == "off" and "mean" not in out["none"][1] and out["none"][2] == 0
    window = int(re.match(r"(\d+) steps", out["more"][0])[1])  # type: ignore[index]
    assert out["more"][2:] == [300, 300, 0]  # every step behind the mean; the cap is never averaged
    step = int(re.search(r"step (\d+)", out["more"][1])[1])  # type: ignore[index]
    near = [row["grad_norm"] for row in rows[step - window // 2 : step + window // 2 + 1]]
    told = float(re.search(r"SIRI\s+[\d.]+ \(mean ([\d.]+)\)", out["more"][1])[1])  # type: ignore[index]
    assert len(near) == window and told == pytest.approx(sum(near) / window, rel=1e-3)


@pytest.mark.draw(2, "browser")
def test_the_plane_zooms_with_whole_letters_and_tells_its_spots(demo: Path) -> None:
    out = look(demo, """
        const svg = $('#plane .wide svg.plot'), spot = svg.querySelector('circle.big');
        const box = spot.getBoundingClientRect();
        spot.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, isPrimary: true,
          clientX: box.x + 1, clientY: box.y + 1}));
        out.tip = $('#tip').innerText; out.before = [box.width, box.height, axis(svg, 'x-axis')];
        drag(svg, 0.4, 0.6);
        const now = spot.getBoundingClientRect();
        out.zoomed = [now.width, now.height, axis(svg, 'x-axis')];
        svg.dispatchEvent(new MouseEvent('dblclick'));
        out.after = [spot.getBoundingClientRect().width, axis(svg, 'x-axis')];
    """)  # fmt: skip
    assert "constant-cap" in out["tip"] and "61.0 %" in out["tip"]
    assert out["zoomed"][:2] == pytest.approx(out["before"][:2], rel=0.02)
    assert out["zoomed"][2] != out["before"][2] == out["after"][1]


def test_hostile_text_runs_nothing(demo: Path) -> None:
    jsonl(demo / "siri" / "rollouts" / "step_000000.jsonl",
          [{key: HOSTILE for key in ("prompt", "response", "answer", "gold")}])  # fmt: skip
    jsonl(demo / "siri" / "alarms.jsonl", [{"alarm": HOSTILE, "cause": "<img src=x onerror=1>"}])
    name = "a<b>&'\" {{ 7*7 }} <!--\u2028<script>"
    (demo / "siri").rename(demo / name)
    out = look(demo, """
        out.scripts = $$('script').length; out.bad = $$('img, iframe, b > b, figure script').length;
        at(plot('Cap and response length'), 0.5, 'pointermove'); out.tip = $('#tip').textContent;
        out.tags = $('#tip').querySelectorAll('script').length;
    """)  # fmt: skip
    assert out["scripts"] == 5 and out["bad"] == 0 and out["tags"] == 0
    assert "a<b>&'\" {{ 7*7 }} <!--" in out["tip"]
