"""The verdict's words: keys that exist, commands that parse, plain words, one name a checkpoint."""

from __future__ import annotations

import ast
import json
import random
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from siri_train import report
from siri_train.commands.parser import build_parser
from siri_train.report import write_report
from siri_train.report.data import read_run_folder
from siri_train.report.verdict import judge
from siri_train.report.verdict.text import verdict_text
from tests.train.reading_a_run import unpacked
from tests.train.report_page import check, jsonl
from tests.train.verdict_runs import keep, write_evals, write_metrics

SEEDS = [time.time_ns() % 10**9 + place for place in range(8)]
FOLDER = Path(report.__file__).parent
KEYS = set(json.loads((FOLDER.parent / "config" / "keys.json").read_text()))
SECTIONS = {key.partition(".")[0] for key in KEYS}
DOTTED = re.compile(r"(?<![\w./-])([a-z][a-z_]*(?:\.[a-z_]+)+)(?![\w/])")
FILES = (".jsonl", ".json", ".yaml", ".md", ".html", ".py")
COMMAND = re.compile(r"siri-train [a-z]+(?: (?:--[a-z-]+|RUN|FOLDER|[^\s.;,()]+))*")
UNKNOWN = re.compile(
    r"autocorrelat|\bHolm\b|Bonferroni|bootstrap|surrogate|AR\(1\)|p-value|\bp = |\bp below", re.I
)
"""Words of statistics: docs/report.md has them."""


def literals(path: Path) -> Iterator[str]:
    """The texts of a module, those of f-strings with braces filled, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    notes = {id(node.value) for node in ast.walk(tree)
             if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}  # fmt: skip
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
              for part in node.values}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "9"
                          for part in node.values)  # fmt: skip
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in notes | inside:
                yield node.value


def keys_in(text: str) -> set[str]:
    """The dotted words of a text that look like keys of a recipe."""
    found = set(DOTTED.findall(text))
    return {one for one in found if not one.endswith(FILES) and one.partition(".")[0] in SECTIONS}


def sound(text: str, where: object) -> None:
    """All keys exist, all commands parse, no word of statistics."""
    assert keys_in(text) <= KEYS, (where, keys_in(text) - KEYS)
    for line in COMMAND.findall(text):
        words = shlex.split(line)[1:]
        build_parser().parse_known_args(words)
    assert not UNKNOWN.search(text), (where, UNKNOWN.search(text))


def test_the_check_finds_what_it_looks_for() -> None:
    with pytest.raises(AssertionError):
        sound("set eval.evry to 3", "")
    with pytest.raises(AssertionError):
        sound("corrected for 24 comparisons (Holm)", "")
    with pytest.raises(SystemExit):
        sound("siri-train reprot runs/demo", "")
    sound("eval.jsonl holds nothing; set eval.every; siri-train report RUN --text", "")


@pytest.mark.parametrize("path", sorted((FOLDER / "verdict").glob("*.py")), ids=lambda p: p.stem)
def test_every_text_of_the_modules(path: Path) -> None:
    for text in literals(path):
        sound(text, path.name)


def sick(folder: Path, rng: random.Random) -> Path:
    """A run with drawn illnesses, files that are missing and controls."""
    cycle, cycles = 2 * rng.randint(4, 16), rng.choice([1, 2, 2, 3])
    steps = max(2, cycle * cycles - rng.choice([0, 0, 1, cycle // 2]))
    count, base = rng.choice([12, 150, 400]), np.random.default_rng(rng.randrange(10**9))
    hard = base.random(count)
    for place in range(rng.randint(1, 4)):
        own = folder / ("siri" if not place else f"constant-{place}")
        shape = "cosine" if not place and rng.random() < 0.8 else "constant"
        swing = rng.choice([0.0, 0.1, 0.4])
        lengths = [20 * (1 + swing * np.cos(2 * np.pi * (t - 3) / cycle)) + base.normal()
                   for t in range(steps)]  # fmt: skip
        level, entropy = rng.uniform(0.05, 1.5), []
        for _ in range(steps):
            level *= rng.choice([1.0, 1.02, 0.97])
            entropy.append(level)
        write_metrics(
            own, lengths, cycle=cycle, shape=shape, steps=steps + rng.choice([0, 0, 9]),
            entropy=entropy, truncated_frac=rng.choice([0.0, 0.1, 0.6, 0.97]),
            groups_all_zero=rng.choice([0.1, 0.95]), groups_all_one=rng.choice([0.0, 0.05]),
            rollout_kl=rng.choice([1e-6, 0.2]), rollout_ratio_max=rng.choice([1.1, 30.0]),
        )  # fmt: skip
        if rng.random() < 0.15:
            continue
        every = max(1, cycle // rng.choice([1, 2, 4]))
        when = sorted({*range(0, steps + 1, every), *([steps] if rng.random() < 0.7 else [])})
        budgets = rng.choice([(52,), (52, 20)])
        top, drop = rng.uniform(0.2, 0.95), rng.choice([0.0, 0.0, 0.3])
        answers = {}
        for step in when:
            share = top * min(1, (step + 1) / (steps / 2)) - drop * (step > 0.7 * steps)
            answers[step] = {b: hard < share * (1 if b == 52 else 0.6) for b in budgets}
        names = {0: "start"} | {s: "siri-low" if s % cycle else "siri-high" for s in when
                                if s and not s % (cycle // 2) and shape == "cosine"}  # fmt: skip
        write_evals(own, answers, names=names, by_question=rng.random() < 0.8,
                    tokens={s: 20 + rng.uniform(-5, 5) for s in when})  # fmt: skip
        if rng.random() < 0.8 and when[1:]:
            keep(own, *rng.sample(when[1:], rng.randint(1, len(when) - 1)))
        alarms = rng.sample(["entropy-collapse", "groups-without-signal", "mostly-truncated",
                             "length-not-tracking", "accuracy-decay", "grad-norm-spike"],
                            rng.choice([0, 0, 1, 3]))  # fmt: skip
        jsonl(own / "alarms.jsonl", [
            {"step": steps // 2, "alarm": name, "state": state, "since": steps // 2,
             "cause": "Something.", "action": "Look."}
            for name in alarms for state in ("raised", *rng.choice([(), ("cleared",)]))
        ])  # fmt: skip
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_verdicts_name_what_exists(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for place in range(4):
        verdict = judge(read_run_folder(sick(tmp_path / str(place), rng)))
        parts = [part for one in verdict.findings for part in (one.title, one.text, *one.details)]
        for part in [*parts, verdict.advice, *(one.why for one in verdict.ship)]:
            sound(part, (seed, place))
            assert "could not be judged" not in part, (seed, place, part)
            assert not re.search(r"\.\.|;;|\s[.,;)]|\(\s|  |: \.|None|\bnan\b", part), (seed, part)
        for one in verdict.ship:
            if one.command:
                words = shlex.split(one.command)
                assert build_parser().parse_args(words[1:]).which == str(one.step)
        assert not UNKNOWN.search(verdict_text(verdict)), (seed, place)


def test_one_name_a_checkpoint(tmp_path: Path) -> None:
    """The page's table, the verdict, its text and its JSON call a checkpoint the same."""
    with unpacked(tmp_path) as run:
        verdict = judge(read_run_folder(run))
        table = {(row["run"], row["step"]): row["name"]
                 for row in json.loads((run / "summary.json").read_text())}  # fmt: skip
        page = check(write_report(run)).text
    shipped = {one["step"]: one["checkpoint"] for one in verdict.to_json()["ship"]}
    named = {step: name for step, name in shipped.items() if ("siri", step) in table}
    assert named and all(table["siri", step] == name for step, name in named.items())
    said = json.dumps(verdict.to_json()) + verdict_text(verdict) + page
    assert "siri-low-measured" not in said and "siri-high-measured" not in said
    assert {"siri-low (step 200)" in text for text in (page, verdict_text(verdict))} == {True}
