"""Completion by TAB: ``siri-train completion SHELL`` prints the script, argcomplete does the rest.

At every TAB the shell runs ``siri-train`` with the line so far. What stands here must be quick:
the keys of a recipe come from ``siri_train/config/keys.json``, which
``python -m siri_train.config.reference`` writes, and neither pydantic nor torch is imported.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from siri_train.commands.arguments import CHECKPOINTS, ENDS
from siri_train.files import home_expanded

_ROOT = Path(__file__).parents[1]
_RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json")


def script(shell: str) -> str:
    """The script that the shell must run once per session.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.

    Raises:
        ConfigError: argcomplete is not installed.
    """
    try:
        import argcomplete
    except ImportError as error:
        from siri_train.config.base import ConfigError

        raise ConfigError(
            "argcomplete is not installed; pip install 'siri-kernels[completion]' brings it"
        ) from error
    return argcomplete.shellcode(["siri-train"], shell=shell).lstrip("\n")


def complete() -> int:
    """Answer the shell, which has put the line into the environment, and end the process.

    Returns:
        1, only where argcomplete is not installed: the shell then completes nothing.
    """
    from siri_train.commands.parser import build_parser

    try:
        from argcomplete.finders import CompletionFinder
    except ImportError:
        return 1

    class Finder(CompletionFinder):
        """Knows that overrides may also stand behind an option, as ``parse`` takes them."""

        def collect_completions(
            self,
            active_parsers: list[argparse.ArgumentParser],
            parsed_args: argparse.Namespace,
            cword_prefix: str,
        ) -> list[str]:
            found = super().collect_completions(active_parsers, parsed_args, cword_prefix)
            taken = (action.dest for action in active_parsers[-1]._actions)
            if not found and cword_prefix and "overrides" in taken:
                return overrides(cword_prefix)
            return found

    parser = build_parser()
    _attach(parser)
    Finder()(parser, always_complete_options=False)
    return 1


def _attach(parser: argparse.ArgumentParser) -> None:
    """Give each argument the completer whose name it bears, in all commands."""
    for action in parser._actions:
        kind = getattr(action, "completed_by", None)
        if kind is not None:
            action.completer = _Completer(kind)  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _attach(sub)


@dataclass(frozen=True)
class _Completer:
    kind: str

    def __call__(self, prefix: str, **_: Any) -> list[str]:
        return _COMPLETERS[self.kind](prefix)


@cache
def keys() -> dict[str, list[str] | str]:
    """Every key of a recipe, with ``N`` for the number of an item.

    Returns:
        For each key the values it takes, ``"path"``, or an empty list where they are free.
    """
    return json.loads((_ROOT / "config" / "keys.json").read_text(encoding="utf-8"))


def recipes(prefix: str) -> list[str]:
    """Packaged recipes, YAML files and the folders that may lead to more."""
    packaged = sorted(path.stem for path in (_ROOT / "recipes").glob("*.yaml"))
    return [n for n in packaged if n.startswith(prefix)] + _paths(
        prefix, lambda path: path.suffix in (".yaml", ".yml")
    )


def overrides(prefix: str) -> list[str]:
    """The next part of a key, ``KEY=``, or ``KEY=VALUE`` once the key is there."""
    key, equals, value = prefix.partition("=")
    numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", key)
    if equals:
        takes = keys().get(re.sub(r"(?<=\.)\d+(?=\.|$)", "N", key), [])
        values = _paths(value) if isinstance(takes, str) else takes
        return [f"{key}={v}" for v in values if v.startswith(value)]
    known = [f"{_numbered(name, numbers)}=" for name in keys()]
    return _next_parts([name for name in known if name.startswith(prefix)])


def folders(prefix: str) -> list[str]:
    """Folders."""
    return _paths(prefix, lambda path: False)


def runs(prefix: str) -> list[str]:
    """Folders of runs below here or ``runs``, where there are any; else all folders."""
    found = folders(prefix)
    if not prefix and Path("runs").is_dir():
        found += folders("runs/")
    of_runs = [path for path in found if any((Path(path) / name).is_file() for name in _RUN_FILES)]
    return [path.rstrip("/") for path in of_runs] or found


def _next_parts(names: list[str]) -> list[str]:
    """The names up to the first dot behind which they differ; a single name as it is."""
    start = 0
    while True:
        parts = dict.fromkeys(name[: name.find(".", start) + 1] or name for name in names)
        first = next(iter(parts), "")
        if len(parts) != 1 or not first.endswith("."):
            return list(parts)
        start = len(first)


def _numbered(key: str, numbers: list[str]) -> str:
    """The key with the numbers that were typed in place of ``N``, from the left; else 0."""
    typed = iter(numbers)
    return re.sub(r"(?<=\.)N(?=\.|$)", lambda _: next(typed, "0"), key)


def _paths(prefix: str, wanted: Callable[[Path], bool] = lambda path: True) -> list[str]:
    """Folders, with a slash behind, and the files that are wanted."""
    above, _, name = prefix.rpartition("/")
    try:
        folder = Path(home_expanded(above + "/") if "/" in prefix else ".")
        entries = sorted(folder.iterdir())
    except (OSError, ValueError):  # not to be read; no such user
        return []
    start = prefix[: len(prefix) - len(name)]
    shown = [e for e in entries if e.name.startswith(name) and (name or e.name[0] != ".")]
    return [start + e.name + ("/" if e.is_dir() else "") for e in shown if e.is_dir() or wanted(e)]


def listed(names: Iterable[str], prefix: str) -> list[str]:
    """Names with commas between: the next one behind the last comma."""
    before, comma, last = prefix.rpartition(",")
    taken = before.split(",")
    return [before + comma + n for n in names if n.startswith(last) and n not in taken]


def methods(prefix: str) -> list[str]:
    """Methods of ``siri-train ablate``."""
    from siri_train.ablate.presets import METHODS

    return listed(METHODS, prefix)


def alarms(prefix: str) -> list[str]:
    """Alarms; those of plug-ins are not looked for."""
    from siri_train.monitor.alarms import ALARMS

    return [name for name in ALARMS if name.startswith(prefix)]


_COMPLETERS: dict[str, Callable[[str], list[str]]] = {
    "recipe": recipes,
    "override": overrides,
    "folder": folders,
    "run": runs,
    "data file": lambda prefix: _paths(
        prefix, lambda path: path.suffix in (".jsonl", ".json", ".parquet", ".csv", ".gz")
    ),
    "resume": lambda prefix: ["auto", "never", *folders(prefix)],
    "method": methods,
    "alarm": alarms,
    "at": lambda prefix: listed(CHECKPOINTS, prefix),
    "which": lambda prefix: [*ENDS, "best"],
}
"""Completes an argument: takes the typed text, gives all texts that may stand there."""
