"""Calls between the two processes of a program and its tests, over two pipes, in lines of JSON."""

from __future__ import annotations

import builtins
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from siri_train.rewards.code.codec import Handles, Unpassable, decode, encode

LONGEST_LINE = 4 << 20
"""Bytes of one message; a longer one ends the program."""

_MUTABLE = (list, dict, set, bytearray, deque)
_LONGEST_TEXT = 300
_ENDS = (StopIteration, StopAsyncIteration)


class ProgramEnded(BaseException):
    """The other side is gone, or has broken the rules. Tests cannot go on, whatever they catch."""


class Peer:
    """One end. Whoever waits for a reply serves the calls that come in the meantime.

    Args:
        incoming: descriptor to read from.
        outgoing: descriptor to write to.
        names: functions that the other side may call by name.
    """

    def __init__(
        self, incoming: int, outgoing: int, names: Callable[[str], Any] | None = None
    ) -> None:
        self._incoming, self._outgoing, self._names = incoming, outgoing, names
        self._buffer = bytearray()
        self._handles = Handles(self._ask)
        self.calls = 0
        self.ended: str | None = None

    def function(self, name: str) -> Callable[..., Any]:
        """The other side's function of that name."""

        def remote(*args: Any, **kwargs: Any) -> Any:
            return self._ask(name, "call", args, kwargs)

        remote.__name__ = name
        return remote

    def serve(self) -> None:
        """Answer calls until the other side closes its pipe."""
        while True:
            try:
                message = self._read()
            except ProgramEnded:
                return
            self._answer(message)

    def end(self, why: str) -> ProgramEnded:
        """Remember the first reason why the other side cannot go on."""
        self.ended = self.ended or why
        return ProgramEnded(self.ended)

    def _ask(self, target: str | int, how: str, args: Sequence[Any], kwargs: Any) -> Any:
        if self.ended:
            raise ProgramEnded(self.ended)
        if self._buffer:
            raise self.end("it wrote before it was asked")
        self.calls += 1
        try:
            sent = [encode(arg, self._handles) for arg in args]
            named = {name: encode(arg, self._handles) for name, arg in kwargs.items()}
        except Unpassable as error:
            raise self.end(f"{error} cannot be passed to the program") from None
        self._write({"target": target, "how": how, "args": sent, "kwargs": named})
        while True:
            reply = self._read()
            if "target" not in reply:
                break
            self._answer(reply)
        return self._result(reply, args, how)

    def _result(self, reply: Mapping[str, Any], args: Sequence[Any], how: str) -> Any:
        try:
            if "error" in reply:
                names, text = reply["error"]
                error = _exception(names, text, self.end)
                # Under map() it would end a loop of the tests before their asserts.
                if self._names is None and how != "next" and isinstance(error, _ENDS):
                    raise self.end(f"it raised {type(error).__name__}")
                raise error
            changed = reply.get("changed", {})
            for place, body in changed.items():
                _replace(args[int(place)], decode(body, self._handles))
            if "same" in reply:
                return args[reply["same"]]
            return decode(reply["value"], self._handles)
        except (Unpassable, KeyError, IndexError, AttributeError) as error:
            if "error" in reply:
                raise
            raise self.end(f"an unreadable reply: {error}") from None

    def _answer(self, message: Mapping[str, Any]) -> None:
        try:
            target, how = message["target"], message["how"]
            args = [decode(arg, self._handles) for arg in message["args"]]
            kwargs = {name: decode(arg, self._handles) for name, arg in message["kwargs"].items()}
            if type(target) is not str:
                called = self._handles.mine(target)
            elif self._names is not None:
                called = self._names(target)
            else:
                raise Unpassable("no function has a name here")
            value = next(called) if how == "next" else called(*args, **kwargs)
            self._write(self._reply(value, args, message["args"]))
        except ProgramEnded:
            raise
        except BaseException as error:
            self._write({"error": [_ancestors(error), _text(error)]})

    def _reply(self, value: Any, args: list[Any], before: list[Any]) -> dict[str, Any]:
        changed = {}
        for place, arg in enumerate(args):
            if isinstance(arg, _MUTABLE):
                after = encode(arg, self._handles)
                if after != before[place]:
                    changed[str(place)] = after
        same = next((n for n, a in enumerate(args) if a is value and isinstance(a, _MUTABLE)), None)
        reply: dict[str, Any] = {"changed": changed} if changed else {}
        if same is not None:
            return {**reply, "same": same}
        return {**reply, "value": encode(value, self._handles)}

    def _write(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode("ascii") + b"\n"
        if len(line) > LONGEST_LINE:
            raise ValueError(f"more than {LONGEST_LINE >> 20} MiB in one value")
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._outgoing, left) :]
        except OSError:
            raise self.end("it ended before it answered") from None

    def _read(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LONGEST_LINE:
                raise self.end("it wrote too much")
            chunk = os.read(self._incoming, 1 << 16)
            if not chunk:
                raise self.end("it ended before it answered")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if type(message) is not dict:
            raise self.end("an unreadable message")
        return message


def _replace(mine: Any, new: Any) -> None:
    """Give a mutable argument the content that it has after the call on the other side."""
    if type(new) is not type(mine) and not isinstance(mine, type(new)):
        raise Unpassable("an argument of another type")
    if isinstance(mine, (list, bytearray)):
        mine[:] = new
    elif isinstance(mine, (dict, set, deque)):
        mine.clear()
        mine.extend(new) if isinstance(mine, deque) else mine.update(new)
    else:
        raise Unpassable("an argument that cannot change")


def _ancestors(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__[:20]]


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_LONGEST_TEXT]
    except BaseException:  # the class is the program's own
        return ""


def _exception(names: Any, text: Any, end: Callable[[str], ProgramEnded]) -> BaseException:
    """The exception of the other side as the nearest built-in one."""
    said = str(text)[:_LONGEST_TEXT]
    for name in names if type(names) is list else []:
        if name == "Unpassable":
            return end(f"it returned {said}, which is no plain data")
        kind = getattr(builtins, name, None) if type(name) is str else None
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            continue
        if not issubclass(kind, Exception):
            return end(f"it raised {name}")
        try:
            return kind(said)
        except TypeError:  # UnicodeDecodeError takes five arguments
            continue
    return end("an unreadable reply")
