"""Every number that two results share, and its ratio; settings that differ come first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in nested dictionaries and lists, by their path; single rounds left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "all":
                continue
            yield from _numbers(item, f"{name} / {key}" if name else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{name} [{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def _read(path: Path) -> dict[str, Any]:
    """The result in ``path``.

    Raises:
        SystemExit: it is no JSON object.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench compare: {path} is no result of the bench: {error}") from None
    if not isinstance(result, dict):
        raise SystemExit(f"bench compare: {path} is no result of the bench: not an object")
    return result


def compared(a: dict[str, Any], b: dict[str, Any], at_least: float) -> str:
    """A Markdown table of the numbers that changed, and the names that only one result has.

    Settings that differ (device, versions, commit) come first: ratios across them say little.

    Args:
        a: a result.
        b: another.
        at_least: factor of the smallest change that is shown.
    """
    lines = [
        f"{key}: {a.get(key)} | {b.get(key)}"
        for key in ("device", "cores", "torch", "python", "commit", "threads")
        if a.get(key) != b.get(key)
    ]
    first, second = dict(_numbers(a)), dict(_numbers(b))
    lines += ["", "| number | A | B | B / A |", "|---|---|---|---|"]
    for name in first.keys() & second.keys():
        x, y = first[name], second[name]
        if x == y or (x and max(abs(y / x), abs(x / y) if y else at_least) < at_least):
            continue
        ratio = f"{y / x:.3f}" if x else ""
        lines.append(f"| {name} | {x:.4g} | {y:.4g} | {ratio} |")
    head = lines.index("|---|---|---|---|") + 1
    lines[head:] = sorted(lines[head:])
    for label, mine, other in (("A", first, second), ("B", second, first)):
        alone = sorted(mine.keys() - other.keys())
        if alone:
            lines += ["", f"Only in {label}: {', '.join(alone)}"]
    return "\n".join(lines).strip() + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench compare``."""
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument(
        "--at-least", type=float, default=1.0, help="leave out what changed by a smaller factor"
    )


def run(given: argparse.Namespace) -> None:
    """``python -m bench compare A.json B.json``: print the table."""
    print(compared(_read(given.a), _read(given.b), given.at_least), end="")
