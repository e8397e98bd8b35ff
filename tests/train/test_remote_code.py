"""No code of a model folder is run: every loading call says so, wherever it stands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "siri_train").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])
ASKED = ("from_pretrained", "from_config")
NO_CODE = ("GenerationConfig",)  # has no code to run, and takes every keyword for a value


def calls(tree: ast.AST) -> list[ast.Call]:
    """Calls of transformers' loaders."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ASKED
        and ast.unparse(node.func.value) not in NO_CODE
    ]


def refuses(call: ast.Call) -> bool:
    """Whether ``trust_remote_code=False`` stands in the call itself."""
    return any(
        k.arg == "trust_remote_code"
        and isinstance(k.value, ast.Constant)
        and k.value.value is False
        for k in call.keywords
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_loading_call_refuses_remote_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not any(name in text for name in ASKED):
        return
    wrong = [call.lineno for call in calls(ast.parse(text)) if not refuses(call)]
    assert not wrong, f"{path}: trust_remote_code=False is missing in lines {wrong}"


def test_the_test_finds_what_it_looks_for() -> None:
    assert sum(len(calls(ast.parse(p.read_text(encoding="utf-8")))) for p in FILES) >= 10
    for text, fine in (
        ("A.from_pretrained(x)", False),
        ("A.from_pretrained(x, trust_remote_code=True)", False),
        ("A.from_config(c, **kw)", False),
        ("A.from_pretrained(x, trust_remote_code=False)", True),
    ):
        assert refuses(calls(ast.parse(text))[0]) == fine
