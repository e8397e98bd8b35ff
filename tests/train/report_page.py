"""Run folders for the tests of the report, and a reader that checks what holds for every page."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from siri_train.report.markup import fingerprint
from siri_train.schedule import LengthSchedule

HOSTILE = '<script>alert("x")</script>&\'\x00\ud800</pre></title>\u202e'
VOID = {"meta", "link", "br", "hr", "img", "input"}


PAPER = "https://arxiv.org/abs/2509.25176"
NUMBERS = set("points d x y x1 x2 y1 y2 cx cy width height transform viewbox".split())


class Checker(HTMLParser):
    """Collects what the tests ask about and refuses tags that do not nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.data: dict = {}
        self.blocks: list[dict] = []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + " "
        elif self.open:
            self.scripts[-1] += data


def check(path: Path) -> Checker:
    """The page parses, nests, refers to nothing outside and draws only finite numbers.

    Its policy allows one style sheet and one script by their hashes and nothing else, and nothing
    in the page needs more: no handlers, no styles in attributes, no addresses but the paper's.
    """
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    idents = [attrs["id"] for _, attrs in checker.tags if "id" in attrs]
    assert len(idents) == len(set(idents))
    kinds = [attrs.get("type") for tag, attrs in checker.tags if tag == "script"]
    # the responses, where there are any, stand in a block of their own
    assert kinds in (["application/json", None], ["application/json", "application/json", None])
    style, *blocks, script = checker.scripts
    checker.blocks = [
        json.loads(block, parse_constant=lambda word: pytest.fail(f"{word} in the data"))
        for block in blocks
    ]
    policy = next(a["content"] or "" for _, a in checker.tags if "http-equiv" in a)
    assert policy == (
        f"default-src 'none'; style-src {fingerprint(style)}; script-src {fingerprint(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"\beval\b|new Function|innerHTML|document\.write|import\(", script)
    assert not {"img", "link", "iframe", "object", "base"} & {tag for tag, _ in checker.tags}
    for tag, attrs in checker.tags:
        assert not {"src", "style", "srcset", "action"} & set(attrs), (tag, attrs)
        assert not any(key.startswith("on") for key in attrs)
        assert attrs.get("href", PAPER) == PAPER
        if "aria-labelledby" in attrs:
            assert set((attrs["aria-labelledby"] or "").split()) <= set(idents)
        for key in NUMBERS & set(attrs) if tag != "meta" else ():
            numbers = re.fullmatch(r"[-\d., MVHhZ%]+|translate\([-\d. ]+\)", attrs[key] or "")
            assert numbers, (tag, key, attrs[key])
        if "data-limits" in attrs:
            low, high, below, above = map(float, (attrs["data-limits"] or "").split())
            assert low < high and below < above and math.isfinite(high - low + above - below)
    checker.data = checker.blocks[-1]
    return checker


def metric(schedule: LengthSchedule, step: int) -> dict:
    wave = math.cos(step / 3)
    return {
        "step": step, "cycle": schedule.cycle_index(step), "phase": schedule.phase(step),
        "cap": schedule(step), "reward_mean": 0.6, "accuracy": 0.6 + 0.1 * wave,
        "accuracy_finished": 0.8, "truncated_frac": 0.1, "response_len_mean": 20 + wave,
        "response_len_p50": 19, "response_len_p95": 28, "groups_all_zero": 0.1,
        "groups_all_one": 0.3, "entropy": 0.7, "loss": 0.0, "grad_norm": 0.5 + 0.1 * wave,
        "lr": 1e-3, "clip_frac_low": 0.01, "clip_frac_high": 0.02, "ratio_max": 1.1,
        "rollout_kl": None, "dense_row_frac": None, "tail_mass_max": None,
        "screened_frac": None, "screen_error_max": None,
        "backtrack_per_1k": 12.5, "tokens": 1000, "rollout_tokens_per_s": 9000.0,
        "train_tokens_per_s": 12000.0, "time_rollout": 0.1, "time_train": 0.1,
        "peak_memory_gb": 0.5,
    }  # fmt: skip


def evaluation(step: int, name: str | None, accuracy: float, tokens: float) -> dict:
    return {
        "step": step, "name": name, "budgets": [32, 16], "accuracy": [accuracy, accuracy - 0.2],
        "accuracy_interval": [[accuracy - 0.03, accuracy + 0.02], [0.1, 0.9]], "tokens": tokens,
        "tokens_at": [tokens, 12.0], "truncated_frac": [0.01, 0.3], "backtrack_per_1k": 20.0,
        "questions": 400, "samples": 2,
    }  # fmt: skip


def rollout(text: str) -> dict:
    return {
        "prompt": "2 + 2 = ?", "response": text, "reward": 1.0, "truncated": False,
        "tokens": 7, "answer": "4", "gold": "4",
    }  # fmt: skip


SUMMARY = [
    {"name": "start", "step": 0, "accuracy": 0.6, "accuracy_interval": [0.57, 0.63],
     "tokens": 40.0, "path": "start"},
    {"name": "constant-cap", "step": 60, "accuracy": 0.61, "accuracy_interval": [0.58, 0.64],
     "tokens": 30.0, "path": "c", "run": "constant"},
    {"name": "siri-low", "step": 45, "accuracy": 0.9, "accuracy_interval": [0.88, 0.92],
     "tokens": 20.0, "path": "l", "run": "siri", "accuracy_low_budget": 0.85,
     "accuracy_low_budget_interval": [0.8, 0.9]},
    {"name": "siri-high", "step": 60, "accuracy": 0.96, "accuracy_interval": [0.94, 0.98],
     "tokens": 28.0, "path": "h", "run": "siri"},
]  # fmt: skip


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, shape: str, steps: int = 60) -> None:
    schedule = LengthSchedule(shape, 32, 16, 30)
    jsonl(folder / "metrics.jsonl", [metric(schedule, t) for t in range(steps)])
    rows = [evaluation(t, None, 0.6 + t / 200, 40 - t / 4) for t in range(0, steps + 1, 15)]
    jsonl(folder / "eval.jsonl", rows)
    jsonl(folder / "rollouts" / "step_000000.jsonl", [rollout("Wait, it is 4.")])
    jsonl(folder / "rollouts" / "step_000059.jsonl", [rollout("It is 4.")] * 70)
    (folder / "config.yaml").write_text(f"schedule:\n  shape: {shape}\n")
    manifest = {"siri-low": {"step": 45}, "siri-high": {"step": 60}, "cycles": []}
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))


def make_demo(folder: Path, steps: int = 60) -> Path:
    """The folder that the demo leaves: SIRI, its control, and their summary."""
    make_run(folder / "siri", "cosine", steps)
    make_run(folder / "constant", "constant", steps)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder
