"""Imports go one way: they are the arrows of docs/architecture.md, and none is a circle."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("siri_train", "siri_kernels", "bench")
MOST_MODULES = 8  # directly in siri_train/, see the house's plan: a stranger sees rooms, not files
LONGEST = 400  # lines


def modules(package: str, root: Path = ROOT) -> dict[str, Path]:
    """Dotted names of a package's modules; a package stands for its ``__init__.py``."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, names: dict[str, Path]) -> set[str]:
    """Modules among ``names`` that a file imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            asked = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                up = package[: len(package) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            whole = [f"{base}.{alias.name}" for alias in node.names]
            asked = [module if module in names else base for module in whole]
        else:
            continue
        found |= {module for module in asked if module in names and module != name}
    return found


def room(module: str) -> str:
    """``config`` of ``siri_train.config.run``; the package itself has none."""
    return (module.split(".") + [""])[1]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One walk that comes back for every module where there is one."""
    state: dict[str, int] = {}
    walk: list[str] = []
    found = []

    def visit(module: str) -> None:
        state[module] = 1
        walk.append(module)
        for target in sorted(graph[module]):
            if state.get(target) == 1:
                found.append([*walk[walk.index(target) :], target])
            elif target not in state:
                visit(target)
        walk.pop()
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module)
    return found


def arrows(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Rooms that the files of each room import."""
    names = modules(package, root)
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = {room(target) for target in imported(name, path, names)} - {"", room(name)}
        if room(name) and targets:
            found.setdefault(room(name), set()).update(targets)
    return found


def listed(package: str) -> dict[str, list[str]]:
    """The page's arrows, in its order."""
    text = PAGE.read_text(encoding="utf-8")
    block = re.search(rf"```arrows {package}\n(.*?)```", text, re.S)
    assert block, f"docs/architecture.md has no arrows of {package}"
    lines = [line.split(" -> ") for line in block[1].splitlines() if line.strip()]
    return {source.strip(): targets.split() for source, targets in lines}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_the_arrows_of_the_page(package: str) -> None:
    there, said = arrows(package), {a: set(b) for a, b in listed(package).items()}
    new = {f"{a} -> {b}" for a, targets in there.items() for b in targets - said.get(a, set())}
    gone = {f"{a} -> {b}" for a, targets in said.items() for b in targets - there.get(a, set())}
    assert not new, f"imports that docs/architecture.md does not allow: {sorted(new)}"
    assert not gone, f"arrows of docs/architecture.md that no import needs: {sorted(gone)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_runs_back_up(package: str) -> None:
    order = list(listed(package))
    assert len(order) == len(set(order))
    for source, targets in listed(package).items():
        for target in targets:
            below = target not in order or order.index(target) > order.index(source)
            assert below, f"{source} -> {target} runs back up"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other(package: str) -> None:
    names = modules(package)
    found = circles({name: imported(name, path, names) for name, path in names.items()})
    assert not found, "\n".join(" -> ".join(walk) for walk in found)


def test_packages_import_downwards() -> None:
    """bench -> siri_train -> siri_kernels."""
    for package, below in (
        ("siri_kernels", ()),
        ("siri_train", ("siri_kernels",)),
    ):
        for path in modules(package).values():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    tops = {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    tops = {(node.module or "").split(".")[0]}
                else:
                    continue
                ours = tops & {*PACKAGES, "tests", "examples"}
                assert ours <= {package, *below}, f"{path.relative_to(ROOT)}: {sorted(ours)}"


def test_siri_train_shows_rooms_and_few_files() -> None:
    loose = sorted(path.name for path in (ROOT / "siri_train").glob("*.py"))
    assert len(loose) <= MOST_MODULES, loose


def test_files_are_short() -> None:
    long = {}
    for package in (*PACKAGES, "tests"):
        for path in (ROOT / package).rglob("*.py"):
            count = len(path.read_text(encoding="utf-8").splitlines())
            if count > LONGEST:
                long[str(path.relative_to(ROOT))] = count
    assert not long, f"files over {LONGEST} lines, split by concept: {long}"


def test_a_new_arrow_a_circle_and_a_relative_import_are_seen(tmp_path: Path) -> None:
    """The walk itself, on a small package."""
    for name, text in {
        "p/__init__.py": "",
        "p/low/__init__.py": "",
        "p/low/a.py": "def f():\n    from .b import g\n",
        "p/low/b.py": "from p.low import a\n",
        "p/high.py": "import p.low.a\nfrom .low import b as c\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    names = modules("p", tmp_path)
    graph = {name: imported(name, path, names) for name, path in names.items()}
    assert graph["p.high"] == {"p.low.a", "p.low.b"}
    assert circles(graph) == [["p.low.a", "p.low.b", "p.low.a"]]
    assert arrows("p", tmp_path) == {"high": {"low"}}
