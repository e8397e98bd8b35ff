"""The browser of responses, and logs that hold anything, in a headless Chromium.

Skipped where no Chromium is installed.
"""

from __future__ import annotations

import json
import random

import pytest

from tests.train.browser import BROWSER
from tests.train.open_page import CHOOSE, choose, show
from tests.train.report_runs import make
from tests.train.silent_page import opened, silent

__all__ = ["opened", "silent"]  # fixtures, which pytest finds by their names

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def test_the_browser_finds_what_the_files_hold(page, tmp_path):
    folder = make(tmp_path / "run", 23)
    logged = [
        {**json.loads(line), "step": int(path.stem[5:])}
        for path in sorted((folder / "rollouts").iterdir())
        for line in path.open(encoding="utf-8")
    ]
    show(page, folder)
    page.do("document.querySelector('#all-responses').click()")
    count = "Number(document.querySelector('#found').textContent.split(' ')[0])"
    assert page.do(count) == len(logged) == 36
    grades = {
        "right": lambda row: row["right"] is True, "wrong": lambda row: row["right"] is False,
        "unjudged": lambda row: row["right"] is None, "truncated": lambda row: row["truncated"],
        "cut-right": lambda row: row["truncated"] and row["right"] is True, "": lambda row: True,
    }  # fmt: skip
    rng = random.Random(23)
    for _ in range(12):
        grade, least, most = rng.choice(list(grades)), rng.randint(0, 50), rng.randint(40, 99)
        step, word = rng.choice(["", "0", "20", "39"]), rng.choice(["", "CHECK", "<b>", "zzz"])
        for key, value in (("grade", grade), ("least", str(least)), ("most", str(most)),
                           ("step", step), ("words", word)):  # fmt: skip
            choose(page, f'[data-filter="{key}"]', value)
        expected = [
            row for row in logged
            if grades[grade](row) and least <= row["tokens"] <= most
            and step in ("", str(row["step"])) and word.lower() in row["response"].lower()
        ]  # fmt: skip
        assert page.do(count) == len(expected)
    page.do("document.querySelector('#all-responses').click()")
    choose(page, '[data-filter="sort"]', "long")
    lengths = page.do("""[...document.querySelectorAll('#list .facts')]
      .map((one) => Number(/([\\d,]+) tokens/.exec(one.textContent)[1]))""")
    assert lengths == sorted((row["tokens"] for row in logged), reverse=True)


def test_a_response_is_shown_with_its_words_and_its_cut(page, tmp_path):
    folder = make(tmp_path / "run", 29)
    path = folder / "rollouts" / "step_000039.jsonl"
    logged = [json.loads(line) for line in path.open(encoding="utf-8")]
    show(page, folder)
    page.do("document.querySelectorAll('#list summary').forEach((one) => one.click())")
    page.wait(f"document.querySelectorAll('#list details .sample').length === {len(logged)}")
    drawn = page.do("""[...document.querySelectorAll('#list .sample')].map((one) => {
      const pre = one.querySelectorAll('pre')[1];
      return [pre.textContent,
        [...pre.querySelectorAll('mark')].map((mark) => [mark.textContent, mark.title]),
        one.querySelector('.cut') && one.querySelector('.cut').textContent];
    })""")
    for row, (text, marks, cut) in zip(logged, drawn, strict=True):
        assert text == row["response"]
        assert marks == [[row["response"][a:b], group] for a, b, group in row["marks"]]
        assert (cut is not None) == row["truncated"]
        if cut is not None:
            assert "truncated here: cap 59 tokens" in cut
            assert ("right all the same" in cut) == (row["right"] is True)


NASTY = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "javascript:alert(1)",
    "' onmouseover='alert(1)", "\"><svg onload=alert(1)>", "{{ 7 * 7 }}", "&lt;b&gt;", "\u202eabc",
    "\x00\ud800", "x" * 9000, "__proto__", "constructor", "${1}", "-->", "%3Cb%3E",
]  # fmt: skip
ODD = [float("nan"), float("inf"), 1e300, 10**400, -5, True, None, [], {}, [[1]], {"a": [None]}]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_logs_hold_is_text(page, tmp_path, seed):
    rng = random.Random(seed)
    folder = make(tmp_path / "run", seed)
    for path in [folder / "metrics.jsonl", folder / "eval.jsonl", folder / "alarms.jsonl",
                 *sorted((folder / "rollouts").iterdir())]:  # fmt: skip
        logged = [json.loads(line) for line in path.open(encoding="utf-8")]
        for row in logged:
            for key in rng.sample(sorted(row), min(len(row), 4)):
                row[key] = rng.choice([*NASTY, *ODD])
            row[rng.choice(NASTY)] = rng.choice(ODD)
        path.write_text("".join(json.dumps(row) + "\n" for row in logged))
    (folder / "summary.json").write_text(json.dumps(
        [{"name": rng.choice(NASTY), "step": 1, "accuracy": 0.5, "tokens": 9.0,
          "run": rng.choice(NASTY)} for _ in range(3)]
    ))  # fmt: skip
    moved = folder.rename(tmp_path / "<b>&'\"{{ x }} run")
    show(page, moved)
    page.do("{ window.alert = () => { throw new Error('ran'); }; }")
    page.do("document.querySelector('#all-responses').click()")
    page.do("document.querySelectorAll('#list summary').forEach((one) => one.click())")
    page.wait("document.querySelectorAll('#list details .sample').length >= 1")
    for kind in ("tokens", "seconds", "step"):
        page.do(CHOOSE % ("'#axis'", json.dumps(kind)) if page.do(
            "Boolean(document.querySelector('#axis'))") else "1")  # fmt: skip
        page.do("""document.querySelectorAll('.wide svg.plot').forEach((svg) => {
          for (const key of ['Home', 'ArrowRight', 'End', '+', 'Escape'])
            svg.dispatchEvent(new KeyboardEvent('keydown', {key}));
        })""")
    # the page's own elements, and no more: nothing that came from a log became one
    assert (
        page.do("document.querySelectorAll('img, iframe, object, embed, a[href^=java]').length")
        == 0
    )
    assert page.do("document.querySelectorAll('script').length") == 3
    assert (
        page.do("""[...document.querySelectorAll('*')].filter((one) =>
      [...one.attributes].some((each) => each.name.startsWith('on'))).length""")
        == 0
    )
    for width in (1200, 390):
        page.size(width)
        wide = page.do("""[...document.querySelectorAll('body *')].filter((one) =>
          one.getBoundingClientRect().right > innerWidth + 1
          && !one.closest('.scroll, svg, option'))
          .map((one) => one.outerHTML.slice(0, 120))""")
        assert page.do("document.documentElement.scrollWidth") <= width, wide
