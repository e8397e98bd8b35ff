"""The process in which a program of a model runs: it defines functions and answers calls."""

from __future__ import annotations

import ast
import json
import os
import random
import sys
import types
from collections.abc import Callable
from typing import Any

from siri_train.rewards.code.peer import Peer

NAME = "program"
"""The module's name. It is not ``__main__``: what a file does only as a script is left out."""


def run(source: int, calls: int, replies: int) -> None:
    """Read a program, run it, then answer calls of its functions until their pipe ends.

    Args:
        source: descriptor of a JSON object: ``program``, and of HumanEval ``prompt`` and ``entry``.
        calls: descriptor to read from.
        replies: descriptor to write to.
    """
    with os.fdopen(source, "rb") as file:
        item = json.loads(file.read())
    random.seed(0)
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    failed: list[BaseException] = []
    try:
        exec(compiled(whole(**item), NAME), module.__dict__)
    except BaseException as error:
        failed.append(error)

    def find(name: str) -> Callable[..., Any]:
        if failed:
            raise failed[0]
        try:
            found: Callable[..., Any] = getattr(module, name)
        except AttributeError:
            raise NameError(f"the program defines no {name}") from None
        return found

    Peer(calls, replies, find).serve()


def compiled(code: str, name: str) -> types.CodeType:
    """Code as a module of its own: what this file imports from ``__future__`` is not for it.

    Args:
        code: of a program or a test.
        name: for messages.
    """
    code_object: types.CodeType = compile(code, name, "exec", dont_inherit=True)
    return code_object


def whole(program: str, prompt: str | None = None, entry: str = "") -> str:
    """The program that a response means.

    Args:
        program: the code of the response.
        prompt: of HumanEval: the beginning of a file, whose last function is to be completed.
        entry: that function's name.

    Returns:
        Without a prompt the code. With one, code that defines ``entry`` follows what stands before
        the function in the prompt (imports and helpers); other code continues the prompt.
    """
    if prompt is None:
        return program
    try:
        defined = _definition(program, entry)
    except (SyntaxError, ValueError):  # a body, which is indented
        defined = None
    if defined is not None:
        lines = program.split("\n")
        first = _end_of_future_imports(program)
        return "\n".join([*lines[:first], before(prompt, entry), *lines[first:]])
    lines = program.strip("\n").split("\n")
    if not lines[0][:1].isspace():
        lines = [f"    {line}" for line in lines]
    # A prompt may end in an open docstring's line or in the middle of one; the code continues it.
    return prompt.rstrip() + "\n" + "\n".join(lines) + "\n"


def before(prompt: str, entry: str) -> str:
    """The lines before the function ``entry`` in a prompt; all of it if it is not found."""
    try:
        found = _definition(prompt, entry)
    except (SyntaxError, ValueError):
        return ""
    if found is None:
        return prompt
    first = min([found.lineno, *(mark.lineno for mark in found.decorator_list)])
    return "\n".join(prompt.split("\n")[: first - 1])


def _end_of_future_imports(text: str) -> int:
    """The line of the last import from ``__future__``, which must stand before all others."""
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return max([0, *(node.end_lineno or 0 for node in imports if node.module == "__future__")])


def _definition(text: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    found = None
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            found = node
    return found
