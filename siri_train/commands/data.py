"""``siri-train data``: public sets by name, as files that recipes read without a field map."""

from __future__ import annotations

import argparse
import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.config.paths import check_file, user_path
from siri_train.data.known import convert as rules
from siri_train.data.known.fetch import Read, read_set
from siri_train.data.known.registry import HELD_OUT, KNOWN, KnownSet, where_it_lies
from siri_train.data.known.write import as_text, write_set
from siri_train.data.questions import Question, load_questions
from siri_train.data.row_files import HUB
from siri_train.data.rows import DataError
from siri_train.rewards import Verifier, make_verifier

_NAMED = 20
"""Rows of each reason that the card names."""


def get(arguments: argparse.Namespace) -> list[str]:
    """Read a set, make its rows, and write them with a card.

    Args:
        arguments: of ``siri-train data get``.

    Returns:
        Lines that say what was read, left out and written.

    Raises:
        ConfigError: the set cannot be read, has unknown columns, or may not be written there.
    """
    entry, folder = KNOWN[arguments.name], user_path(arguments.to, "--to")
    files = where_it_lies(entry, folder)
    if arguments.validation is not None and not entry.validation:
        raise ConfigError(f"--validation: {entry.name} has none; it is an option of deepscaler")
    card_file = _card_file(entry, folder)
    for file in (*files.values(), card_file):
        check_file(file, "--to")
    try:
        read = read_set(entry, arguments.source)
    except (DataError, ImportError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"get {entry.name}: {text}{_by_hand(entry, arguments)}") from error
    try:
        return _made(entry, arguments, read, files, card_file)
    except DataError as error:
        raise ConfigError(f"get {entry.name}: {' '.join(str(error).split())}") from error


def _made(
    entry: KnownSet,
    arguments: argparse.Namespace,
    read: Read,
    files: dict[str, Path],
    card_file: Path,
) -> list[str]:
    folder = user_path(arguments.to, "--to")
    said: list[str] = []
    texts: dict[Path, str] = {}
    card: dict[str, Any] = {
        "name": entry.name,
        "licence": entry.licence,
        "read": read.sources,
        "splits": {},
    }
    verifier, name = _verifier()
    with closing(verifier):
        for split, rows in read.rows.items():
            if not rows:
                continue
            found, chosen, about = _converted(entry, arguments, rows, verifier, folder)
            about |= {"read": len(rows), "expected": entry.expected.get(split), "verifier": name}
            about["left_out"] = {reason: len(w) for reason, w in found.left_out.items()}
            about["left_out_rows"] = {r: w[:_NAMED] for r, w in found.left_out.items()}
            said += _told(entry, split, about, arguments.source)
            if arguments.strict and found.left_out:
                reason, where = next(iter(found.left_out.items()))
                raise DataError(f"--strict: {len(where)} rows left out: {reason} ({where[0]})")
            if not found.kept:
                raise DataError(f"no row is left of {len(rows)}; {'; '.join(said)}")
            if entry.validation:
                train, apart = rules.set_apart(found, chosen)
                parts = {"train": train, **({"validation": apart} if chosen else {})}
            else:
                parts = {split: [row for _, row in found.kept]}
            about["written"] = sum(len(part) for part in parts.values())
            card["splits"][split or "all"] = about
            texts |= {files[part]: as_text(written) for part, written in parts.items()}
    new = write_set(texts, card_file, card, force=arguments.force)
    for file, text in texts.items():
        state = "written" if file in new else "there already, the same"
        said.append(f"{file}: {text.count(chr(10))} rows, {state}")
    return [*said, f"{card_file}: where it comes from, checksums, what was left out"]


def _converted(
    entry: KnownSet,
    arguments: argparse.Namespace,
    rows: list[Any],
    verifier: Verifier,
    folder: Path,
) -> tuple[rules.Converted, frozenset[str], dict[str, Any]]:
    """The rows of a split, which of them are for validation, and what the card says about them."""
    chosen: frozenset[str] = frozenset()
    if entry.code:
        return rules.convert_code(rows), chosen, {"columns": "as they are (format: code)"}
    given = {
        "question": arguments.question_field,
        "answer": arguments.answer_field,
        "solution": arguments.solution_field,
    }
    columns = rules.find_columns(entry, rows, given)
    found = rules.convert(entry, rows, columns)
    rules.leave_out_unusable(found, verifier)
    about: dict[str, Any] = {"columns": {k: v for k, v in vars(columns).items() if v is not None}}
    if entry.training:
        rules.leave_out_repeats(found, verifier)
        if entry.validation:
            number = entry.validation if arguments.validation is None else arguments.validation
            chosen = rules.choose_apart(found, number)
        there = _held_out(folder)
        about["held_out"] = rules.leave_out_held_out(found, there) | {
            name: None for name in HELD_OUT if name not in there
        }
    return found, chosen, about


def _held_out(folder: Path) -> dict[str, list[Question]]:
    files = {name: where_it_lies(KNOWN[name], folder)[""] for name in HELD_OUT}
    return {name: load_questions(file) for name, file in files.items() if file.is_file()}


def _verifier() -> tuple[Verifier, str]:
    """The verifier of the paper's recipes, or the rules where its package is missing."""
    try:
        return make_verifier("math_verify", batch_timeout=None), "math_verify"
    except ImportError:
        return make_verifier("exact"), "exact"


def _told(entry: KnownSet, split: str, about: dict[str, Any], sources: list[str]) -> list[str]:
    name = f"{entry.name} {split}".strip()
    columns = about["columns"]
    if isinstance(columns, dict):
        columns = ", ".join(f"{ours} = {theirs}" for ours, theirs in columns.items())
    said = [f"{name}: {about['read']} rows read; columns: {columns}"]
    if about["expected"] not in (None, about["read"]):
        said.append(
            f"{name}: notice: {about['read']} rows read, {about['expected']} expected; another "
            "version of the set, or not the whole of it"
        )
    for reason, number in about["left_out"].items():
        said.append(f"{name}: {number} left out: {reason} ({about['left_out_rows'][reason][0]})")
    for test, number in about.get("held_out", {}).items():
        if number is None:
            said.append(
                f"{name}: notice: {test} is not there, so its questions may be in the rows; get it "
                "first, then this set again with --force"
            )
    return said


def _by_hand(entry: KnownSet, arguments: argparse.Namespace) -> str:
    """The end of a message: the way without a network."""
    if any(not source.startswith(HUB) for source in arguments.source):
        return ""
    files = list(entry.files.values())
    copied = [Path(file).name for file in files]
    names = " ".join(f"--from {shlex.quote(name)}" for name in copied)
    to = "" if arguments.to == "data" else f" --to {shlex.quote(str(arguments.to))}"
    return (
        f"; or, on a machine with a network, download {', '.join(files)} of "
        f"https://huggingface.co/datasets/{entry.hub}, copy "
        f"{'it' if len(files) == 1 else 'them'} here, and run: siri-train data get {entry.name} "
        f"{names}{to}"
    )


def _card_file(entry: KnownSet, folder: Path) -> Path:
    inside = folder / entry.name / "card.json"
    return inside if entry.several else folder / f"{entry.name}.card.json"


def listing(to: str, as_json: bool) -> str:
    """The known sets, and which are there.

    Args:
        to: the folder of sets.
        as_json: as JSON instead of lines.
    """
    folder = user_path(to, "--to")
    found: list[dict[str, Any]] = []
    for entry in KNOWN.values():
        files = where_it_lies(entry, folder)
        found.append(
            {
                "name": entry.name,
                "rows": sum(entry.expected.values()),
                "licence": entry.licence,
                "hub": entry.hub + (f":{entry.config}" if entry.config else ""),
                "question": list(entry.question) if not entry.code else None,
                "answer": list(entry.answer) if not entry.code else None,
                "files": {str(file): file.is_file() for file in files.values()},
            }
        )
    if as_json:
        return json.dumps(found, indent=2)
    lines = []
    for row in found:
        there = "there" if all(row["files"].values()) else "not there"
        columns = "format: code"
        if row["question"] is not None:
            columns = "columns tried: " + ", ".join(row["question"] + row["answer"])
        lines += [
            f"{row['name']:<11}{row['rows']:>6} rows  {there:<10} {row['hub']}",
            f"{'':<11}{', '.join(row['files'])}; licence: {row['licence']}",
            f"{'':<11}{columns}",
        ]
    return "\n".join([*lines, "siri-train data get NAME writes one"])
