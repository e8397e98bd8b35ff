"""The page under keys, fingers and at all widths, in a headless Chromium.

Skipped where no Chromium is installed.
"""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path

import pytest

from siri_train.report import write_report
from tests.train.browser import BROWSER
from tests.train.open_page import choose, rows, show
from tests.train.report_runs import make, pair
from tests.train.silent_page import opened, silent

__all__ = ["opened", "silent"]  # fixtures, which pytest finds by their names

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")

TIP = "[...document.querySelectorAll('#tip b, #tip div')].map((one) => one.innerText)"


def spent(folder: Path, kind: str) -> list[float]:
    keys = {"tokens": ("tokens", "tokens_discarded"), "seconds": ("time_rollout", "time_train")}
    return [0.0, *accumulate(sum(row[key] for key in keys[kind]) for row in rows(folder))]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["tokens", "seconds"])
def test_an_axis_moves_everything_to_where_the_logs_say(page, tmp_path, kind, seed):
    folder = make(tmp_path / "run", seed)
    known, logs = spent(folder, kind), rows(folder)
    show(page, folder)
    choose(page, "#axis", kind)
    drawn = page.do("""{
      const svg = document.querySelector('figure[data-chart] .wide svg.plot');
      const layer = svg.querySelectorAll('svg.data')[1];
      const left = Number(layer.getAttribute('x')), width = Number(layer.getAttribute('width'));
      const share = (node, key) => (Number(node.getAttribute(key)) - left) / width;
      return {
        spans: [...svg.querySelectorAll('rect.span')].map((one) =>
          [share(one, 'x'), Number(one.getAttribute('width')) / width]),
        marks: [...svg.querySelectorAll('line.mark')].map((one) => share(one, 'x1')),
        points: [...svg.querySelectorAll('.strong[data-line="1"] polyline')]
          .flatMap((one) => one.getAttribute('points').split(' '))
          .map((one) => (Number(one.split(',')[0]) - left) / width),
        name: svg.querySelector('text.name').textContent,
        texts: [...svg.querySelectorAll('.x-axis text')].map((one) => one.textContent),
      };
    }""")
    whole = known[-1]
    close = lambda value: pytest.approx(value / whole, abs=2e-3)  # noqa: E731
    assert drawn["points"] == [close(value) for value in known[:-1]]
    assert sorted(drawn["marks"]) == [close(known[10]), close(known[20])]
    ends = [known[i] for i in (0, 10, 20, 30, 40)]
    assert [x for x, _ in drawn["spans"]] == [close(value) for value in ends[:-1]]
    assert [w for _, w in drawn["spans"]] == [
        close(b - a) for a, b in zip(ends, ends[1:], strict=False)
    ]
    unit = {"tokens": "tokens", "seconds": "minutes" if whole > 300 else "seconds"}[kind]
    assert unit in drawn["name"] and len(drawn["texts"]) >= 3
    # by key: the value and the step are those of the logs
    page.do("document.querySelector('figure[data-chart] .wide svg.plot').focus()")
    page.key("Home")
    page.key("ArrowRight", 30)
    tip = page.do(TIP)
    step = int(re.search(r"step (\d+)", tip[1])[1])
    told = [float(line.split("\n")[-1].replace(",", "")) for line in tip[1:]]
    assert 20 <= step <= 39  # each press goes at least one step on
    assert told == pytest.approx([logs[step]["response_len_mean"], logs[step]["cap"]], rel=1e-3)
    choose(page, "#axis", "step")
    back = page.do("""[...document.querySelector('figure[data-chart] .wide svg.plot')
      .querySelectorAll('rect.span')].map((one) => Number(one.getAttribute('width')))""")
    assert max(back) - min(back) < 0.2  # phases of ten steps each, as they were drawn


def test_evaluations_bars_and_bands_move_too(page, tmp_path):
    folder = make(tmp_path / "run", 5)
    known = spent(folder, "tokens")
    show(page, folder)
    choose(page, "#axis", "tokens")
    drawn = page.do("""{
      const svg = document.querySelectorAll('figure[data-chart] .wide svg.plot')[1];
      const layer = svg.querySelectorAll('svg.data')[1];
      const left = Number(layer.getAttribute('x')), width = Number(layer.getAttribute('width'));
      const first = (node, key, what) =>
        (Number(what.exec(node.getAttribute(key))[1]) - left) / width;
      return [
        [...svg.querySelectorAll('.spots[data-line="0"] circle')]
          .map((one) => first(one, 'transform', /translate\\(([-\\d.]+)/)),
        [...svg.querySelectorAll('.bars[data-line="0"] path')]
          .map((one) => first(one, 'd', /M([-\\d.]+)/)),
      ];
    }""")
    # the axis of evaluations ends with the last of them, as that of steps does
    expected = [pytest.approx(known[t] / known[40], abs=3e-3) for t in (0, 10, 20, 30, 40)]
    assert drawn[0] == expected and drawn[1] == expected


def test_what_was_chosen_survives_a_new_page(page, tmp_path):
    folder = pair(tmp_path / "two", 7)
    show(page, folder)
    choose(page, "#axis", "tokens")
    choose(page, "#smooth", "70")
    choose(page, "#from", "5000")
    choose(page, "#to", "20000")
    page.do("document.querySelectorAll('.tools [data-run]')[1].click()")
    page.do("document.querySelectorAll('figure[data-chart] button.key')[1].click()")
    choose(page, '[data-filter="grade"]', "right")
    choose(page, '[data-filter="sort"]', "long")
    seen = """{
      const value = (what) => document.querySelector(what).value;
      return [value('#axis'), value('#smooth'), value('#from'), value('#to'),
        document.querySelector('#window').textContent,
        [...document.querySelectorAll('button[aria-pressed]')].map((one) => one.ariaPressed),
        value('[data-filter="grade"]'), value('[data-filter="sort"]'),
        document.querySelector('#found').textContent,
        [...document.querySelectorAll('.wide .x-axis')].map((one) => one.textContent),
        [...document.querySelectorAll('.wide polyline')].length];
    }"""
    before = page.do(seen)
    with (folder / "siri" / "metrics.jsonl").open("a") as log:
        log.write("{\n")  # half a line changes nothing but the file
    write_report(folder)
    page.do("setTimeout(() => location.reload(), 0)")
    page.wait("document.readyState === 'complete' && document.querySelector('#axis').value")
    page.wait("document.documentElement.classList.contains('live')")
    assert page.do(seen) == before
    assert before[0] == "tokens" and "false" in before[5]


@pytest.mark.parametrize("rest", [
    "#axis=nonsense", "#from=9&to=1", "#from=x&to=NaN&smooth=-5", "#off=%00&hide=|&r-step=zzz",
    "#axis=tokens&from=1e400&to=-1", "#%%%", "#r-words=%3Cscript%3E&r-grade=__proto__",
])  # fmt: skip
def test_an_odd_address_is_no_harm(page, tmp_path, rest):
    show(page, make(tmp_path / "run", 3), rest)
    assert page.do("document.documentElement.classList.contains('live')")
    assert page.do("document.querySelectorAll('.wide .strong polyline').length") > 3


def test_everything_is_reached_by_key(page, tmp_path):
    show(page, pair(tmp_path / "two", 11))
    reached = set()
    for _ in range(160):
        page.key("Tab")
        here = page.do("""{
          const one = document.activeElement;
          return one.id || one.dataset.filter || one.dataset.move || one.dataset.run
            || (one.matches('svg.plot') ? 'plot' : one.matches('summary') ? 'summary'
            : one.className || one.tagName);
        }""")
        reached.add(here)
        if here == "BODY":
            break
    wanted = {"axis", "smooth", "from", "to", "whole", "0", "1", "key", "plot", "step", "grade",
              "question", "sort", "least", "most", "words", "all-responses", "summary",
              "-1"}  # fmt: skip
    assert wanted <= reached
    # zoom by key, and back
    page.do("document.querySelector('figure[data-chart] .wide svg.plot').focus()")
    page.key("ArrowRight", 20)
    page.key("+", 2)
    zoomed = page.do("[document.querySelector('#from').value, document.querySelector('#to').value]")
    assert 9 <= float(zoomed[1]) - float(zoomed[0]) <= 11
    page.key("Escape")
    assert page.do("document.querySelector('#from').value") == ""
    # a response opens by key, and its text comes then
    page.do("document.querySelector('#list summary').focus()")
    page.key("Enter")
    page.wait("document.querySelector('#list details[open] pre')")


def test_a_finger_sees_values_and_zooms(page, tmp_path):
    page.size(390)
    show(page, make(tmp_path / "run", 13))
    page.do("document.querySelector('figure[data-chart] .narrow svg.plot').scrollIntoView()")
    x, y, w, h = page.do("""{
      const box = document.querySelector('figure[data-chart] .narrow svg.plot')
        .getBoundingClientRect();
      return [box.x, box.y, box.width, box.height];
    }""")
    page.touch((x + w / 2, y + h / 2))
    page.wait("document.querySelector('#tip').style.visibility === 'visible'")
    assert "step" in page.do("document.querySelector('#tip').innerText")
    box = page.do("{const b = document.querySelector('#tip').getBoundingClientRect(); "
                  "return [b.left, b.right]}")  # fmt: skip
    assert box[0] >= 0 and box[1] <= 390
    page.touch(*((x + w * (0.4 + i / 30), y + h / 2) for i in range(10)))
    page.wait("document.querySelector('#from').value !== ''")
    chosen = page.do("[document.querySelector('#from').value, document.querySelector('#to').value]")
    assert 0 < float(chosen[0]) < float(chosen[1]) < 40


CUT = """[...document.querySelectorAll('body *')].filter((one) => {
  if (one.closest('.scroll, pre, option, title, desc, #tip, svg.data, script')) return false;
  if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) return false;
  const box = one.getBoundingClientRect();
  return box.width > 0 && (box.left < -0.5 || box.right > innerWidth + 0.5);
}).map((one) => one.outerHTML.slice(0, 90))"""


@pytest.mark.parametrize("several", [False, True])
def test_nothing_is_cut_on_a_phone(page, tmp_path, several):
    page.size(390)
    folder = pair(tmp_path / ("a-very-long-name-of-a-folder" * 3), 17) if several else make(
        tmp_path / "run", 17)  # fmt: skip
    show(page, folder)
    for kind in ("step", "tokens"):
        choose(page, "#axis", kind)
        assert page.do("document.documentElement.scrollWidth") <= 390
        assert page.do(CUT) == []


CONTRAST = """{
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (node) => {
    for (; node; node = node.parentElement) {
      const color = parts(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const one of document.querySelectorAll('body *')) {
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (!one.checkVisibility() || one.closest('#tip, script, option')) continue;
    const style = getComputedStyle(one);
    const ink = light(parts(one instanceof SVGElement ? style.fill : style.color));
    const paper = light(under(one));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) weak.push([ratio, one.outerHTML.slice(0, 80)]);
  }
  return weak;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(page, tmp_path, dark):
    page.size(1200, dark=dark)
    show(page, pair(tmp_path / "two", 19))
    for summary in range(3):
        page.do(f"document.querySelectorAll('#list summary')[{summary}].click()")
    page.wait("document.querySelectorAll('#list details[open] pre').length >= 3")
    assert page.do(CONTRAST) == []


def test_the_map_of_lengths_holds_the_counts(page, tmp_path):
    folder = make(tmp_path / "run", 31)
    logs = rows(folder)
    show(page, folder)
    told = page.do("""{
      const heat = JSON.parse(document.getElementById('data').textContent).charts
        .find((one) => one.heat).heat;
      return [heat.edges, heat.width, heat.shares,
        document.querySelectorAll('.wide path.cell').length];
    }""")
    assert told[0] == list(range(41)) and told[1] == 2 and told[3] > 2
    for row, column in zip(logs, told[2], strict=True):
        counts = row["response_len_hist"]["counts"]
        whole = sum(counts)
        assert column == pytest.approx([1000 * n / whole for n in counts], abs=0.51)
