"""The JSON-lines files of a run that continues: trimmed to its start, damaged lines removed.

Whatever a file holds, a run can go on: lines that are no records of the run are removed and their
number is printed; the original file stays beside it as ``NAME.damaged``.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from siri_train.files import free_name, replace_text, shown

Row = dict[str, Any]


def keep_records(
    path: Path,
    below: int,
    valid: Callable[[Row], bool] = lambda row: True,
    last: int | None = None,
    of_steps: Collection[int] | None = None,
) -> tuple[list[Row], list[str]]:
    """Remove damaged lines, and the records from step ``below`` on, which are written again.

    Args:
        path: a log of the run, as ``metrics.jsonl`` or ``eval.jsonl``; it may be missing.
        below: the first step to drop.
        valid: whether a record with a step has the values that the run reads.
        last: how many of the records to return, the newest; None: all of them.
        of_steps: the steps whose records stay; None: all below ``below``.

    Returns:
        The records that stay, oldest first, and notices for the user: a line about damaged lines,
        and for ``metrics.jsonl`` a line about missing steps before ``below`` (see :func:`gaps`).

    Raises:
        OSError: the file cannot be read or replaced.
    """
    notices: list[str] = []
    rows: deque[Row] = deque(maxlen=last)
    kept: list[str] = []
    steps: set[int] = set()
    dropped, damaged = 0, []
    if path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                row = _row(line)
                if row is None or not valid(row):
                    # No end of line: the process was killed while it wrote this step.
                    if line.strip() and (row is not None or line.endswith(b"\n")):
                        damaged.append(number)
                    dropped += 1
                elif row["step"] < below and (of_steps is None or row["step"] in of_steps):
                    rows.append(row)
                    steps.add(row["step"])
                    kept.append(line.decode().rstrip("\r\n") + "\n")
                else:
                    dropped += 1
    if damaged:
        aside = free_name(path)
        shutil.copyfile(path, aside)
        where = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notices.append(
            f"{shown(path)}: {len(damaged)} damaged line{'s' if len(damaged) > 1 else ''} left out "
            f"(line {where}); the file as it was is kept as {aside.name}"
        )
    if dropped:
        replace_text(path, "".join(kept))
    if path.name == "metrics.jsonl" and (missing := gaps(steps, below)):
        state = "holds no rows of" if path.exists() else "is missing, and with it"
        notices.append(
            f"{shown(path)} {state} {missing}, so the report has a gap there; "
            "the weights and all later steps are right"
        )
    return list(rows), notices


def gaps(steps: Iterable[int], below: int) -> str:
    """The steps in [0, below) that are missing in ``steps``, in words: ``steps 0 to 4 and 7``.

    Empty where none is missing; more than three stretches end in ``and others``.
    """
    there = sorted({step for step in steps if 0 <= step < below})
    stretches = []
    expected = 0
    for step in [*there, below]:
        if step > expected:
            stretches.append((expected, step - 1))
        expected = step + 1
    if not stretches:
        return ""
    words = [str(a) if a == b else f"{a} to {b}" for a, b in stretches[:3]]
    if len(stretches) > 3:
        words.append("others")
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    one = len(stretches) == 1 and stretches[0][0] == stretches[0][1]
    return f"{'step' if one else 'steps'} {listed}"


def of_metrics(row: Row) -> bool:
    """Whether the alarms can read a record of ``metrics.jsonl``."""
    return row.get("grad_norm") is None or is_number(row["grad_norm"])


def of_evaluation(row: Row) -> bool:
    """Whether manifest, summary and ``checkpoint.best`` can read a record of ``eval.jsonl``."""
    sets = row.get("sets", {})
    if not isinstance(sets, dict) or not isinstance(row.get("name"), (str, type(None))):
        return False
    return all(
        isinstance(one, dict) and _has_figures({"budgets": row.get("budgets"), **one})
        for one in (row, *sets.values())
    )


def spent(path: Path, steps: Collection[int]) -> dict[int, tuple[int, float]]:
    """Tokens and seconds of training until each of ``steps``, by ``metrics.jsonl``.

    Args:
        path: of ``metrics.jsonl``; it may be missing or damaged.
        steps: numbers of steps done.

    Returns:
        (response tokens sampled, those thrown away too; seconds of sampling and updates) by number
        of steps. A number is left out if a record before it is missing or does not say.
    """
    rows: dict[int, Row] = {}
    if path.is_file():
        with path.open("rb") as file:
            rows = {row["step"]: row for row in map(_row, file) if row is not None}
    found: dict[int, tuple[int, float]] = {}
    tokens, seconds = 0, 0.0
    for step in range(max(steps, default=-1) + 1):
        if step in steps:
            found[step] = (tokens, seconds)
        row = rows.get(step, {})
        if not all(is_number(row.get(key), finite=True) for key in _COSTS):
            break
        tokens += row["tokens"] + row["tokens_discarded"]
        seconds += row["time_rollout"] + row["time_train"]
    return found


_COSTS = ("tokens", "tokens_discarded", "time_rollout", "time_train")


def reported(row: Row) -> Row:
    """A record of ``eval.jsonl`` with the figures of the first set at its top.

    They are what summary, manifest and terminal show. The figures at the top of the file's record
    are those of the set by which checkpoints are chosen (``eval.select``).
    """
    sets = row.get("sets")
    return {**row, **next(iter(sets.values()))} if sets else row


def _has_figures(row: Row) -> bool:
    lists = [row.get(key) for key in ("budgets", "accuracy", "accuracy_interval", "pass_at_k")]
    if not all(isinstance(value, list) and value for value in lists):
        return False
    numbers = [*row["budgets"], *row["accuracy"], *row["pass_at_k"]]
    for bounds in [*row["accuracy_interval"], row.get("tokens_interval", [0, 0])]:
        numbers += bounds if isinstance(bounds, list) and len(bounds) == 2 else [bounds]
    same = len({len(value) for value in lists if value is not None}) == 1
    means = [row.get("tokens"), row.get("backtrack_per_1k")]  # NaN of no tokens at all
    return same and all(map(is_number, means)) and all(is_number(n, True) for n in numbers)


def is_number(value: object, finite: bool = False) -> bool:
    """Whether it is a number that ``float`` and ``format`` take: no integer of 400 digits.

    Args:
        value: anything that JSON holds.
        finite: refuse NaN and infinity, too.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e100 or (isinstance(value, float) and not finite)


def _row(line: bytes) -> Row | None:
    """The line's object if it is one with a whole, not negative step."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number too long, nested too deep
        return None
    if not isinstance(row, dict):
        return None
    step = row.get("step")
    fine = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    return row if fine else None
