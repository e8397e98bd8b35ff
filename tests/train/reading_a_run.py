"""The answers of docs/reading-a-run.md, made from the committed demo run.

``python -m tests.train.reading_a_run`` writes them into the page; the test compares.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from siri_train.report.data import read_run_folder
from siri_train.report.verdict import Verdict, judge
from siri_train.report.verdict.comparisons import OWN
from siri_train.report.verdict.words import signed

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reading-a-run.md"
ARCHIVE = ROOT / "docs" / "demo-run.tar.xz"
RUN = Path("runs/demo")
BLOCK = re.compile(r"(<!-- answer (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
LOOKED_AT = 60
"""The step whose responses the page shows: the first compressed end."""


@contextlib.contextmanager
def unpacked(into: Path) -> Iterator[Path]:
    """Inside the block the working directory holds ``runs/demo`` of the archive."""
    with tarfile.open(ARCHIVE) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(into, filter="data")
        else:  # of Python 3.10.11 and before
            archive.extractall(into)
    before = Path.cwd()
    os.chdir(into)
    try:
        yield RUN
    finally:
        os.chdir(before)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(run: Path) -> dict[str, str]:
    """Each answer as Markdown, by name."""
    verdict = judge(read_run_folder(run))
    said = {one.key: one for one in verdict.findings}
    accuracy = said["accuracy"]
    parts = "\n".join(f"- {line}" for line in accuracy.details)
    return {
        "half": half_budget(run),
        "following": said["length"].text,
        "accuracy": f"{textwrap.fill(accuracy.text, 110)}\n\n{parts}",
        "entropy": said["entropy"].text,
        "responses": responses(run),
        "waiting": waiting(run),
        "alarms": said["alarms"].text,
        "cost": cost(run),
        "mismatch": said["mismatch"].text,
        "swing": swing(verdict),
        "turns": said["turns"].text,
        "ship": shipped(verdict),
    }


def half_budget(run: Path) -> str:
    """The kept checkpoint with the highest accuracy on the validation set at half the budget."""
    kept = {int(path.name[5:]) for path in (run / "siri" / "checkpoints").glob("step_*")}
    found = [row for row in rows(run / "siri" / "eval.jsonl") if row["step"] in kept]
    budgets = found[0]["budgets"]
    budget = max(b for b in budgets if b <= max(budgets) / 2)
    place = budgets.index(budget)
    best = max(found, key=lambda row: (row["sets"]["validation"]["accuracy"][place], -row["step"]))
    shares = [100 * best["sets"][name]["accuracy"][place] for name in ("validation", "test")]
    return (
        f"Half of {max(budgets)} tokens is {max(budgets) // 2}; evaluated was {budget}. Step "
        f"{best['step']} has the most right answers within {budget} tokens on the validation set, "
        f"{shares[0]:.1f} %, of the {len(found)} checkpoints on disk; on the test set it has "
        f"{shares[1]:.1f} %."
    )


def responses(run: Path) -> str:
    """What the responses of a step looked like."""
    metrics = {row["step"]: row for row in rows(run / "siri" / "metrics.jsonl")}[LOOKED_AT]
    found = rows(run / "siri" / "rollouts" / f"step_{LOOKED_AT:06d}.jsonl")
    cut = [row for row in found if row["truncated"]]
    text = (
        f"The cap of step {LOOKED_AT} was {metrics['cap']} tokens: it truncated "
        f"{100 * metrics['truncated_frac']:.1f} % of the responses, {len(cut)} of the "
        f"{len(found)} in the file. A response that finished, and one that was truncated there:\n"
    )
    shown = [next(row for row in found if not row["truncated"]), *cut[:1]]
    lines = [f"{row['prompt']}{row['response']}   ({row['tokens']} tokens)" for row in shown]
    return text + "\n```text\n" + "\n".join(lines) + "\n```"


def waiting(run: Path) -> str:
    """Backtracking words by cycle and phase; by correctness where the run recorded it."""
    metrics = rows(run / "siri" / "metrics.jsonl")
    kinds = list(dict.fromkeys((row["cycle"], row["phase"]) for row in metrics))
    lines = [
        "| cycle | phase | backtracking words per 1000 tokens | wait: right responses | "
        "wait: wrong ones |"
    ]
    lines.append("|--:|---|--:|--:|--:|")
    for cycle, phase in kinds:
        part = [row for row in metrics if (row["cycle"], row["phase"]) == (cycle, phase)]
        rate = mean(row["backtrack_per_1k"] for row in part)
        sides = [_by_correctness(part, side) for side in ("right", "wrong")]
        lines.append(f"| {cycle} | {phase} | {rate:.2f} | {sides[0]} | {sides[1]} |")
    return "\n".join(lines)


def _by_correctness(part: list[dict[str, Any]], side: str) -> str:
    """The mean rate of "wait" over the steps that have such responses."""
    groups = [(row.get("token_groups") or {}).get("wait") or {} for row in part]
    known = [value for one in groups if (value := one.get(side)) is not None]
    return f"{mean(known):.2f}" if known else "not recorded"


def cost(run: Path) -> str:
    """Tokens and seconds by phase."""
    lines = ["| phase | steps | response tokens sampled | seconds of sampling | of training |"]
    lines.append("|---|--:|--:|--:|--:|")
    metrics = rows(run / "siri" / "metrics.jsonl")
    for phase in dict.fromkeys(row["phase"] for row in metrics):
        part = [row for row in metrics if row["phase"] == phase]
        tokens = sum(row["tokens"] + row["tokens_discarded"] for row in part)
        seconds = [sum(row[key] for row in part) for key in ("time_rollout", "time_train")]
        lines.append(
            f"| {phase} | {len(part)} | {tokens:,} | {seconds[0]:.0f} | {seconds[1]:.0f} |"
        )
    return "\n".join(lines)


def swing(verdict: Verdict) -> str:
    """The run against every constant cap at the low budget and at the full one."""
    found = next(one for one in verdict.findings if one.key == "accuracy").figures["comparisons"]
    found = [one for one in found if one["against"] not in OWN]
    words = {"rose": "above", "fell": "below"}
    names = list(dict.fromkeys(one["against"] for one in found))
    beaten = [
        name
        for name in names
        if any(one["said"] == "rose" for one in found if one["against"] == name)
    ]
    lines = [
        f"The run is above {len(beaten)} of {len(names)} constant caps in at least one row"
        + (f"; in none above {', '.join(name for name in names if name not in beaten)}."
           if len(beaten) < len(names) else "."),
        "",
        "| against | end | within | points | 95 % interval | the run is |",
        "|---|---|--:|--:|---|---|",
    ]  # fmt: skip
    for one in found:
        low, high = (signed(100 * bound) for bound in one["interval"])
        lines.append(
            f"| {one['against']} | {one['end']} (step {one['step']}) | {one['budget']} | "
            f"{signed(100 * one['difference'])} | {low} to {high} | "
            f"{words.get(one['said'], one['said'])} |"
        )
    return "\n".join(lines)


def shipped(verdict: Verdict) -> str:
    """The checkpoints to ship, with their commands."""
    parts = []
    for one in verdict.ship:
        parts.append(f"- **{one.purpose}**: {one.named}, {one.facts}. {one.why}\n")
        parts.append(f"  ```bash\n  {one.command}\n  ```\n")
    return "\n".join(parts).rstrip()


def filled(page: str, found: dict[str, str]) -> str:
    """The page with these answers."""

    def put(match: re.Match[str]) -> str:
        text = found[match[2]]
        wrapped = text if "\n" in text else textwrap.fill(text, 110)
        return f"{match[1]}{wrapped}\n{match[3]}"

    return BLOCK.sub(put, page)


def main() -> None:
    """Write the answers into the page."""
    with tempfile.TemporaryDirectory() as folder, unpacked(Path(folder)) as run:
        found = answers(run)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
