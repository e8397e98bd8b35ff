"""A small JSON client of one HTTP server, whose waiting requests can be broken off.

It uses the standard library. httpx was measured with 256 requests at a time: short answers took 1.7
to 2.1 times as long, long ones the same (docs/log/rollouts.md). A request waits up to minutes for
its answer, so kept connections save nothing. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

# Seconds to open a connection. The answer has its own limit.
_CONNECT = 10.0
# A peer that is gone without closing the connection (power, network) is noticed after a minute,
# whatever the limit of the answer.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Unreachable(OSError):
    """No answer: connection refused, broken off, timed out, or not HTTP."""


class Refused(RuntimeError):
    """The server answered 4xx: this request is wrong, another may be fine.

    Args:
        status: of the answer.
        message: the server's own words.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message = status, message


class Faulty(RuntimeError):
    """The server answered 5xx, or 200 with something that is not JSON."""


class JsonClient:
    """Send requests to one server, from any thread.

    Args:
        url: ``http://HOST:PORT`` or https, with a path in front of every route if there is one.
        key: sent as ``Authorization: Bearer`` where given.

    Raises:
        ValueError: ``url`` is no such address.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        if "@" in url or "?" in url:  # not repeated: it may hold a password
            raise ValueError("takes http://HOST:PORT, without user, password and ?")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"got {url!r}, takes http://HOST:PORT")
        self.url = url.rstrip("/")
        self.host = parts.hostname
        self._port, self._prefix = parts.port, parts.path.rstrip("/")
        self._type = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def get(self, route: str, timeout: float) -> Any:
        """Send a GET and return its JSON; see :meth:`request`."""
        return self.request("GET", route, None, timeout)

    def post(self, route: str, body: Any, timeout: float) -> Any:
        """Send a POST and return its JSON.

        Args:
            route: see :meth:`request`.
            body: see :meth:`request`.
            timeout: see :meth:`request`.
        """
        return self.request("POST", route, body, timeout)

    def request(self, method: str, route: str, body: Any, timeout: float) -> Any:
        """Send ``body`` as JSON and return the decoded answer.

        Args:
            method: GET or POST.
            route: the path behind the server's address.
            body: what ``json.dumps`` takes; None: no body.
            timeout: seconds that any single wait may take.

        Returns:
            The decoded JSON; None if the answer has no content.

        Raises:
            Unreachable: no answer.
            Refused: 4xx.
            Faulty: 5xx, or an answer that is not JSON.
        """
        connection = self._type(self.host, self._port, timeout=min(timeout, _CONNECT))
        payload = None if body is None else json.dumps(body).encode()
        try:
            connection.connect()
            _keep_alive(connection.sock)
            connection.sock.settimeout(timeout)
            with self._lock:
                self._open.add(connection)
            connection.request(method, self._prefix + route, payload, self._headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"{self.url}{route}: {type(error).__name__}: {error or 'connection closed'}"
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if answer.status >= 500:
            raise Faulty(f"{self.url}{route}: HTTP {answer.status}: {_words(data)}")
        if answer.status >= 400:
            raise Refused(answer.status, _words(data))
        if not data.strip():
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise Faulty(f"{self.url}{route}: not JSON: {_words(data)}") from error

    def hang_up(self) -> None:
        """Break off every waiting request: each raises :class:`Unreachable` at once."""
        with self._lock:
            for connection in self._open:
                try:
                    if connection.sock is not None:
                        connection.sock.shutdown(socket.SHUT_RDWR)
                except OSError:  # the request has ended
                    pass


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not on every platform
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _words(data: bytes) -> str:
    """The message of vLLM's error object, or the beginning of another answer."""
    text = data.decode(errors="replace").strip()
    try:
        said = json.loads(text)
        text = str(said["error"]["message"] if "error" in said else said["detail"])
    except (ValueError, KeyError, TypeError):
        pass
    return text if len(text) <= 500 else text[:500] + " ..."


def own_address(host: str) -> str:
    """The address under which ``host`` reaches this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return str(probe.getsockname()[0])


def free_port(address: str) -> int:
    """A port of ``address`` that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
