"""The process in which the tests of a problem run. The program's functions are calls to another."""

from __future__ import annotations

import json
import os
import random
from typing import Any

from siri_train.rewards.code.peer import Peer, ProgramEnded
from siri_train.rewards.code.program import compiled

_LONGEST_REASON = 300


def run(source: int, verdict: int, replies: int, calls: int, ending: int) -> None:
    """Read a problem's tests, run them, and write the verdict.

    Args:
        source: descriptor of the gold answer, see ``problems``.
        verdict: descriptor to write one JSON object to: ``right``, and ``why`` not.
        replies: descriptor to read from.
        calls: descriptor to write to.
        ending: descriptor that is closed when the tests have ended.
    """
    with os.fdopen(source, "rb") as file:
        gold = json.loads(file.read())
    random.seed(0)
    peer = Peer(replies, calls)
    why = _failure(gold, peer) or peer.ended
    if why is None and not peer.calls:
        why = "the tests called nothing of the program"
    said: dict[str, Any] = {"right": why is None}
    if why is not None:
        # The text may be a program's: no line break, no command to a terminal.
        said["why"] = "".join(c if c.isprintable() else " " for c in why[:_LONGEST_REASON])
    os.write(verdict, json.dumps(said).encode("ascii") + b"\n")
    os.close(ending)


def _failure(gold: dict[str, Any], peer: Peer) -> str | None:
    """Why the tests do not pass; None if they do."""
    names: dict[str, Any] = {"__name__": "tests"}
    where = "the setup"
    try:
        exec(compiled(gold["setup"], "setup"), names)
        for name in gold["names"]:
            names[name] = peer.function(name)
        for number, test in enumerate(gold["tests"], 1):
            where = f"test {number}" if len(gold["tests"]) > 1 else "the tests"
            exec(compiled(test, "tests"), names)
    except ProgramEnded as error:
        return str(error)
    except MemoryError:
        return "out of memory"
    except AssertionError as error:
        return f"{where}: wrong{_said(error)}"
    except BaseException as error:
        return f"{where}: {type(error).__name__}{_said(error)}"
    return None


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f": {text}" if text else ""
