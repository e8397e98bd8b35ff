"""Nothing is left behind in the packages: no module, function, class or constant without a use."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("siri_kernels", "siri_train", "bench")
RUN_BY_NAME = re.compile(r"(?:^|\.)(?:__main__|conftest|test_\w+)$|^bench\.peers\.\w+$")
"""Modules that Python, pytest or the registry of peers finds by their name."""
CALLED_BY_OTHERS = re.compile(
    r"pytest_\w+|test_\w+"
    r"|on_(?:train|step|substep|save)\w*|input_type"  # trainers
    r"|construct_yaml_\w+|ignore_aliases"  # PyYAML
    r"|get_renderables"  # rich
    r"|ptr_range|get_current_(?:target|device|stream)"  # Triton
    r"|writelines|format_help|log_message"  # the standard library
)
"""Names that another library calls."""
PUBLIC = re.compile(r"\.integrations\.")
"""Modules that users import as they are; a page names what they offer."""
PLAIN = {"property", "staticmethod", "classmethod", "contextmanager", "cache"}
"""Decorators that register nothing: what has another one may be called through it."""
KEPT = re.compile(
    r"siri_train\.rewards\.verify\.worker_pids"  # tests end these processes
    r"|siri_kernels\.varlen\.\w+|siri_train\.schedule\.saved_share"  # public
    r"|bench\.[\w.]+\.(?:run|add_arguments)"  # bench.__main__ imports a command by its name
    r"|siri_train\.config\.engines\.register"  # users' packages call it
    r"|siri_train\.recipe|siri_train\.rewards\.verify\.grade_many"  # users' scripts
)
"""Names that the search below misses, and what only tests use, with the reason to keep them."""


class Tree(NamedTuple):
    """The sources by module name, and what else may name one: scripts, pages, pyproject.toml."""

    modules: dict[str, ast.Module]
    nodes: dict[str, list[ast.AST]]
    paths: dict[str, Path]
    words: str


def read(root: Path) -> Tree:
    modules, paths = {}, {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = ast.parse(path.read_text(encoding="utf-8"))
            paths[name] = path
    others = [root / "Makefile", root / "pyproject.toml", root / "README.md", root / ".ci" / "run"]
    others += [*(root / "docs").glob("*.md"), *root.glob("CONTRIBUTING.md")]
    others += [*(root / "scripts").glob("*"), *(root / "examples").glob("*.py")]
    words = "\n".join(p.read_text(encoding="utf-8") for p in others if p.is_file())
    nodes = {name: list(ast.walk(module)) for name, module in modules.items()}
    return Tree(modules, nodes, paths, words)


def imports(tree: Tree) -> set[tuple[str, str]]:
    """(module, name) of every import; a module imported as a whole has the name ``""``."""
    found = set()
    for name, nodes in tree.nodes.items():
        is_package = tree.paths[name].name == "__init__.py"
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = node.module or "" if not node.level else ".".join(above)
                if node.level and node.module:
                    base = f"{base}.{node.module}"
                found |= {(base, alias.name) for alias in node.names}
    return found


def definitions(module: ast.Module) -> Iterator[tuple[str, ast.stmt, bool]]:
    """(name, statement, whether inside a class) of what a module defines."""
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node, False
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef):
                        yield inner.name, inner, True
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for named in ast.walk(target):
                    if isinstance(named, ast.Name) and isinstance(named.ctx, ast.Store):
                        yield named.id, node, False


def names(nodes: Iterable[ast.AST]) -> Counter[str]:
    """How often each name is read, attributes and keywords too."""
    found: Counter[str] = Counter()
    for child in nodes:
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load):
            found[child.id] += 1
        elif isinstance(child, ast.Attribute):
            found[child.attr] += 1
        elif isinstance(child, ast.keyword) and child.arg:
            found[child.arg] += 1
    return found


def strings(nodes: list[ast.AST]) -> Iterator[str]:
    """Every text of a module but its docstrings."""
    docs = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def is_run(module: ast.Module) -> bool:
    """Whether it says what ``python -m`` does with it."""
    return any(isinstance(n, ast.If) and "__name__" in ast.unparse(n.test) for n in module.body)


def unused_modules(tree: Tree) -> list[str]:
    """Modules that nothing imports, runs or names."""
    used = {part for base, name in imports(tree) for part in (base, f"{base}.{name}")}
    for mention in re.findall(rf"\b(?:{'|'.join(PACKAGES)})(?:[./]\w+)+", tree.words):
        parts = mention.replace("/", ".").split(".")
        used |= {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
    for package, name in re.findall(r"from (siri_[\w.]+) import (\w+)", tree.words):
        used.add(f"{package}.{name}")
    texts = "\n".join(text for nodes in tree.nodes.values() for text in strings(nodes))
    said = set(re.findall(r"\w+", texts))
    above = {name.rpartition(".")[0] for name in tree.modules}
    return [
        name
        for name, module in tree.modules.items()
        if name not in used | above
        and name.rpartition(".")[2] not in said
        and not (RUN_BY_NAME.search(name) or is_run(module))
    ]


def attributes(nodes: list[ast.AST], of: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(module, name) of every ``alias.name``; ``of`` has the module of an alias."""
    for node in nodes:
        if isinstance(node, ast.Attribute):
            value = dotted(node.value)
            if value in of:
                yield of[value], node.attr


def dotted(node: ast.expr) -> str:
    """``a.b`` of the names in it; empty for another expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def aliases(name: str, tree: Tree) -> dict[str, str]:
    """What a module calls the modules that it imports."""
    found = {}
    for node in tree.nodes[name]:
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in tree.modules:
                    found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def unused_names(tree: Tree) -> list[str]:
    """``MODULE.NAME`` that nothing but tests uses.

    What a module defines is used where another imports it, where it is read as ``module.name``,
    where its own module reads it, or where a text is its name (``getattr``). What integrations
    offer stands on a page. A method, which any object may have, and a constant are looked for by
    their name alone.
    """
    imported = imports(tree)
    for name, nodes in tree.nodes.items():
        imported |= set(attributes(nodes, aliases(name, tree)))
    read_in = {name: names(nodes) for name, nodes in tree.nodes.items()}
    anywhere = set().union(*read_in.values())
    texts = {text for nodes in tree.nodes.values() for text in strings(nodes)}
    said = {text for text in texts if re.fullmatch(r"\w*_\w*", text)}  # for getattr; not any word
    imported |= {tuple(text.split(":")) for text in texts if re.fullmatch(r"[\w.]+:\w+", text)}
    on_pages = set(re.findall(r"\w+", tree.words))
    found = []
    for where, module in tree.modules.items():
        exported = {name for base, name in imported if base == where}
        for name, statement, method in definitions(module):
            decorators = {ast.unparse(d) for d in getattr(statement, "decorator_list", ())}
            by_others = name.startswith("__") or CALLED_BY_OTHERS.fullmatch(name)
            if by_others or decorators - PLAIN or KEPT.fullmatch(f"{where}.{name}"):
                continue
            if PUBLIC.search(where) and name in on_pages:
                continue
            here = read_in[where][name] > names(ast.walk(statement))[name]
            if method or name.isupper():
                here = name in anywhere
            if not here and name not in exported | said:
                found.append(f"{where}.{name}")
    return found


@pytest.fixture(scope="module")
def tree() -> Tree:
    return read(ROOT)


def test_no_module_is_left_behind(tree: Tree) -> None:
    assert unused_modules(tree) == []


def test_no_name_is_left_behind(tree: Tree) -> None:
    assert unused_names(tree) == []


SOURCES = {
    "siri_train/__init__.py": "",
    "siri_train/a.py": "from siri_train import b\nfrom siri_train.c import used as x\nb.read()\n",
    "siri_train/b.py": """
def read(): return _help()
def _help(): return 1
LEFT = 1
def alone(): return alone()
class Kind:
    def lost(self): return self
""",
    "siri_train/c.py": """
def used():
    'Not forgotten.'
def forgotten(): pass
@register
def called(): pass
k = getattr(used, 'by_text')
def by_text(): pass
""",
    "siri_train/d.py": "import siri_train.a\n",
    "siri_train/e.py": "if __name__ == '__main__':\n    pass\n",
    "siri_train/f.py": "",
    "docs/page.md": "`forgotten` and siri_train/f.py\n",
}


def test_what_nobody_uses_is_found(tmp_path: Path) -> None:
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    made = read(tmp_path)
    assert unused_modules(made) == ["siri_train.d"]
    assert unused_names(made) == [
        *(f"siri_train.b.{name}" for name in ("LEFT", "alone", "Kind", "lost")),
        *(f"siri_train.c.{name}" for name in ("forgotten", "k")),
    ]
