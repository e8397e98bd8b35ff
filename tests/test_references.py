"""What code, docstrings, scripts and recipes refer to is there: files, pages, modules, names."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".sh", ".yaml", ".yml", ".toml", ".txt", ".md", ""}
FILE = re.compile(
    r"(?<![\w./{}~-])(?:siri_kernels|siri_train|bench|tests|scripts|docs|examples|recipes)"
    r"/[\w./-]*\w\.(?:py|md|sh|yaml|json|txt|toml)\b"
)
PAGE = re.compile(r"(?<![\w./{}:-])[\w-]+\.md\b")
DOTTED = re.compile(r"(?:(?<=``)|(?<=:`)|(?<=:`~))(?:siri_kernels|siri_train|bench)(?:\.\w+)+")

ELSEWHERE = {
    # written by commands
    *("bench/results/X.md", "NAME.md", "curves.md", "demo.md", "gpu.md", "proof.md", "summary.md"),
    # of rllm, NeMo-RL, prime-rl
    *("scripts/data/deepscaler_dataset.py", "examples/run_grpo.py", "docs/algorithms.md"),
}


def tracked(root: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    paths = [root / name for name in listed.split("\0") if name]
    paths = [p for p in paths if p.name != Path(__file__).name]
    return [p for p in paths if p.suffix in SUFFIXES and p.is_file() and not p.is_symlink()]


def prose(path: Path, text: str) -> str:
    """Comments and docstrings of Python, the whole of other files."""
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.append(str(node.value.value))
    return "\n".join(found)


def dangling(path: Path, root: Path) -> list[str]:
    """Files, pages and dotted names that a file refers to and that are not in the repository."""
    text = path.read_text(encoding="utf-8")
    pages = {page.name for part in ("", "docs", "docs/log") for page in (root / part).glob("*.md")}

    def files(text: str) -> list[str]:
        found = [name for name in FILE.findall(text) if not (root / name).exists()]
        if path.suffix != ".md":  # tests/test_docs.py looks at the links of pages
            found += [name for name in PAGE.findall(text) if name not in pages]
        return [name for name in found if name not in ELSEWHERE]

    found = files(text) and files(prose(path, text))  # the second is slow
    return found + [name for name in DOTTED.findall(text) if not exists(name, root)]


def exists(dotted: str, root: Path) -> bool:
    """Whether ``a.b.C.d`` is a module, or what a module defines or imports, or its member."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = root.joinpath(*parts[:length])
        file = (
            base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        )
        if file.is_file():
            return length == len(parts) or parts[length] in defined(file)
    return False


@cache
def defined(file: Path) -> set[str]:
    """The names that a module defines or imports, those inside of its classes too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def test_nothing_refers_to_what_is_not_there() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing is tracked")
    found = {}
    for path in tracked(ROOT):
        name = str(path.relative_to(ROOT))
        if not name.startswith(("docs/log/", "CHANGELOG")):  # these keep the names of their day
            found[name] = dangling(path, ROOT)
    assert {name: missing for name, missing in found.items() if missing} == {}


TEXT = '''"""See docs/here.md, gone.md, ``bench.a.Kind.run`` and :func:`bench.a.lost`."""
# As siri_train/no.py does; tests/a/../b is no path of ours, nor is ../docs/x.md.
NAME = "tests/made/by_this.py"
'''


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "here.md").touch()
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "a.py").write_text("class Kind:\n    def run(self): pass\n")
    (tmp_path / "bench" / "b.py").write_text(TEXT)
    missing = dangling(tmp_path / "bench" / "b.py", tmp_path)
    assert missing == ["siri_train/no.py", "gone.md", "bench.a.lost"]
    (tmp_path / "run.sh").write_text("python tests/no.py  # docs/here.md\n")
    assert dangling(tmp_path / "run.sh", tmp_path) == ["tests/no.py"]
