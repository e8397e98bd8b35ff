"""Tables no wider than the terminal, lines broken where a reader would, every encoding."""

from __future__ import annotations

import io
import random
import re
import string

import pytest
from rich.cells import cell_len

from siri_train.terminal.encodable import encodable
from siri_train.terminal.lines import cut, joined, shortened, words
from siri_train.terminal.table import aligned

LETTERS = string.ascii_lowercase + "数学思考é"


def word(rng: random.Random, most: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, most)))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def blocks(text: str) -> tuple[list[list[list[str]]], dict[str, str]]:
    """The tables of a text, their rule left out, and what shortened names stand for."""
    parts = [part.splitlines() for part in text.split("\n\n")]
    tables = [part for part in parts if part[0].startswith("|")]
    named: list[str] = []
    for line in (line for part in parts if part not in tables for line in part):
        if line.startswith("    "):  # goes on
            named[-1] += f" {line.strip()}"
        else:
            named.append(line)
    whole = dict(line.split(": ", 1) for line in named)
    return [[cells(one) for place, one in enumerate(t) if place != 1] for t in tables], whole


def test_every_cell_is_whole_somewhere_and_no_line_too_wide() -> None:
    rng = random.Random()
    divided = shortened_names = numbered = 0
    for _ in range(200):
        columns, keys = rng.randint(2, 11), rng.randint(1, 2)
        keys = min(keys, columns - 1)
        head = [f"h{i} {word(rng, 8)}" for i in range(columns)]
        longest = rng.choice([6, 20, 60])
        body = [
            [f"r{i}{word(rng, longest if place < keys else 14)}" for place in range(columns)]
            for i in range(rng.randint(1, 6))
        ]
        breaks = sorted(rng.sample(range(columns), rng.randint(0, columns - 1)))
        width = rng.randint(60, 120)
        text = aligned(head, body, (0,), width, keys=keys, breaks=breaks)
        found, whole = blocks(text)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert max(map(cell_len, lines)) <= width
        for table in found:
            assert len({len(line) for line in table}) == 1
        divided += len(found) > 1
        shortened_names += bool(whole)
        if found[0][0][0] == "row":  # named once, then numbered
            numbered += 1
            assert [line[0] for line in found[0][1:]] == [str(i + 1) for i in range(len(body))]
            whole_lines = [
                [cell for table in found for cell in table[row][1:]] for row in range(len(body) + 1)
            ]
            whole_lines = [
                [whole.get(c, c) if i < keys else c for i, c in enumerate(line)]
                for line in whole_lines
            ]
            assert whole_lines == [head, *body]
            assert all([r[0] for r in table] == [r[0] for r in found[0]] for table in found)
            continue
        of = [
            [line[:keys] for line in found[0]][row]
            + [cell for table in found for cell in table[row][keys:]]
            for row in range(len(body) + 1)
        ]
        of = [[whole.get(c, c) if i < keys else c for i, c in enumerate(line)] for line in of]
        assert of == [head, *body]
        for table in found[1:]:  # each table names its rows in the same words
            assert [line[:keys] for line in table] == [line[:keys] for line in found[0]]
        wide = aligned(head, body, (0,), None, keys=keys)
        assert blocks(wide)[0] == [[head, *body]]
        if cell_len(wide.splitlines()[0]) <= width:
            assert text == wide
    assert divided > 20 and shortened_names > 5 and numbered > 5


def test_columns_of_one_subject_stay_together() -> None:
    head = ["name", *(f"column {i}" for i in range(6))]
    found, _ = blocks(aligned(head, [["x"] * 7], (0,), 60, breaks=(4,)))
    assert [table[0][1:] for table in found] == [head[1:4], head[4:7]]
    found, _ = blocks(aligned(head, [["x"] * 7], (0,), 60))
    assert [len(table[0]) for table in found] == [5, 3]


def test_names_that_would_look_alike_are_numbered() -> None:
    names = ["a" * 20 + str(i) + "z" * 20 for i in range(4)]
    found, whole = blocks(aligned(["n", "v"], [[name, "v" * 20] for name in names], (0,), 50))
    shown = [line[0] for line in found[0][1:]]
    assert len(set(shown)) == 4 and [whole[name] for name in shown] == names


def test_a_list_where_no_table_fits() -> None:
    text = aligned(["name", "accuracy"], [["one", "61.0 % (58.0 to 64.0)"]], (0,), 20)
    assert text == "one\n  accuracy: 61.0 %\n    (58.0 to 64.0)"
    assert aligned(["name", "accuracy"], [], (0,), 16) == "name, accuracy"


def test_a_terminal_without_plus_minus_has_straight_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", raw)
    text = aligned(["name", "accuracy"], [["one", "61.0 % ± 3.0"], ["two", "−"]], (0,), 80)
    assert text.isascii() and "61.0 % +- 3.0" in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_parts_are_never_broken() -> None:
    rng = random.Random()
    for _ in range(300):
        parts = [
            " ".join(word(rng, 9) for _ in range(rng.randint(1, 4)))
            for _ in range(rng.randint(1, 9))
        ]
        between, width = rng.choice(["  ", ", ", " "]), rng.randint(30, 100)
        head = rng.choice(["run  1/2", "run: evaluation:"])
        lines = joined(head, parts, width, between)
        for line in lines:
            assert cell_len(line) <= width or line.strip(", ") in parts or line.strip() == head
        said = " ".join(" ".join(lines).split())
        assert said == " ".join(f"{head} {between.join(parts)}".split())
        assert all(line.startswith("    ") for line in lines[1:])
    assert words("note:", "one two three", 12) == ["note: one", "    two", "    three"]
    assert words("", "one two", 80) == ["one two"] and words("", "", 80) == [""]


def test_shortened_and_cut_keep_to_the_width() -> None:
    rng = random.Random()
    for _ in range(500):
        text, width = word(rng, 40), rng.randint(0, 50)
        mark = rng.choice(["…", "..."])
        for change in (shortened, cut):
            found = change(text, width, mark)
            assert cell_len(found) <= width
            assert found == text or cell_len(text) > width
    assert shortened("abcdefghij", 5) == "ab…ij" and cut("abcdefghij", 5) == "abcd…"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "no-such", None])
def test_whatever_the_encoding_it_can_be_written(encoding: str | None) -> None:
    class Stream:
        def __init__(self, encoding: str | None) -> None:
            self.encoding = encoding

    text = encodable("名 ± − … ┤⠉▼ –", Stream(encoding))
    if encoding in ("utf-8", None):
        assert text == "名 ± − … ┤⠉▼ –"
    else:
        text.encode("ascii" if encoding == "no-such" else str(encoding))
        assert text.startswith("\\u540d +- - .")
