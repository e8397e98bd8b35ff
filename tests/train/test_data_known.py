"""``siri-train data``: public sets from files of their form; the rows here are made up."""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.data import SourceConfig
from siri_train.config.method import RewardConfig
from siri_train.data.gate import check_data
from siri_train.data.known import fetch
from siri_train.data.known.registry import KNOWN, get_hint
from siri_train.data.problems import load_problems
from siri_train.data.questions import find_first, load_questions
from siri_train.data.rows import MissingDataError
from siri_train.data.sources import read_sources
from siri_train.rewards import ExactVerifier


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and the verifier that needs no processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("siri_train.commands.data._verifier", lambda: (ExactVerifier(), "exact"))


def lines(file: str | Path, rows: list[dict[str, Any]]) -> str:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def rows_in(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def card(name: str) -> dict[str, Any]:
    return json.loads(Path(name).read_text(encoding="utf-8"))


FORMS = {
    "aime24": {"id": 60, "problem": "Find $a$.", "solution": "So \\boxed{7}.", "answer": "7"},
    "aime24-other": {"problem": "Find $a$.", "answer": "\\boxed{7}", "id": 60},
    "aime24-solution": {"ID": "I-1", "Problem": "Find $a$.", "Solution": "x", "Answer": 7},
    "aime24-boxed-solution": {"id": 60, "problem": "Find $a$.", "solution": "So \\boxed{7}."},
    "aime25": {"problem": "Find $a$.", "answer": "7", "id": "0"},
    "aime25-parts": {"question": "Find $a$.", "answer": "7"},
    "amc": {"id": 0, "problem": "Find $a$.", "answer": 7.0, "url": "x"},
    "amc-list": {"question": "Find $a$.", "answer": ["7"]},
    "math500": {"problem": "Find $a$.", "solution": "s", "answer": "7", "unique_id": "a/7.json"},
    "deepscaler": {"problem": "Find $a$.", "answer": "7", "solution": "s"},
    "math500-verl": {
        "prompt": [{"role": "user", "content": "Find $a$."}],
        "reward_model": {"ground_truth": "7", "style": "rule"},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_known_form_becomes_question_and_answer(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, row = form.split("-")[0], FORMS[form]
    lines("in.jsonl", [row])
    more = ["--validation", "0"] if name == "deepscaler" else []
    assert main(["data", "get", name, "--from", "in.jsonl", *more]) == 0
    folder = name == "deepscaler"
    file = f"data/{name}/train.jsonl" if folder else f"data/{name}.jsonl"
    (written,) = rows_in(file)
    assert (written["question"], written["answer"]) == ("Find $a$.", "7")
    number = next((row[key] for key in ("id", "ID", "unique_id") if key in row), None)
    assert written.get("id") == number
    about = card(f"data/{name}/card.json" if folder else f"data/{name}.card.json")
    split = about["splits"]["all"]
    assert split["read"] == split["written"] == 1 and not split["left_out"]
    assert about["read"][0]["sha256"] == fetch.file_sha256(Path("in.jsonl"))
    assert about["written"][0]["sha256"] == fetch.file_sha256(Path(file))
    assert about["licence"] == KNOWN[name].licence and about["date"]
    told = capsys.readouterr().out
    assert f"1 rows read, {KNOWN[name].expected['']} expected" in told
    (question,) = load_questions(file)
    assert question.answer == "7"


@pytest.mark.parametrize("kind", ["json", "csv", "jsonl.gz", "parquet", "folder"])
def test_every_kind_of_file(kind: str) -> None:
    rows = [{"problem": f"Find $a_{n}$, please", "answer": str(n)} for n in range(3)]
    file = Path(f"set.{kind}")
    if kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "csv":
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["problem", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl.gz":
        file.write_bytes(gzip.compress(Path(lines("x.jsonl", rows)).read_bytes()))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        lines(file / "test.jsonl", rows)
    assert main(["data", "get", "aime25", "--from", str(file)]) == 0
    assert [row["answer"] for row in rows_in("data/aime25.jsonl")] == ["0", "1", "2"]


def test_the_hub_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two configurations of a mirror, whose only split has another name than the set's own."""
    asked = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> list[Any]:
        asked.append((name, config, split, revision))
        if split != "validation":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['validation'].")
        return [{"question": f"Find $a$ of {config}.", "answer": "7"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    parts = ["--from", "hub:other/AIME:I", "--from", "hub:other/AIME:II@abc"]
    assert main(["data", "get", "aime25", *parts]) == 0
    assert [row["question"] for row in rows_in("data/aime25.jsonl")] == [
        "Find $a$ of I.",
        "Find $a$ of II.",
    ]
    assert asked[-1] == ("other/AIME", "II", "validation", "abc")
    first = card("data/aime25.card.json")["read"]
    assert [part["rows"] for part in first] == [1, 1] and len({p["sha256"] for p in first}) == 2


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("lacking", ["package", "network"])
def test_without_a_network_it_says_which_file_to_put_where(
    name: str, lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no way\nto the hub")

    module = None if lacking == "package" else types.SimpleNamespace(load_dataset=load)
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert main(["data", "get", name]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and KNOWN[name].hub in error
    assert all(file in error for file in KNOWN[name].files.values())
    command = f"siri-train data get {name} --from "
    assert command + next(iter(KNOWN[name].files.values())).rpartition("/")[2] in error
    assert not Path("data").exists()


def test_gsm8k_keeps_the_form_that_its_recipe_reads() -> None:
    for split in ("train", "test"):
        lines(
            f"in/{split}.jsonl",
            [{"question": f"How many in {split}?", "answer": "3 + 4 = 7\n#### 7"}],
        )
    assert main(["data", "get", "gsm8k", "--from", "in"]) == 0
    source = SourceConfig(
        kind="file",
        path=["data/gsm8k", "hub:openai/gsm8k:main"],
        answer_field="answer",
        answer_after="####",
        solution_field="answer",
    )
    (question,) = read_sources([source], "test", "data.eval")
    assert (question.prompt, question.answer) == ("How many in test?", "7")
    assert main(["data", "get", "gsm8k", "--from", "in/train.jsonl", "--to", "other"]) == 0
    assert not Path("other/gsm8k/test.jsonl").exists()


def test_problems_of_programs_stay_as_they_are() -> None:
    def problem(number: int) -> dict[str, Any]:
        return {
            "task_id": number,
            "text": "Write a function to add one.",
            "code": "def one(n):\n    return n + 1\n",
            "test_list": ["assert one(1) == 2"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }

    rows = [problem(n) for n in (1, 10, 11, 510, 511, 600, 601, 974)]
    assert main(["data", "get", "mbpp", "--from", lines("mbpp.jsonl", rows)]) == 0
    for split in ("prompt", "test", "validation", "train"):
        assert len(load_problems("data/mbpp", split=split)) == 2
    # The same from the folder that holds this file alone.
    folder = Path("clone")
    folder.mkdir()
    Path(lines("mbpp.jsonl", rows)).rename(folder / "mbpp.jsonl")
    assert main(["data", "get", "mbpp", "--from", str(folder), "--to", "other"]) == 0
    for split in ("train", "validation", "test"):
        ours, theirs = (Path(to, "mbpp", f"{split}.jsonl") for to in ("data", "other"))
        assert ours.read_bytes() == theirs.read_bytes(), split
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def one(n):\n",
        "canonical_solution": "    return n + 1\n",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        "entry_point": "one",
    }
    broken = {**row, "entry_point": "class"}
    assert main(["data", "get", "humaneval", "--from", lines("h.jsonl", [row, broken])]) == 0
    assert rows_in("data/humaneval.jsonl") == [row]
    assert card("data/humaneval.card.json")["splits"]["all"]["left_out"] == {"not readable": 1}


def drawn_training(seed: int) -> list[dict[str, Any]]:
    """Rows as DeepScaleR's: with repeats, two answers, and answers that nothing can match."""
    draw = random.Random(seed)
    rows = [
        {"problem": f"Case {n}: Find the value of $x + {n}$.", "answer": str(n), "solution": "s"}
        for n in range(40)
    ]
    rows += [{**rows[n], "problem": rows[n]["problem"].upper()} for n in draw.sample(range(20), 3)]
    rows += [{**rows[n], "answer": "-5"} for n in draw.sample(range(20, 30), 2)]
    rows += [{"problem": "Which?", "answer": "", "solution": ""}]
    rows += [{"problem": "Prove it.", "answer": "it is so because every one of the numbers is odd"}]
    rows += [{"problem": "Half of \frac{1}{2}?", "answer": "1"}]
    draw.shuffle(rows)
    return rows


def test_a_training_set_passes_the_checks_before_a_run() -> None:
    seed = time.time_ns()
    rows = drawn_training(seed)
    held = [{"question": "case 35: find the value of $x + 35$", "answer": "35"}]
    lines("data/aime24.jsonl", held)
    lines("in.jsonl", rows)
    assert main(["data", "get", "deepscaler", "--from", "in.jsonl", "--validation", "5"]) == 0
    about = card("data/deepscaler/card.json")["splits"]["all"]
    assert about["left_out"] == {
        "not readable": 1,
        "text that lost a backslash": 1,
        "answer that no response can match": 1,
        "question with two answers": 4,
        "repeats an earlier row": 3,
        "question of aime24": 1,
    }, seed
    assert about["held_out"] == {"aime24": 1, "aime25": None, "amc": None, "math500": None}
    assert about["read"] == len(rows) == about["written"] + sum(about["left_out"].values())
    train = load_questions("data/deepscaler", split="train")
    apart = load_questions("data/deepscaler", split="validation")
    assert len(apart) == 5 and len(train) + 5 == about["written"], seed
    check_data(train, apart, RewardConfig(verifier="exact"))
    check_data(train, load_questions("data/aime24.jsonl"), RewardConfig(verifier="exact"))


def test_the_same_question_falls_on_the_same_side() -> None:
    seed = time.time_ns()
    draw = random.Random(seed)
    rows = [{"problem": f"Find the value of $x + {n}$.", "answer": str(n)} for n in range(60)]
    sides = []
    for turn in range(3):
        draw.shuffle(rows)
        spelt = [{**r, "problem": draw.choice([str.upper, str.lower])(r["problem"])} for r in rows]
        lines("in.jsonl", spelt)
        to = f"to{turn}"
        words = ["data", "get", "deepscaler", "--from", "in.jsonl", "--validation", "9"]
        assert main([*words, "--to", to]) == 0
        sides.append({row["answer"] for row in rows_in(f"{to}/deepscaler/validation.jsonl")})
    assert len(sides[0]) == 9 and sides[0] == sides[1] == sides[2], seed


def test_held_out_questions_move_no_other_to_validation() -> None:
    """Some drawn from either side become a test set's: the rest of both sides stays as it was."""
    seed = time.time_ns()
    draw = random.Random(seed)
    rows = [{"problem": f"Case {n}: $x + {draw.random()}$?", "answer": str(n)} for n in range(60)]
    lines("in.jsonl", rows)
    words = ["data", "get", "deepscaler", "--from", "in.jsonl", "--validation", "20", "--force"]
    assert main(words) == 0
    before = [rows_in(f"data/deepscaler/{split}.jsonl") for split in ("train", "validation")]
    assert [len(side) for side in before] == [40, 20]
    for _ in range(3):
        gone = [draw.sample(side, draw.randint(1, 15)) for side in before]
        held = [{**row, "question": row["question"].upper()} for row in sum(gone, [])]
        lines("data/math500.jsonl", held)
        assert main(words) == 0
        for split, side, less in zip(("train", "validation"), before, gone, strict=True):
            left = [row for row in side if row not in less]
            assert rows_in(f"data/deepscaler/{split}.jsonl") == left, seed
    lines("data/math500.jsonl", before[1])
    assert main(words) == 1  # no validation question is left
    assert rows_in("data/deepscaler/validation.jsonl") == left, seed


def test_an_equal_file_stays_and_another_needs_force(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "get", "aime25", "--from", lines("in.jsonl", [FORMS["aime25"]])]
    assert main(words) == 0
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path("data").iterdir()}
    assert main(words) == 0
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path("data").iterdir()}
    lines("in.jsonl", [{**FORMS["aime25"], "answer": "8"}])
    capsys.readouterr()
    assert main(words) == 1
    assert "--force" in capsys.readouterr().err
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path("data").iterdir()}
    assert main([*words, "--force"]) == 0
    assert rows_in("data/aime25.jsonl")[0]["answer"] == "8"


@pytest.mark.parametrize(
    "rows, more, said",
    [
        ([{"frage": "a", "answer": "7"}], [], "the columns are frage, answer; name one with --que"),
        ([{"problem": "a", "wert": "7"}], [], "the columns are problem, wert; name one with --ans"),
        ([{"problem": "a", "answer": "7"}], ["--answer-field", "x"], "no column 'x'"),
        ([FORMS["aime25"], {"problem": "b"}], ["--strict"], "--strict: 1 rows left out"),
        ([{"problem": "a", "answer": "$"}], [], "no row is left of 1"),
        ([FORMS["aime25"]], ["--validation", "3"], "it is an option of deepscaler"),
        ([], [], "holds no row"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(
    rows: list[dict[str, Any]], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "get", "aime25", "--from", lines("in.jsonl", rows), *more]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("data").exists()


def test_columns_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    lines("in.jsonl", [{"frage": "Find $a$.", "wert": 7}])
    fields = ["--question-field", "frage", "--answer-field", "wert"]
    assert main(["data", "get", "aime25", "--from", "in.jsonl", *fields]) == 0
    assert "question = frage, answer = wert" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path, command",
    [
        ("data/aime24.jsonl", "siri-train data get aime24 makes"),
        ("data/deepscaler/train.jsonl", "siri-train data get deepscaler makes"),
        ("data/deepscaler", "siri-train data get deepscaler makes"),
        ("/sets/math500.jsonl", "siri-train data get math500 --to /sets makes"),
    ],
)
def test_a_missing_file_of_a_known_set_names_the_command(path: str, command: str) -> None:
    assert command in get_hint(Path(path))
    with pytest.raises(MissingDataError, match=command):
        find_first([path])
    with pytest.raises(ConfigError, match=command):
        read_sources([SourceConfig(kind="file", path=path)], "train", "data.train")


def test_other_missing_files_get_no_hint() -> None:
    assert get_hint(Path("data/aime24.json")) == get_hint(Path("data/mine.jsonl")) == ""


def test_list_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    lines("data/aime24.jsonl", [FORMS["aime24"]])
    assert main(["data", "list", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(found) == list(KNOWN)
    assert found["aime24"]["files"] == {"data/aime24.jsonl": True}
    assert not any(found["deepscaler"]["files"].values())
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(entry.hub in shown and entry.licence in shown for entry in KNOWN.values())
