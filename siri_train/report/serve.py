"""The page of a run that goes on, from a small server for this machine alone.

It answers two addresses: ``/``, the page, built in memory anew when a file of the run has changed;
and ``/state``, which changes with it. No path is looked up on the disk, so there is nothing to
traverse. It listens on 127.0.0.1, and refuses requests under another name (DNS rebinding: a web
page that points its own name at this machine).
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .markup import fill, fingerprint
from .script import waiting

PORT = 8484
HOST = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_LEAST_SECONDS = 3.0
_FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "alarms.jsonl", "summary.json", "about.txt")
_DEPTH = 4
"""Folders below the given one: an ablation has ARM/seed-N/rollouts, or one more."""


class PortTaken(Exception):
    """Another program listens on the port, or the port is not for this user."""


class Pages:
    """The page of a folder and its state; threads may share it.

    Args:
        folder: of the run; it need not exist yet.
        build: writes the page, from the state and the seconds between two questions for it.
    """

    def __init__(self, folder: Path, build: Any) -> None:
        self._folder, self._build = folder, build
        self._lock = threading.Lock()
        self._built: tuple[str, str] | None = None
        self._seconds = _LEAST_SECONDS

    def state(self) -> str:
        """A name for what the files of the run are now, from their sizes and times."""
        said = hashlib.sha256()
        for line in _stamps(self._folder, _DEPTH):
            said.update(line.encode(errors="surrogateescape") + b"\0")
        return said.hexdigest()[:32]

    def page(self) -> str:
        """The page of what the files are now; one that waits where there is no run yet."""
        with self._lock:  # one build at a time, however many ask
            state = self.state()
            if self._built is None or self._built[0] != state:
                started = time.monotonic()
                try:
                    text = self._build(state, self._seconds)
                except (OSError, ValueError) as error:
                    # a folder that is not there yet, or is just being replaced
                    text = waiting_page(str(self._folder), str(error), state, self._seconds)
                self._built = state, text
                # a page that takes long to write is asked for less often
                self._seconds = max(_LEAST_SECONDS, 4 * (time.monotonic() - started))
            return self._built[1]


def waiting_page(name: str, reason: str, state: str, every: float) -> str:
    """A page that says what is not there yet, and becomes the run's page.

    Args:
        name: of the folder.
        reason: why there is no page yet.
        state: see `Pages.state`.
        every: seconds between two questions for it.
    """
    script = Markup(waiting())
    policy = (
        f"default-src 'none'; script-src {fingerprint(script)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )
    return fill(
        "waiting.html", policy=policy, script=script, name=name, reason=reason, state=state,
        every=f"{every:.1f}",
    )  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "siri-train", ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # of a connection that says nothing

    def do_GET(self) -> None:
        """Answer the two addresses and nothing else."""
        names = self.headers.get_all("Host") or []
        if len(names) != 1 or names[0].rpartition(":")[0] not in _NAMES and names[0] not in _NAMES:
            self._answer(403, "text/plain", "This server answers to localhost alone.\n")
        elif self.headers.get("Sec-Fetch-Site", "none") == "cross-site":
            self._answer(403, "text/plain", "This page is not for other sites.\n")
        elif self.path == "/":
            self._answer(200, "text/html", self.server.pages.page())
        elif self.path == "/state":
            self._answer(200, "text/plain", self.server.pages.state())
        elif self.path == "/favicon.ico":
            self._answer(204, "text/plain", "")  # a browser asks by itself
        else:
            text = "There is / and nothing else.\n"
            self._answer(404, "text/plain", text)

    do_HEAD = do_GET

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode("utf-8", errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        for name, value in (
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line every few seconds would be about nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # a port that another server listens on must be refused, also where the system would share it
    allow_reuse_address = os.name == "posix"

    def __init__(self, port: int, pages: Pages) -> None:
        self.pages = pages
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no fault; all else is one."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def server(folder: Path, port: int, build: Any) -> ThreadingHTTPServer:
    """A server that listens; ``serve_forever`` answers.

    Args:
        folder: of the run; it need not exist yet.
        port: 0 takes a free one.
        build: see `Pages`.

    Raises:
        PortTaken: the port cannot be had; the message is for the user.
    """
    try:
        return _Server(port, Pages(folder, build))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use by another program" if taken else f"cannot be had ({error.strerror})"
        raise PortTaken(
            f"--port {port} {reason}; give another one, or --port 0 for any free one"
        ) from error


def _stamps(folder: Path, depth: int) -> Iterator[str]:
    """Name, size and time of each file that the page is made of, in an order of their names."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir():
                if depth and not entry.name.startswith((".", "step_")):
                    yield from _stamps(Path(entry.path), depth - 1)
            elif entry.name in _FILES or entry.name == "manifest.json" or _dump(entry.name):
                found = entry.stat()
                yield f"{entry.path} {found.st_size} {found.st_mtime_ns}"
        except OSError:
            continue


def _dump(name: str) -> bool:
    return name.startswith("step_") and name.endswith(".jsonl")
