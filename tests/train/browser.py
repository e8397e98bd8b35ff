"""A headless Chromium, driven over its debugging pipe: real keys, fingers, widths and messages."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
PATIENCE = 120.0
"""Seconds for one answer: a loaded machine is slow."""


class Page:
    """One page of a browser; ``messages`` are what it wrote to the console, errors too."""

    def __init__(self, send: int, receive: int) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._send, self._receive = send, receive
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        opened = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = opened["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> Any:
        """The answer to one command of the protocol."""
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._send, json.dumps(asked).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, (method, said["error"])
                return said["result"]

    def _next(self) -> dict:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._receive, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        said = json.loads(line)
        method, told = said.get("method"), said.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.messages.append(str([one.get("value") for one in told["args"]]))
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.messages.append(str(details.get("exception", details).get("description", details)))
        elif method == "Log.entryAdded":
            self.messages.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        return said

    def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Width and height of the screen; a narrow one has a finger."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Go there and wait until the page's script has run."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def do(self, script: str) -> Any:
        """The value of an expression of the page; a function body with ``return`` in braces."""
        if script.lstrip().startswith("{"):
            script = f"(() => {script})()"
        said = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if self.do(f"Boolean({condition})"):
                    return
            except AssertionError as error:  # the page is just being left
                if "context" not in str(error).lower() and time.monotonic() > end:
                    raise
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def key(self, key: str, times: int = 1) -> None:
        """Press a key, as ``Tab``, ``ArrowRight``, ``+`` or ``Enter``."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36,
                 "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for _ in range(times):
            whole = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0]))}
            extra = {"text": text} if text else {}
            kind = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=kind, **whole, **extra)
            self.call("Input.dispatchKeyEvent", type="keyUp", **whole)

    def type(self, text: str) -> None:
        """Insert text where the focus is."""
        self.call("Input.insertText", text=text)

    def touch(self, *places: tuple[float, float]) -> None:
        """A finger that comes down at the first place, moves along the others and goes up."""
        for i, (x, y) in enumerate(places):
            kind = "touchMove" if i else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def mouse(self, *places: tuple[float, float], press: bool = False) -> None:
        """Move the mouse along the places, with its button down between first and last."""
        for i, (x, y) in enumerate(places):
            button = {"button": "left", "buttons": 1} if press and i else {}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **button)
            if press and i in (0, len(places) - 1):
                kind = "mousePressed" if i == 0 else "mouseReleased"
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                          clickCount=1)  # fmt: skip

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what is seen of it."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A browser with an empty profile and one page, ended afterwards."""
    ours, theirs = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def set_up() -> None:  # the browser reads from 3 and writes to 4
            read, write = os.dup(ours[0]), os.dup(theirs[1])
            os.dup2(read, 3)
            os.dup2(write, 4)

        process = subprocess.Popen(
            [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe",
             f"--user-data-dir={profile}"],
            preexec_fn=set_up, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        try:
            yield Page(ours[1], theirs[0])
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with all the processes that it started
            process.wait()
            os.close(ours[1])
            os.close(theirs[0])
