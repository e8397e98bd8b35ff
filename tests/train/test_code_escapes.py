"""Programs that try to escape from the sandbox: none is called right, and none does anything."""

from __future__ import annotations

import json
import os
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from siri_train.rewards.code import sandbox
from siri_train.rewards.code.promises import PROMISES
from siri_train.rewards.code.verifier import CodeVerifier, Verdict
from siri_train.rewards.pool import WorkerPool
from tests.train.escapes import DEEDS, WITHOUT_LAYERS
from tests.train.forgeries import FORGERIES

ROOT = Path(__file__).parents[2]
SECRET = "tangerine-4417"
GOLD = json.dumps(
    {"setup": "", "names": ["f"], "tests": ["assert f(2) == 4", "assert f(-731) == 534361"]}
)
MARK = 0.4375
"""Seconds of processor time; stands in the command line of our processes, and of no other."""
HEAD = "import ctypes, json, os, stat, sys, time\n"


class Bed(NamedTuple):
    """What escapes could reach."""

    folder: Path
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket

    @property
    def port(self) -> int:
        found: int = self.tcp.getsockname()[1]
        return found

    def filled(self, program: str) -> str:
        """A program with the names of this place."""
        for name, text in {
            "FOLDER": str(self.folder),
            "SECRET": SECRET,
            "PORT": str(self.port),
            "PARENT": str(os.getpid()),
            "ROOT": str(ROOT),
            "PATHS": repr([path for path in sys.path if "site-packages" in path]),
        }.items():
            program = program.replace(name, text)
        return program

    def deed(self, name: str) -> str:
        """A program that squares if its deed was done."""
        body = textwrap.indent(textwrap.dedent(DEEDS[name]).strip(), "    ")
        after = (
            "try: done = bool(deed())\nexcept BaseException: done = False\n"
            "def f(x): return x * x if done else None\n"
        )
        return self.filled(f"{HEAD}def deed():\n{body}\n{after}")

    def forgery(self, name: str) -> str:
        """A program that squares nothing."""
        return self.filled(HEAD + textwrap.dedent(FORGERIES[name]))


def bed(folder: Path) -> Bed:
    """A folder that anyone may write to, with a secret, and somebody who listens."""
    folder.mkdir()
    folder.chmod(0o777)
    for above in folder.parents[:3]:
        if above.stat().st_uid == folder.stat().st_uid and str(above).startswith("/tmp/"):
            above.chmod(0o755)
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.txt").chmod(0o666)
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", tcp.getsockname()[1]))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "socket"))
    unix.listen()
    (folder / "socket").chmod(0o777)
    for each in (tcp, udp, unix):
        each.setblocking(False)
    return Bed(folder, tcp, udp, unix)


def ours() -> list[int]:
    """Processes that judge programs for this file."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(MARK).encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    made = bed(tmp_path_factory.mktemp("escapes") / "bed")
    yield made
    for each in (made.tcp, made.udp, made.unix):
        each.close()


@pytest.fixture(scope="module")
def verdicts(place: Bed) -> Iterator[dict[str, Verdict]]:
    """All programs judged in one batch, with a right one among them."""
    held = sandbox.look()
    if set(held.promises) != set(PROMISES):
        pytest.skip(f"{held}: the programs would do what they say, to this machine")
    programs = {name: place.deed(name) for name in DEEDS}
    programs |= {name: place.forgery(name) for name in FORGERIES}
    programs |= {f"honest {n}": f"{HEAD}def f(x): return x * x  # {n}" for n in range(4)}
    before = os.environ.get("SIRI_TEST_SECRET")
    os.environ["SIRI_TEST_SECRET"] = SECRET
    verifier = CodeVerifier(workers=4, timeout=MARK, batch_timeout=None)
    try:
        judged = verifier.judge([(program, GOLD) for program in programs.values()])
        left = ours()
        # A worker is a process that reads programs and one that forks. There is nothing else.
        assert 1 <= len(left) <= 8 and len(left) % 2 == 0, left
        yield dict(zip(programs, judged, strict=True))
    finally:
        verifier.close()
        if before is None:
            del os.environ["SIRI_TEST_SECRET"]
    for pid in left:
        wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """A process whose group was killed is gone, or a zombie that somebody else will reap."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "ZX":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


def test_there_are_fifty_and_more() -> None:
    assert len(DEEDS) >= 50 and len(FORGERIES) >= 40


def test_the_sandbox_keeps_its_promises_or_refuses() -> None:
    held = sandbox.look()
    if {"limits", "seccomp"} <= set(held.layers):
        assert set(held.promises) == {
            "network", "files", "processes", "other processes", "memory",
        }, str(held)  # fmt: skip
    if set(held.promises) != set(PROMISES):
        with pytest.raises(sandbox.SandboxError, match="NOT shut off"):
            CodeVerifier()


@pytest.mark.parametrize("name", [*DEEDS, *FORGERIES])
def test_no_escape_is_called_right(name: str, verdicts: dict[str, Verdict]) -> None:
    # False, and not None: a program must not be able to leave its group.
    assert verdicts[name].right is False, verdicts[name]
    assert verdicts[name].why


def test_the_honest_are_right(verdicts: dict[str, Verdict]) -> None:
    honest = [verdict for name, verdict in verdicts.items() if name.startswith("honest")]
    assert honest == [Verdict(True, "")] * 4


def test_nothing_was_done(place: Bed, verdicts: dict[str, Verdict]) -> None:
    assert sorted(path.name for path in place.folder.iterdir()) == ["secret.txt", "socket"]
    secret = place.folder / "secret.txt"
    assert secret.read_text() == SECRET and secret.stat().st_mode & 0o777 == 0o666
    for listener in (place.tcp, place.unix):
        with pytest.raises(BlockingIOError):
            listener.accept()
    with pytest.raises(BlockingIOError):
        place.udp.recv(1)
    assert not (ROOT / "written").exists() and not Path("written").exists()


def test_without_layers_the_deeds_are_done(tmp_path: Path) -> None:
    # Without the machine's part the same programs do what they say, so the tests above can fail.
    made = bed(tmp_path / "bed")
    pool = WorkerPool(
        sandbox.SCRIPT,
        sandbox.arguments(2.0, (), ()),
        workers=1,
        wall_s=60.0,
        flags=sandbox.FLAGS,
        environment=sandbox.ENVIRONMENT,
    )
    items = [{"program": made.deed(name), "gold": GOLD} for name in WITHOUT_LAYERS]
    try:
        answers = pool.map(items)
    finally:
        pool.close()
    not_done = {
        name: answer
        for name, answer in zip(WITHOUT_LAYERS, answers, strict=True)
        if answer is None or not answer["right"]
    }
    assert not not_done
    assert made.tcp.accept() and made.udp.recv(1) == b"x" and made.unix.accept()
    for each in (made.tcp, made.udp, made.unix):
        each.close()
