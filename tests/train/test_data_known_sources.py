"""``siri-train data get`` on folders with configurations, and on sources that are damaged."""

from __future__ import annotations

import gzip
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.data.known.fetch import read_set
from siri_train.data.known.registry import KNOWN
from siri_train.data.rows import DataError
from siri_train.rewards import ExactVerifier


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and the verifier that needs no processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("siri_train.commands.data._verifier", lambda: (ExactVerifier(), "exact"))


def rows_in(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def parquet(file: str, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(pyarrow.Table.from_pylist(rows), file)


def gsm8k_rows(config: str, split: str, number: int = 3) -> list[dict[str, Any]]:
    return [{"question": f"{config} {split} {n}?", "answer": f"#### {n}"} for n in range(number)]


@pytest.mark.parametrize("main_folder", ["main", "data", "main in two parts"])
def test_one_configuration_of_a_folder_is_read(main_folder: str) -> None:
    """openai/gsm8k has ``main/`` and ``socratic/``; a copy with one configuration has ``data/``."""
    config = main_folder.split()[0]
    for split in ("train", "test"):
        rows = gsm8k_rows(config, split)
        parts = [rows[:2], rows[2:]] if "parts" in main_folder else [rows]
        for n, part in enumerate(parts):
            parquet(f"in/{config}/{split}-{n:05}-of-{len(parts):05}.parquet", part)
        if config == "main":
            parquet(f"in/socratic/{split}-00000-of-00001.parquet", gsm8k_rows("socratic", split))
    assert main(["data", "get", "gsm8k", "--from", "in"]) == 0
    for split in ("train", "test"):
        asked = [row["question"] for row in rows_in(f"data/gsm8k/{split}.jsonl")]
        assert asked == [row["question"] for row in gsm8k_rows(config, split)]


@pytest.mark.parametrize(
    "name, folders",
    [
        ("gsm8k", ["other", "socratic"]),
        ("gsm8k", ["socratic"]),
        ("gsm8k", ["data", "socratic"]),
        ("aime25", ["AIME2025-I", "AIME2025-II"]),
    ],
)
def test_a_folder_of_other_configurations_is_refused(
    name: str, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        for split in ("train", "test"):
            rows = gsm8k_rows(folder, split)
            if name != "gsm8k":
                rows = [{**row, "answer": row["answer"][-1]} for row in rows]
            parquet(f"in/{folder}/{split}-00000-of-00001.parquet", rows)
    assert main(["data", "get", name, "--from", "in"]) == 1
    error = capsys.readouterr().err
    assert f"is in {', '.join(folders)}" in error and error.count("\n") == 1
    assert f"--from in/{folders[0]}" in error and not Path("data").exists()
    assert main(["data", "get", name, "--from", f"in/{folders[0]}"]) == 0


@contextmanager
def served(answer: bytes) -> Iterator[str]:
    """The address of a server of this machine that sends these bytes and hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a/test.jsonl"
        finally:
            server.shutdown()
            thread.join()


BODY = b"".join(b'{"problem": "Find $a$ of %d.", "answer": "%d"}\n' % (n, n) for n in range(4))
OK = b"HTTP/1.1 200 OK\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "head, body",
    [
        (b"Content-Length: %d\r\n" % len(BODY), BODY),
        (b"Transfer-Encoding: chunked\r\n", CHUNK + b"0\r\n\r\n"),
        (b"", BODY),
    ],
)
def test_an_address_is_read(head: bytes, body: bytes) -> None:
    with served(OK + head + b"\r\n" + body) as address:
        assert main(["data", "get", "aime25", "--from", address]) == 0
    assert [row["answer"] for row in rows_in("data/aime25.jsonl")] == ["0", "1", "2", "3"]
    about = json.loads(Path("data/aime25.card.json").read_text(encoding="utf-8"))
    assert about["read"][0]["source"] == address


LINE = BODY.index(b"\n") + 1


@pytest.mark.parametrize(
    "answer, said",
    [
        (OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:LINE], f"{LINE} of {len(BODY)}"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK, "cannot be downloaded"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK[:LINE], "cannot be downloaded"),
        (b"no answer\r\n\r\n", "cannot be downloaded"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        (b"", "cannot be downloaded"),
    ],
)
def test_a_download_that_ends_early_is_refused(
    answer: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut behind a whole line, so that what arrived could be read."""
    with served(answer) as address:
        assert main(["data", "get", "aime25", "--from", address]) == 1
    error = capsys.readouterr().err
    assert address in error and said in error and error.count("\n") == 1
    assert not Path("data").exists()


def test_a_damaged_gz_is_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, or with packed bytes flipped: the checksum, at the latest, tells."""
    seed = time.time_ns()
    draw = random.Random(seed)
    rows = [{"problem": f"Find $a$ of {draw.random()}.", "answer": str(n)} for n in range(30)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    whole = gzip.compress(text)
    damaged = [whole[: draw.randrange(2, len(whole))] for _ in range(10)]
    for _ in range(60):
        other = bytearray(whole)
        for place in draw.sample(range(10, len(whole)), draw.randint(1, 4)):
            other[place] ^= draw.randrange(1, 256)
        damaged.append(bytes(other))
    file = Path("test.jsonl.gz")
    kinds = set()
    for packed in damaged:
        file.write_bytes(packed)
        try:
            read_set(KNOWN["aime25"], [str(file)])
        except DataError as error:
            assert "test.jsonl.gz: cannot be unpacked" in str(error), (seed, packed.hex())
            kinds.add(type(error.__cause__).__name__)
        else:
            # A flipped bit that the format does not use changes no byte of the text.
            with gzip.open(file) as handle:
                assert handle.read() == text, (seed, packed.hex())
    assert {"EOFError", "error"} <= kinds, (seed, kinds)
    file.write_bytes(whole[:-9])
    assert main(["data", "get", "aime25", "--from", str(file)]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not Path("data").exists()
