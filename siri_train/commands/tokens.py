"""Words that move with the cap: ``siri-train tokens``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from siri_train.config.base import ConfigError
from siri_train.files import shown
from siri_train.monitor.backtrack import GROUPS, WordCounter
from siri_train.report.arms import seeds_by_arm
from siri_train.report.data import Run, number, read_run_folder
from siri_train.report.token_pooling import KEYS, TOKENS, counted, groups_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Counts of a run, a record a step.

    Args:
        run: its folder.
        source: ``metrics.jsonl``, or ``rollouts`` where the words were counted on texts.
        rows: records with ``phase``, ``cap``, ``token_groups`` and tokens, in the order of steps.
        steps: of the run, those without counts too.
        responses: whose texts were read; 0 with ``metrics.jsonl``.
    """

    run: str
    source: str
    rows: list[Row]
    steps: int
    responses: int = 0


def tables(folders: Sequence[Path], words: Sequence[str] = ()) -> tuple[list[Table], list[str]]:
    """The counts of all runs that have some.

    Args:
        folders: of runs, or of folders that hold runs.
        words: those to look at; none: the groups that the runs counted, else the paper's. What a
            run did not count is counted on the texts in its ``rollouts``.

    Returns:
        The tables, at least one; and a line for each run, or words of a run, without counts.

    Raises:
        ConfigError: no such folder, an empty word, or no run that has counts or texts.
    """
    for word in words:
        if not any(map(str.isalnum, word)):
            raise ConfigError(
                f"--words: {word!r} is no word; takes words and phrases with commas between"
            )
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{shown(folder)} is not a folder; takes a run's folder")
    found: list[Table] = []
    lacking: list[str] = []
    for folder in folders:
        runs = [run for run in _runs(folder) if run.folder != folder or _has_records(run)]
        if not runs:
            lacking.append(
                f"{shown(folder)} holds no run (metrics.jsonl and rollouts/ are missing); "
                "give the folder of a run, or of a demo"
            )
        for run in runs:
            try:
                found += _of_run(run, words, lacking)
            except _WithoutCountsError as error:
                lacking.append(str(error))
    if not found:
        more = f" ({len(lacking) - 1} more without counts)" if len(lacking) > 1 else ""
        raise ConfigError(lacking[0] + more)
    return found, lacking


class _WithoutCountsError(Exception):
    """A run that has neither counts nor texts: its folder, the reason, the remedy."""


def _has_records(run: Run) -> bool:
    return bool(run.metrics) or (run.folder / "rollouts").is_dir()


def _runs(folder: Path) -> list[Run]:
    """The runs in a folder; of an ablation every seed, as a mean of seeds counts nothing."""
    found = read_run_folder(folder)
    if not found.several:
        return found.runs
    seeds = [path for paths in seeds_by_arm(folder).values() for path in paths]
    return [run for path in seeds for run in read_run_folder(path).runs]


def _of_run(run: Run, words: Sequence[str], lacking: list[str]) -> list[Table]:
    """A run's tables; a line joins ``lacking`` where only some of the words have counts."""
    rows = counted(run.metrics)
    there = _words_of(run, groups_of(rows))
    if not words:
        return [_from_metrics(run, rows, groups_of(rows)) if rows else _from_texts(run, GROUPS)]
    by_word = {only[0].casefold(): name for name, only in there.items() if len(only) == 1}
    spaced = list(dict.fromkeys(" ".join(word.split()) for word in words))
    known = {word: by_word[word.casefold()] for word in spaced if word.casefold() in by_word}
    more = {word: (word,) for word in spaced if word not in known}
    found = [_from_metrics(run, rows, list(known.values()))] if known else []
    if not more:
        return found
    try:
        return [*found, _from_texts(run, more)]
    except _WithoutCountsError as error:
        if not found:
            raise
        lacking.append(str(error))
        return found


def _words_of(run: Run, names: Sequence[str]) -> dict[str, Sequence[str]]:
    """The words of the groups that the run counted; one whose words are not known is left out."""
    own: Any = None
    try:
        config = yaml.safe_load(run.config or "")
        own = config["monitor"]["token_groups"]
    except (yaml.YAMLError, TypeError, KeyError):
        pass
    known: dict[str, Sequence[str]] = {**GROUPS, **(own if isinstance(own, dict) else {})}
    return {name: known[name] for name in names if isinstance(known.get(name), (list, tuple))}


def _from_metrics(run: Run, rows: Sequence[Row], names: Sequence[str]) -> Table:
    chosen = [
        {**row, "token_groups": {name: row["token_groups"].get(name) for name in names}}
        for row in rows
    ]
    return Table(str(run.folder), "metrics.jsonl", chosen, len(run.metrics))


def _from_texts(run: Run, groups: Mapping[str, Sequence[str]]) -> Table:
    counter = WordCounter(groups)
    by_step = {row["step"]: row for row in run.metrics}
    rows, responses = [], 0
    for step, texts in _rollouts(run.folder / "rollouts"):
        if not texts:
            continue
        responses += len(texts)
        row = by_step.get(step, {})
        facts = {key: row.get(key) for key in ("cycle", "phase")}
        cap = next((text["cap"] for text in texts if "cap" in text), row.get("cap"))
        rows.append({"step": step, **facts, "cap": cap, **_counts(counter, texts)})
    if not rows:
        raise _WithoutCountsError(
            f"{shown(run.folder)}: metrics.jsonl has no counts of {', '.join(groups)}, and "
            "rollouts/ holds no responses to count them in; "
            + (
                "set monitor.rollouts_every, or name the words in monitor.token_groups, in the "
                "recipe of the next run"
                if run.metrics
                else "it has no steps yet"
            )
        )
    return Table(str(run.folder), "rollouts", rows, len(run.metrics), responses)


def _counts(counter: WordCounter, texts: Sequence[Row]) -> Row:
    """The keys of a record of ``metrics.jsonl`` from the responses of a step."""
    tokens = dict.fromkeys(KEYS, 0)
    found: dict[str, dict[str, int]] = {}
    for row in texts:
        right = _right(row)
        keys = ["all"] if right is None else ["all", "right" if right else "wrong"]
        for key in keys:
            tokens[key] += int(row["tokens"])
        for name, count in counter.counts(row["response"]).items():
            of_name = found.setdefault(name, dict.fromkeys(KEYS, 0))
            for key in keys:
                of_name[key] += count
    return {
        **{TOKENS[key]: tokens[key] for key in KEYS},
        "token_groups": {
            name: {key: 1000 * n / tokens[key] if tokens[key] else None for key, n in of.items()}
            for name, of in found.items()
        },
    }


def _right(row: Row) -> bool | None:
    """Whether a response was right; older files have its reward only, which was 1 or 0."""
    if "right" in row:
        return row["right"] if isinstance(row["right"], bool) else None
    reward = number(row.get("reward"))
    return None if reward is None else reward > 0


def _rollouts(folder: Path) -> Iterator[tuple[int, list[Row]]]:
    """Step and responses of each file, in the order of steps; damaged lines are left out."""
    files = {}
    for path in folder.glob("step_*.jsonl") if folder.is_dir() else ():
        match = re.fullmatch(r"step_(\d+)\.jsonl", path.name)
        if match and path.is_file():
            files[int(match[1])] = path
    for step in sorted(files):
        rows = []
        with files[step].open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if _whole(row):
                    rows.append(row)
        yield step, rows


def _whole(row: object) -> bool:
    """Whether a line has a response and its tokens."""
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
        return False
    tokens = row.get("tokens")
    return isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 1e12
