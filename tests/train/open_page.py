"""Opens the page of a run folder in a browser, and works its controls."""

from __future__ import annotations

import json
from pathlib import Path

from siri_train.report import write_report
from tests.train.browser import Page

CHOOSE = """{
  const input = document.querySelector(%s); input.value = %s;
  for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, {bubbles: true}));
}"""


def choose(page: Page, what: str, value: str) -> None:
    page.do(CHOOSE % (json.dumps(what), json.dumps(value)))


def show(page: Page, folder: Path, rest: str = "") -> None:
    page.call("Page.navigate", url="about:blank")  # else only the part behind # would change
    page.wait("location.href === 'about:blank'")
    page.open(write_report(folder).as_uri() + rest)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]
