"""The process that judges programs one by one; ``CodeVerifier`` starts it as a script.

Reads one JSON object a line: ``program`` and ``gold``, and ``limit_s`` if it is less than the usual
seconds of processor time. Writes one: ``right``, ``why`` not, and ``late`` if time was used up. No
program runs in this process; it hands each, and its tests, to the processes of ``keeper``, over a
pipe of its own each. Arguments: seconds of processor time for one program, the layers of isolation
to put on, and what the sandbox must promise, with commas.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

LONGEST_PROGRAM = 1 << 15
"""Characters; a longer program is wrong."""


def main() -> None:
    """Announce readiness and what holds, then answer line by line until the input ends."""
    # Run as a script, this folder is first on the path; neither its modules nor those of a package
    # folder may stand before Python's own.
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here] + [root]
    limit_s = float(sys.argv[1])
    layers, needed = (set(filter(None, names.split(","))) for names in sys.argv[2:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        channel = _keeper(layers)
        signal.signal(signal.SIGTERM, lambda *_: _leave(channel))
        held = json.loads(channel.makefile("rb").readline() or b"{}")
    except (OSError, ValueError, ImportError) as error:
        held = {"error": f"{type(error).__name__}: {error}"}
    broken = sorted(needed - set(held.get("promises", ())))
    if "error" not in held and not held:
        held = {"error": "the sandbox's process ended before it was ready"}
    if "error" not in held and broken:
        held["error"] = f"not shut off: {', '.join(broken)}"
    print(
        json.dumps(held if "error" in held else {"ready": True, **held}), file=answers, flush=True
    )
    if "error" in held:
        return
    for line in sys.stdin:
        item = json.loads(line)
        reply = _judge(channel, item, min(limit_s, item.get("limit_s", limit_s)))
        print(json.dumps(reply), file=answers, flush=True)
    _leave(channel)


def _leave(channel: socket.socket) -> NoReturn:
    """Wait until the keeper has ended its own: an orphan can stay a zombie for ever."""
    channel.shutdown(socket.SHUT_RDWR)
    os.wait()
    os._exit(0)


def _keeper(layers: set[str]) -> socket.socket:
    """Fork the keeper before any item is read; the socket to it."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        status = 1
        try:
            ours.close()
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            from siri_train.rewards.code.keeper import serve

            serve(theirs, layers)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    return ours


def _judge(channel: socket.socket, item: dict[str, Any], limit_s: float) -> dict[str, Any]:
    gold = json.loads(item["gold"])
    parts = {"program": item["program"], **gold.pop("program", {})}
    if len(parts["program"]) > LONGEST_PROGRAM:
        return {"right": False, "why": f"more than {LONGEST_PROGRAM} characters"}
    source, program_in = os.pipe()
    tests, tests_in = os.pipe()
    verdict, verdict_in = os.pipe()
    calls, calls_in = os.pipe()
    replies, replies_in = os.pipe()
    given = [source, calls, replies_in, tests, verdict_in, replies, calls_in]
    socket.send_fds(channel, [json.dumps({"limit_s": limit_s}).encode() + b"\n"], given)
    for descriptor in given:
        os.close(descriptor)
    _write(tests_in, json.dumps(gold))
    _write(program_in, json.dumps(parts))
    line = channel.recv(1 << 12)
    if not line:  # the keeper is gone: none of the program's doing
        os.kill(os.getpid(), signal.SIGKILL)
    ended = json.loads(line)
    with os.fdopen(verdict, "rb") as file:
        said = file.read()
    if said and not ended["late"]:
        reply: dict[str, Any] = json.loads(said)
        return reply
    if ended["late"]:
        return {"right": False, "late": True, "why": f"more than {limit_s:g} s"}
    return {"right": False, "why": f"the tests ended with status {ended['tests']}"}


def _write(descriptor: int, text: str) -> None:
    """Write all and close; a reader that has ended is the keeper's to report."""
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogatepass"))
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    main()
