"""References in docstrings and comments resolve: ``:mod:``, ``:func:``, ``:class:``, ``:meth:``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import siri_kernels

ROOT = Path(__file__).parents[1]
PACKAGES = ("siri_kernels", "siri_train", "bench", "tests")
REFERENCE = re.compile(r":(mod|func|class|meth|attr|data|exc):`~?([\w.]+)`")
PUBLIC = set(siri_kernels.__all__)


class Module:
    """The names of a module: its own, those it imports, and those of its classes."""

    def __init__(self, path: Path, root: Path) -> None:
        parts = path.relative_to(root).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.names: set[str] = set()
        self.members: dict[str, set[str]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                self.members[node.name] = {name for part in node.body for name in _names(part)}
            self.names |= _names(node) if not isinstance(node, ast.arg) else set()

    def everything(self) -> set[str]:
        """Dotted names of the module, of what is in it, and of its classes' members."""
        members = {f"{cls}.{name}" for cls, names in self.members.items() for name in names}
        return {self.name} | {f"{self.name}.{name}" for name in self.names | members}


def _names(node: ast.AST) -> set[str]:
    """Names that a statement binds."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def loaded(root: Path, packages: tuple[str, ...]) -> dict[str, Module]:
    modules = [Module(p, root) for name in packages for p in sorted((root / name).rglob("*.py"))]
    return {module.name: module for module in modules}


def resolves(target: str, module: Module, modules: dict[str, Module]) -> bool:
    """Whether ``target`` names something, seen from ``module``."""
    if target.startswith("."):  # as Sphinx has it: whatever ends so
        return any(
            name.endswith(target) for other in modules.values() for name in other.everything()
        )
    if target.split(".")[0] not in {name.split(".")[0] for name in modules}:
        first, *rest = target.split(".")
        if target in PUBLIC:
            return True
        if first in module.members and rest:
            return rest[0] in module.members[first]
        known = first in module.names or any(first in m for m in module.members.values())
        return known or bool(rest)  # another library's
    if target in modules:
        return True
    parent, _, name = target.rpartition(".")
    if parent in modules:
        return name in modules[parent].names
    grandparent, _, cls = parent.rpartition(".")
    return grandparent in modules and name in modules[grandparent].members.get(cls, set())


def dangling(root: Path, packages: tuple[str, ...] = PACKAGES) -> list[str]:
    modules = loaded(root, packages)
    return [
        f"{module.name}: {match.group(0)}"
        for module in modules.values()
        if module.name not in (__name__, "tests.test_references")  # their examples
        for match in REFERENCE.finditer(module.text)
        if not resolves(match.group(2), module, modules)
    ]


@pytest.mark.costly
def test_references_resolve() -> None:
    assert not dangling(ROOT)


def test_what_does_not_resolve_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text(
        '''"""See :mod:`.two`, :func:`lib.two.there`, :meth:`Kind.call`, :class:`torch.Tensor`.

:mod:`.gone`, :func:`lib.two.gone`, :meth:`Kind.gone` and :func:`gone` are not there.
"""


class Kind:
    def call(self): ...
'''
    )
    (folder / "two.py").write_text("def there(): ...\n")
    found = [line.split(": ", 1)[1] for line in dangling(tmp_path, ("lib",))]
    assert found == [":mod:`.gone`", ":func:`lib.two.gone`", ":meth:`Kind.gone`", ":func:`gone`"]
