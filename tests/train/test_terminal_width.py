"""No line of a table or a text is wider than the terminal, or than COLUMNS says in a pipe."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from siri_train.ablate.compare import set_figures
from siri_train.ablate.table import table
from siri_train.cli import main
from siri_train.report.eval_table import evaluation_table
from siri_train.report.table import summary_table
from siri_train.terminal.lines import broken, log_width, terminal_width
from siri_train.terminal.table import aligned
from tests.train.report_page import evaluation, make_demo
from tests.train.test_ablate_compare import row_of
from tests.train.test_compare import CONTROL, SIRI
from tests.train.test_compare import write as write_compared
from tests.train.test_terminal_text import word
from tests.train.test_tokens_command import row, write


def too_wide(text: str, width: int) -> list[str]:
    """The lines that are wider, and are neither a single word nor a command to be copied."""
    return [
        line
        for line in text.splitlines()
        if cell_len(line) > width
        and len(line.strip(" |").split()) > 1
        and not line.strip().startswith("siri-train ")
    ]


def test_columns_says_the_width_else_the_terminal_else_80(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = time.time_ns()
    width = random.Random(seed).randint(1, 500)
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as window, open(os.devnull, "w") as pipe:
        fcntl.ioctl(window, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        for wrong in (None, "", "0", "-5", "many"):
            if wrong is None:
                monkeypatch.delenv("COLUMNS", raising=False)
            else:
                monkeypatch.setenv("COLUMNS", wrong)
            assert (terminal_width(window), terminal_width(pipe)) == (width, 80), seed
        monkeypatch.setattr("sys.stdout", None)
        assert (terminal_width(), log_width()) == (80, 79)
        monkeypatch.setenv("COLUMNS", str(width + 1))
        assert terminal_width(window) == terminal_width(pipe) == terminal_width() == width + 1
        assert log_width() == width
    os.close(reader)


def test_drawn_tables_at_every_width() -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    shapes = dict.fromkeys(("table", "list", "names"), 0)
    for width in 3 * [*range(40, 121)]:
        columns = rng.randint(1, 9)
        keys = rng.randint(1, 3)

        def cell(most: int) -> str:
            return " ".join(word(rng, most) for _ in range(rng.randint(1, 4)))

        head = [cell(7) for _ in range(columns)]
        body = [[cell(rng.choice([4, 12])) for _ in head] for _ in range(rng.randint(0, 4))]
        text = aligned(head, body, (0,), width, keys=keys, breaks=(2,))
        assert not too_wide(text, width), (seed, width, too_wide(text, width))
        said = set(text.replace("|", " ").split())
        for one in (one for line in body for one in line):
            assert "…" in text or not set(one.split()) - said, (seed, one)
        shapes["table" if text.startswith("|") else "list"] += 1
        shapes["names"] += "…" in text
    assert min(shapes.values()) > 0, (seed, shapes)


def test_broken_lines_keep_every_word() -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    for _ in range(300):
        text = "\n".join(
            " " * rng.randrange(5) + (" " * rng.randint(1, 3)).join(word(rng, 12) for _ in range(9))
            for _ in range(rng.randint(1, 3))
        )
        width = rng.randint(20, 120)
        found = broken(text, width)
        assert found.split() == text.split() and not too_wide(found, width), seed
        assert max(map(cell_len, text.splitlines())) > width or found == text


@pytest.mark.parametrize("columns", ["40", None, "drawn"])
def test_commands_in_a_pipe(
    columns: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    width = {"40": 40, None: 80}.get(columns) or rng.randint(41, 130)
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)  # short paths
    for name, plan in (("siri", SIRI), ("constant", CONTROL)):
        write_compared(Path("c") / name, np.random.default_rng(seed), plan)
    make_demo(Path("demo"))
    write(Path("words"), [row(step, rng, rng.random()) for step in range(120)])
    longest = 0
    for command in (
        ["compare", "c"], ["report", "demo", "--text"], ["tokens", "words"],
        ["tokens", "words", "--words", "wait,so"], ["schedule", "demo.yaml", "--svg", "s.svg"],
        ["ablate", "demo.yaml", "--vary", "train.lr=1e-3,2e-3", "--dry-run"], ["doctor"],
    ):  # fmt: skip
        assert main(command) == 0, (seed, command)
        text = capsys.readouterr().out
        assert not too_wide(text, width), (seed, width, command, too_wide(text, width))
        longest = max(longest, *(cell_len(line) for line in text.splitlines()))
    assert longest > width - 10, seed  # the room is used


def test_tables_of_evaluations_summaries_and_ablations() -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    for width in (40, *rng.sample(range(41, 130), 20)):
        rows = [
            row_of(f"arm {word(rng, 30)}", "last", [[rng.random() for _ in range(20)]] * 2)
            for _ in range(3)
        ]
        set_figures(rows)
        one: dict[str, Any] = {
            **evaluation(8, None, rng.random(), 10 ** rng.uniform(1, 4)), "samples": 4,
            "questions": 500, "pass_at": {"1": [0.5] * 3, "4": [0.7] * 3},
        }  # fmt: skip
        count = len(one["budgets"])
        one |= {"pass_at": {"1": [0.5] * count, "4": [0.7] * count}}
        one |= {"tokens_at": [1234.5] * count, "truncated_frac": [0.25] * count}
        summary = [
            {"name": name, "step": 1920, "accuracy": 0.5, "accuracy_interval": [0.4, 0.6],
             "tokens": 5000, "trained_tokens": 10**9, "train_seconds": 10**5}
            for name in ("start", "constant-cap", "siri-low", word(rng, 50))
        ]  # fmt: skip
        for text in (
            table(rows, rows[0], width), evaluation_table(one, width),
            evaluation_table(one | {"sets": {word(rng, 30): one, "b": one}}, width),
            summary_table(summary, width),
        ):  # fmt: skip
            assert not too_wide(text, width), (seed, width, too_wide(text, width))
