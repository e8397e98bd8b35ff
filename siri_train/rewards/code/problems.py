"""Problems in the form of HumanEval and MBPP: the question, what the tests need, a solution.

The gold answer is JSON: ``setup``, code that runs before the tests; ``names``, the functions of the
program that they call; ``tests``, pieces of code that raise where the program is wrong; and for a
completion ``program``, with the ``prompt`` that is continued and the ``entry`` in it.
"""

from __future__ import annotations

import ast
import builtins
import json
import keyword
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

_COMPLETE = (
    "Complete the function `{entry}` below. Answer with the whole function in one closed block "
    "that begins with ```python and ends with ```.\n\n```python\n{prompt}\n```"
)
_WRITE = (
    "{text}\n\nThe function must pass tests like this one:\n\n```python\n{test}\n```\n\nAnswer "
    "with the whole function in one closed block that begins with ```python and ends with ```."
)

_SCOPES = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


class Problem(NamedTuple):
    """A problem.

    Attributes:
        id: as the row has it.
        question: the text for the model.
        gold: JSON with the tests, for ``CodeVerifier``.
        reference: a program that passes them; None: the row has none.
    """

    id: str
    question: str
    gold: str
    reference: str | None


class ProblemError(ValueError):
    """A row that is no problem; the message names the field."""


def read_problem(fields: Mapping[str, Any]) -> Problem:
    """The problem of a row, in whichever form it is.

    Args:
        fields: of HumanEval (``prompt``, ``test``, ``entry_point``, ``canonical_solution``) or MBPP
            (``text`` or ``prompt``, ``test_list``, ``code``, and ``test_setup_code``,
            ``test_imports``, ``challenge_test_list`` where there are).

    Raises:
        ProblemError: neither form, a field of another kind, or tests that are no Python or that
            call no function of the program.
    """
    if "entry_point" in fields or "test" in fields:
        return _humaneval(fields)
    if "test_list" in fields:
        return _mbpp(fields)
    raise ProblemError(
        "neither a problem of HumanEval (fields prompt, test, entry_point) nor of MBPP (text or "
        f"prompt, test_list); it has {', '.join(map(str, fields))[:200]}"
    )


def require_gold(gold: str) -> None:
    """Check that a gold answer holds what the tests of a program need.

    Args:
        gold: a problem's.

    Raises:
        ValueError: it does not; the message says where it comes from.
    """
    try:
        held = json.loads(gold)
        good = isinstance(held["setup"], str) and all(
            isinstance(held[name], list)
            and held[name]
            and all(isinstance(each, str) for each in held[name])
            for name in ("names", "tests")
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise ValueError(
            f"gold: got {gold!r:.80}; the verifier code takes the gold of read_problem(row), or "
            "give the source format=code"
        )


def _humaneval(fields: Mapping[str, Any]) -> Problem:
    prompt, test = _text(fields, "prompt"), _text(fields, "test")
    entry = _text(fields, "entry_point").strip()
    if not entry.isidentifier() or keyword.iskeyword(entry):
        raise ProblemError(f"field 'entry_point': {entry!r:.60} is no name of a function")
    if not any(
        isinstance(node, ast.FunctionDef) and node.name == "check" for node in _parsed(test, "test")
    ):
        raise ProblemError("field 'test': defines no function check(candidate)")
    gold = {
        "setup": prompt if _is_python(prompt) else "",
        "names": [entry],
        "tests": [f"{test.rstrip()}\n\ncheck({entry})\n"],
        "program": {"prompt": prompt, "entry": entry},
    }
    reference = _optional(fields, "canonical_solution")
    question = _COMPLETE.format(entry=entry, prompt=prompt.strip())
    if reference is not None and not _defines(reference, entry):
        reference = f"{prompt.rstrip()}\n{reference}"
    return Problem(_id(fields), question, json.dumps(gold), reference)


def _mbpp(fields: Mapping[str, Any]) -> Problem:
    text = _text(fields, "text" if "text" in fields else "prompt").strip()
    shown = _texts(fields, "test_list")
    if not shown:
        raise ProblemError("field 'test_list': holds no test")
    tests = [*shown, *_texts(fields, "challenge_test_list")]
    setup = "\n".join([*_texts(fields, "test_imports"), _optional(fields, "test_setup_code") or ""])
    reference = _optional(fields, "code")
    _parsed(setup, "test_setup_code")
    names = _called(tests, setup, reference)
    if not names:
        raise ProblemError("field 'test_list': the tests call no function of the program")
    gold = {"setup": setup, "names": names, "tests": tests}
    return Problem(
        _id(fields), _WRITE.format(text=text, test=shown[0].strip()), json.dumps(gold), reference
    )


def _called(tests: list[str], setup: str, reference: str | None) -> list[str]:
    """The names that tests use and neither Python nor the setup defines."""
    used: dict[str, None] = {}
    bound = _bound(setup) | set(dir(builtins))
    for test in tests:
        for node in _parsed(test, "test_list"):
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                    used[part.id] = None
        bound |= _bound(test, everywhere=True)
    if reference is not None:
        try:
            # A module that only the reference imports is missed by the tests, and that is said.
            defined = _bound(reference, imports=False)
        except ProblemError:
            defined = set(used)
        # A reference may define a function with the name of a built-in one, such as sum.
        return [name for name in used if name in defined and name not in _bound(setup)]
    return [name for name in used if name not in bound]


def _bound(code: str, *, everywhere: bool = False, imports: bool = True) -> set[str]:
    """Names that a piece of code binds.

    Args:
        code: Python.
        everywhere: also those of functions and classes in it, which only they can see.
        imports: also modules and what is imported from them.
    """
    names: set[str] = set()
    nodes: list[ast.AST] = [*_parsed(code, "code")]
    while nodes:
        node = nodes.pop()
        if everywhere or not isinstance(node, _SCOPES):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and imports:
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return names


def _parsed(code: str, field: str) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape sequence is Python all the same
            return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or "nested too deeply"
        raise ProblemError(f"field {field!r}: no Python: {reason}") from error


def _is_python(code: str) -> bool:
    try:
        return bool(_parsed(code, "prompt"))
    except ProblemError:
        return False


def _defines(code: str, name: str) -> bool:
    try:
        return name in _bound(code)
    except ProblemError:
        return False


def _id(fields: Mapping[str, Any]) -> str:
    return str(fields.get("task_id", "")).strip()


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ProblemError(f"field {name!r}: expected code or text, got {_kind(value)}")
    return value.replace("\r\n", "\n")


def _optional(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return None if value is None or value == "" else _text(fields, name)


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise ProblemError(f"field {name!r}: expected a list of texts, got {_kind(value)}")
    return [each.replace("\r\n", "\n") for each in value]


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "an empty text" if value == "" else type(value).__name__
