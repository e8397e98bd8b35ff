"""``python -m bench compare A.json B.json``: every number that two results share, and its ratio."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in nested dictionaries and lists, by their path; single rounds left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "all":
                continue
            yield from numbers(item, f"{name} / {key}" if name else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, f"{name} [{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def read(path: Path) -> dict[str, Any]:
    """The result in ``path``; SystemExit with the reason where there is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench compare: {path} is no result of the bench: {error}") from None
    if not isinstance(result, dict):
        raise SystemExit(f"bench compare: {path} is no result of the bench: not an object")
    return result


def compared(a: dict[str, Any], b: dict[str, Any], at_least: float) -> str:
    """A Markdown table of what changed by the factor ``at_least`` or more, and what only one has.

    Settings that differ (device, versions, commit) come first: ratios across them say little.
    """
    lines = [
        f"{key}: {a.get(key)} | {b.get(key)}"
        for key in ("device", "cores", "torch", "python", "commit", "threads")
        if a.get(key) != b.get(key)
    ]
    first, second = dict(numbers(a)), dict(numbers(b))
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


def main(arguments: list[str]) -> None:
    """Print the comparison of two files."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument(
        "--at-least", type=float, default=1.0, help="leave out what changed by a smaller factor"
    )
    given = parser.parse_args(arguments)
    print(compared(read(given.a), read(given.b), given.at_least), end="")
