"""Public names are documented: a docstring each, ``Args:`` and ``Raises:`` where they help.

A name is public when no part of its path begins with an underscore.
``python tests/test_docstrings.py PATHS...`` prints what is missing as ``file:line: what``.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("siri_kernels", "siri_train", "bench", "examples")
MANY = 3  # parameters, self and cls left out, from which on each is described

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(node: Function, method: bool) -> list[str]:
    """The names of a function's parameters, without ``self``, ``cls`` and private ones."""
    given = node.args
    names = [a.arg for a in (*given.posonlyargs, *given.args)]
    if method and names and "staticmethod" not in decorators(node):
        names = names[1:]
    names += [a.arg for a in (*given.kwonlyargs, given.vararg, given.kwarg) if a is not None]
    return [name for name in names if not name.startswith("_")]


def decorators(node: Function | ast.ClassDef) -> set[str]:
    """The last names of a definition's decorators: ``jit`` for ``@triton.jit``."""
    found = set()
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        found.add(called.attr if isinstance(called, ast.Attribute) else ast.unparse(called))
    return found


def raises(node: ast.AST) -> bool:
    """Whether its own body has a ``raise`` of something; inner functions are not looked into."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(child, ast.Raise):
            if child.exc is not None:
                return True
        elif raises(child):
            return True
    return False


def section(docstring: str, name: str) -> str | None:
    """The text of a Google-style section, or None."""
    found = re.search(rf"^{name}:\n((?:[ ]+\S.*\n?|\n)*)", docstring + "\n", re.MULTILINE)
    return found.group(1) if found else None


def described(args: str) -> set[str]:
    """The names that an ``Args`` section describes, each at the start of a line."""
    return set(re.findall(r"^ {4}\*{0,2}(\w+)(?: \([^)]*\))?:", args, re.MULTILINE))


def definitions(
    body: list[ast.stmt], inside: ast.ClassDef | None = None
) -> Iterator[tuple[Function | ast.ClassDef, ast.ClassDef | None]]:
    """Public classes, functions and methods, each with the class that it stands in."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):  # if TYPE_CHECKING, optional imports
            yield from definitions([*node.body, *node.orelse], inside)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node, inside
            yield from definitions(node.body, node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = node.name == "__init__" or not node.name.startswith("_")
            if own and not decorators(node) & {"overload", "setter"}:
                yield node, inside


def missing(node: Function, owner: ast.ClassDef | None) -> Iterator[str]:
    """What the docstring of a function lacks; that of a class speaks for its ``__init__``."""
    docstring = ast.get_docstring(node) or ""
    name = f"{owner.name}.{node.name}" if owner else node.name
    if node.name == "__init__" and owner:
        docstring += "\n\n" + (ast.get_docstring(owner) or "")
        name = owner.name
    elif not docstring:
        yield f"{name}: no docstring"
        return
    # A kernel's arguments are described where it is launched, a test's are fixtures.
    if "jit" not in decorators(node) and not node.name.startswith("test_"):
        names = parameters(node, owner is not None)
        args = section(docstring, "Args")
        if len(names) >= MANY and args is None:
            # One that does as another documented one need not say it again: "As :func:`.other`".
            if not re.search(r"\b(?:As|See|as) :\w+:`", docstring):
                yield f"{name}: no Args:, has {', '.join(names)}"
        elif args is not None and (lost := [n for n in names if n not in described(args)]):
            yield f"{name}: Args: does not name {', '.join(lost)}"
    if raises(node) and section(docstring, "Raises") is None:
        yield f"{name}: raises, but has no Raises:"


def findings(path: str, source: str) -> list[str]:
    """What is not documented in one module.

    Args:
        path: relative to the repository; a private module has no public names.
        source: of the module.

    Returns:
        One line each, ``path:line: what``.
    """
    parts = Path(path).with_suffix("").parts
    if any(part.startswith("_") and not part.startswith("__") for part in parts):
        return []
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) or not tree.body else [f"{path}:1: module: no docstring"]
    for node, owner in definitions(tree.body):
        if isinstance(node, ast.ClassDef):
            lacks = [] if ast.get_docstring(node) else [f"{node.name}: no docstring"]
        else:
            lacks = list(missing(node, owner))
        found += [f"{path}:{node.lineno}: {what}" for what in lacks]
    return found


def check(*under: str) -> list[str]:
    """The findings in all modules under the given paths."""
    files = {f for path in under for f in (ROOT / path).rglob("*.py")}
    files |= {ROOT / path for path in under if path.endswith(".py")}
    return [
        line
        for file in sorted(files)
        for line in findings(file.relative_to(ROOT).as_posix(), file.read_text())
    ]


def test_public_names_are_documented() -> None:
    found = check(*PACKAGES)
    assert not found, "docstrings:\n" + "\n".join(found)


def test_each_lack_is_found_and_what_is_whole_passes() -> None:
    head = '"""A module."""\n'
    whole = (
        'def f(a, *b, c):\n    """Do.\n\n    Args:\n        a: one.\n        *b: many.\n'
        "        c (int): one.\n\n"
        '    Raises:\n        ValueError: always.\n    """\n    raise ValueError\n'
    )
    assert findings("x.py", head + whole) == []
    for old, new, what in (
        ("*b: many", "many", "does not name b"),
        ("Args:", "Of:", "no Args"),
        ("Raises:", "Of:", "no Raises"),
        ('"""Do.', 'x = """Do.', "no docstring"),
    ):
        assert [line for line in findings("x.py", head + whole.replace(old, new)) if what in line]
    assert findings("x.py", "a = 1\n") == ["x.py:1: module: no docstring"]
    private = whole.replace("def f", "def _f").replace("Args", "Of")
    assert findings("x.py", head + private) == []
    method = head + 'class A:\n    """A."""\n\n    def __init__(self, a, b, c):\n        pass\n'
    assert "A: no Args:, has a, b, c" in findings("x.py", method)[0]
    again = 'def f():\n    """Do."""\n    try:\n        pass\n    except OSError:\n        raise\n'
    assert findings("x.py", head + again) == []


if __name__ == "__main__":
    ROOT = Path.cwd()
    print(*check(*sys.argv[1:]), sep="\n")
