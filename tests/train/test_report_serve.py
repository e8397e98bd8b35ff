"""``siri-train report RUN --serve``: two addresses, this machine alone, a page that stays new."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.report.data import read_run_folder
from siri_train.report.markup import fingerprint
from siri_train.report.page import build_page
from siri_train.report.serve import server
from tests.train.browser import BROWSER, browser
from tests.train.report_page import Checker
from tests.train.report_runs import make, metrics


@contextmanager
def serving(folder: Path) -> Iterator[Any]:
    """A server on a free port; gives a function that asks it."""

    def build(state: str, every: float) -> str:
        return build_page(read_run_folder(folder), state, every)

    with server(folder, 0, build) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        port = listening.server_address[1]

        def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, str, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                given = {name.replace("_", "-"): value for name, value in headers.items()}
                connection.putrequest(method, path, skip_host="Host" in given)
                for name, value in given.items():
                    connection.putheader(name, value)
                connection.endheaders()
                answer = connection.getresponse()
                return answer.status, answer.read().decode(), answer.headers
            finally:
                connection.close()

        ask.port = port  # type: ignore[attr-defined]
        try:
            yield ask
        finally:
            listening.shutdown()
            thread.join()


def test_the_page_is_new_when_a_file_of_the_run_is(tmp_path):
    folder = make(tmp_path / "run", 1)
    with serving(folder) as ask:
        status, page, headers = ask("/")
        assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
        state = ask("/state")[1]
        assert f'data-state="{state}"' in page and ask("/state")[1] == state
        assert ask("/")[1] == page  # nothing changed, nothing is written anew
        (folder / "report.html").write_text("x")  # no file of the run
        assert ask("/state")[1] == state
        seen = {state}
        changes = [
            lambda: (folder / "metrics.jsonl").open("a").write('{"step": 40, "cap": 3}\n'),
            lambda: (folder / "rollouts" / "step_000041.jsonl").write_text("{}"),
            lambda: (folder / "alarms.jsonl").unlink(),
            lambda: (folder / "checkpoints" / "manifest.json").write_text("{}"),
            lambda: os.utime(folder / "eval.jsonl", ns=(0, 10**18)),
        ]
        for change in changes:
            change()
            state = ask("/state")[1]
            assert state not in seen
            seen.add(state)
            assert f'data-state="{state}"' in ask("/")[1]
        assert "41 steps" in ask("/")[1]


def test_its_policy_allows_one_question_and_a_file_none(tmp_path):
    folder = make(tmp_path / "run", 2)
    with serving(folder) as ask:
        page = ask("/")[1]
    checker = Checker()
    checker.feed(page)
    style, *_, script = checker.scripts
    policy = next(a["content"] for _, a in checker.tags if "http-equiv" in a)
    assert policy == (
        f"default-src 'none'; style-src {fingerprint(style)}; script-src {fingerprint(script)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    own = build_page(read_run_folder(folder))
    assert "connect-src" not in own and "data-state" not in own and 'id="pause"' not in own


def test_nothing_of_the_disk_is_served(tmp_path):
    folder = make(tmp_path / "run", 3)
    (tmp_path / "secret.txt").write_text("a secret")
    rng = random.Random(3)
    paths = ["/config.yaml", "/metrics.jsonl", "/report.html", "/../secret.txt", "//", "/.",
             "/%2e%2e/secret.txt", "/state/", "/state?x", "/?x=1", "/./", "/index.html",
             f"/{tmp_path}/secret.txt", "/etc/passwd", "http://127.0.0.1/etc/passwd",
             "*"]  # fmt: skip
    parts = ["..", "%2e%2e", "secret.txt", "run", "%00", "~", "\\..\\", "rollouts", ";", ""]
    paths += ["/" + "/".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(60)]
    with serving(folder) as ask:
        for path in paths:
            if path.strip("/") == "":
                continue
            status, text, _ = ask(path)
            assert status == 404 and text == "There is / and nothing else.\n", path
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
            assert ask("/", method)[0] == 501
        status, text, headers = ask("/", "HEAD")
        assert status == 200 and text == "" and int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil:8484", "",
    "127.0.0.2", "[::2]:80", "a b",
])  # fmt: skip
def test_another_name_for_this_machine_is_refused(tmp_path, host):
    with serving(make(tmp_path / "run", 4)) as ask:
        for path in ("/", "/state"):
            assert ask(path, Host=host)[0] == 403
        assert ask("/state", Sec_Fetch_Site="cross-site")[0] == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:1234", "[::1]:8484"])
def test_this_machine_and_a_forwarded_port_are_answered(tmp_path, host):
    with serving(make(tmp_path / "run", 5)) as ask:
        assert ask("/state", Host=host, Sec_Fetch_Site="same-origin")[0] == 200
        with pytest.raises(OSError):  # it listens on loopback alone
            socket.create_connection((_own_address(), ask.port), timeout=5).close()


def _own_address() -> str:
    """An address of this machine that is not loopback, or one that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "0.0.0.1"


def test_half_written_files_and_no_folder_make_a_page(tmp_path):
    folder = tmp_path / "later"
    with serving(folder) as ask:
        status, page, _ = ask("/")
        assert status == 200 and "No run here yet" in page and "data-state" in page
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"step": 0, "cap": 4}\n{"step": 1, "c')
        assert "half-written" in ask("/")[1]


def test_many_readers_at_once_get_one_page(tmp_path):
    folder = make(tmp_path / "run", 6)
    with serving(folder) as ask:
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(ask("/")[1])) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6 and len(set(found)) == 1


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "siri_train", "report", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell ignores Ctrl-C in what it runs in the background, as in CI; a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_ctrl_c_ends_it_quietly_and_a_taken_port_is_one_line(tmp_path):
    process = _start(str(make(tmp_path / "run", 7)), "--serve", "--port", "0")
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        port = int(line.split("/")[2].split(":")[1])
        second = _start(str(tmp_path / "run"), "--serve", "--port", str(port))
        out, err = second.communicate(timeout=120)
        assert second.returncode == 1 and out == ""
        assert err == (
            f"siri-train report: --port {port} is in use by another program; give another one, or "
            "--port 0 for any free one\n"
        )
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=120)
        assert (process.returncode, rest, err) == (0, "", "")
    finally:
        process.kill()


@pytest.mark.parametrize("given", ["-1", "65536", "x", "", "80.5", "0x50", "9" * 40])
def test_a_bad_port_is_one_line(tmp_path, capsys, given):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--serve", f"--port={given}"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "65535" in err


def test_what_does_not_fit_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--port", "5"]) == 1
    assert "--serve" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "file"), "--serve"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not a folder" in err


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_reader_sees_the_run_go_on_and_keeps_the_choice(tmp_path):
    folder = tmp_path / "run"
    with serving(folder) as ask, browser() as page:
        page.size(1200)
        page.open(f"http://127.0.0.1:{ask.port}/")
        assert "No run here yet" in page.do("document.body.innerText")
        make(folder, 8)
        page.wait("document.querySelector('#axis')")
        page.wait("document.documentElement.classList.contains('live')")
        page.do("""{
          const axis = document.querySelector('#axis');
          axis.value = 'tokens'; axis.dispatchEvent(new Event('change'));
          document.querySelectorAll('figure[data-chart] button.key')[1].click();
        }""")
        rows = metrics(random.Random(9), 55, 20)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        page.wait("document.querySelector('.facts').innerText.startsWith('55 steps')")
        page.wait("document.documentElement.classList.contains('live')")
        assert page.do("document.querySelector('#axis').value") == "tokens"
        keys = "document.querySelectorAll('figure[data-chart] button.key')"
        assert page.do(f"{keys}[1].getAttribute('aria-pressed')") == "false"
        page.do("document.querySelector('#pause').click()")
        assert page.do("document.querySelector('#refreshes').textContent") == "Does not refresh."
        assert page.messages == []
        assert {one.rpartition("/")[2] for one in page.requests} <= {"", "state"}
