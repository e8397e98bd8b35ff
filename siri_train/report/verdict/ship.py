"""Which checkpoint to ship: for a strong model, and for a cheap one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siri_train.report.data import Evaluation

from .compared import ALPHA, Difference, accuracy_at, corrected, difference
from .subject import Subject, at_step, of_set
from .types import Ship
from .words import counted, listed, per_cent, tokens

NEAR = 0.01
"""A shorter checkpoint is taken instead of the best one if it is less than this share worse."""
CHEAPER = 0.05
"""With one budget: so much accuracy a cheap model may be below the best one."""
_NAME = re.compile(r"step_([0-9]{1,15})")


@dataclass(frozen=True)
class Choice:
    """A checkpoint that was chosen at a budget.

    Args:
        one: its evaluation on the set that selects.
        best: that of the highest accuracy.
        budget: tokens at which both were compared.
        among: how many candidates.
        alike: how many of them are not told apart from the best one, itself among them.
    """

    one: Evaluation
    best: Evaluation
    budget: int
    among: int
    alike: int


def ship(subject: Subject, others: Sequence[Subject]) -> tuple[tuple[Ship, ...], str]:
    """The checkpoints for a strong and a cheap model, and why there is none.

    Strong is the highest accuracy at the largest budget, cheap that at the smallest. Of checkpoints
    that are not told apart from the best one and less than `NEAR` below it, the one with the
    fewest tokens is taken. Candidates are the evaluated checkpoints that are still on disk; if none
    is, all that were evaluated. The figures are those of the set that selects (``eval.select``).
    With one budget, cheap is the shortest at most `CHEAPER` below the best one.

    Args:
        subject: the run.
        others: of the same folder; named where one is better.

    Returns:
        At most two, and a sentence where there is none.
    """
    trained = [one for one in subject.run.evals if one.step > 0]
    rated = [one for one in trained if of_set(one, subject.select).best is not None]
    if not rated:
        why = "no checkpoint was evaluated after the first step"
        return (), f"No checkpoint to recommend: {why} (eval.every, eval.at_start)."
    if not any(of_set(one, subject.select).best for one in rated):
        return (), "No checkpoint to recommend: none that was evaluated gave a right answer."
    there = kept(subject.run.folder)
    candidates = [one for one in rated if one.step in there] or rated
    full = of_set(candidates[-1], subject.select).budgets[-1]
    low = of_set(candidates[-1], subject.select).budgets[0]
    strong = _choose(subject, candidates, full)
    cheap = _choose(subject, candidates, low) if low < full else _shortest(subject, candidates)
    found = []
    for purpose, choice in (("strong", strong), ("cheap", cheap)):
        if choice is None:
            continue
        step = choice.one.step
        whole = next(one for one in candidates if one.step == step)
        shown = accuracy_at(whole, choice.budget)
        why = _why(subject, purpose, choice, whole, low < full)
        why += _better_start(subject, whole, choice.budget)
        why += _better_elsewhere(subject, whole, others, choice.budget)
        if step in there:
            why += _better_gone(subject, choice, rated, there)
            command = _command(subject.run.folder, step)
            path: str | None = str(subject.run.folder / "checkpoints" / there[step])
            if not command:
                why += " It loads as it is; to export it, checkpoints/manifest.json is missing."
        else:
            command, path = "", None
            why += (
                f" Step {step:,} is not on disk any more: checkpoint.best keeps the most accurate "
                "checkpoint, checkpoint.lag_window the shortest behind an end."
            )
        found.append(
            Ship(
                purpose=purpose,  # type: ignore[arg-type]
                checkpoint=_named(subject, step),
                step=step,
                path=path,
                command=command,
                accuracy=shown[0] if shown else None,
                accuracy_interval=shown[1] if shown else None,
                budget=choice.budget,
                tokens=whole.tokens,
                why=why,
                budgets={
                    str(budget): value
                    for budget, value in zip(whole.budgets, whole.accuracy, strict=False)
                },
            )
        )
    return tuple(found), ""


def kept(folder: Path) -> dict[int, str]:
    """The checkpoints on disk: folder names by step.

    Args:
        folder: of the run.
    """
    try:
        found = [path for path in (folder / "checkpoints").iterdir()
                 if (path / "config.json").is_file()]  # fmt: skip
    except OSError:
        return {}
    named = [(_NAME.fullmatch(path.name), path.name) for path in found]
    return {int(match[1]): name for match, name in sorted(named, key=lambda pair: pair[1]) if match}


def _choose(subject: Subject, candidates: Sequence[Evaluation], budget: int) -> Choice | None:
    rows = []
    for whole in candidates:
        one = of_set(whole, subject.select)
        value = accuracy_at(one, budget)
        if value is not None:
            rows.append((value[0], one))
    if not rows:
        return None
    best_value, best = max(rows, key=lambda row: (row[0], -_length(row[1]), -row[1].step))
    alike = [
        (value, one)
        for value, one in rows
        if one is best or _not_apart(difference(subject, best, subject, one, budget, quick=True))
    ]
    near = [one for value, one in alike if best_value - value < NEAR]
    chosen = min(near, key=lambda one: (_length(one), one.step))
    return Choice(chosen, best, budget, len(rows), len(alike))


def _shortest(subject: Subject, candidates: Sequence[Evaluation]) -> Choice | None:
    """With one budget: the shortest that is not much below the best."""
    best = _choose(subject, candidates, of_set(candidates[-1], subject.select).budgets[-1])
    if best is None:
        return None
    top = accuracy_at(best.best, best.budget)
    rows = []
    for whole in candidates:
        one = of_set(whole, subject.select)
        value = accuracy_at(one, best.budget)
        if value is not None and top is not None and value[0] >= top[0] - CHEAPER:
            rows.append(one)
    chosen = min(rows, key=lambda one: (_length(one), one.step))
    return Choice(chosen, best.best, best.budget, best.among, len(rows))


def _not_apart(change: Difference | None) -> bool:
    return change is not None and not (change.p_value < ALPHA and change.low > 0)


def _length(one: Evaluation) -> float:
    return one.tokens if one.tokens is not None else float("inf")


def _why(subject: Subject, purpose: str, choice: Choice, whole: Evaluation, several: bool) -> str:
    chosen, best = choice.one, choice.best
    value, top = accuracy_at(chosen, choice.budget), accuracy_at(best, choice.budget)
    assert value is not None and top is not None
    on = f" on the set {chosen.set}" if chosen.set is not None else ""
    within = f"within {choice.budget:,} tokens"
    of = counted(choice.among, "evaluated checkpoint")
    if not several and purpose == "cheap":
        text = (
            f"The shortest of {choice.alike:,} of {of} at most {100 * CHEAPER:.0f} points below "
            f"the best{on} (step {best.step:,}, {per_cent(top[0])}): {per_cent(value[0])}, "
            f"{tokens(chosen.tokens)} tokens."
        )
    elif chosen is best:
        text = (
            f"The highest accuracy {within}{on} of {of}: {per_cent(value[0])}, "
            f"{tokens(chosen.tokens)} tokens."
        )
        if choice.alike > 1:
            others = choice.alike - 1
            none = "none of them is" if others > 1 else "it is not"
            text += (
                f" {counted(others, 'other')} cannot be told apart from it; {none} both shorter "
                f"and less than {100 * NEAR:.0f} point below."
            )
    else:
        text = (
            f"{per_cent(value[0])} {within}{on} with {tokens(chosen.tokens)} tokens. The highest "
            f"of {of} is step {best.step:,}: {per_cent(top[0])} with {tokens(best.tokens)} tokens; "
            f"the two cannot be told apart, and this one is shorter."
        )
    if whole.set != chosen.set:
        shown = accuracy_at(whole, choice.budget)
        if shown is not None:
            text += f" On {whole.set or 'the reported set'}: {per_cent(shown[0])}."
    return text


def _better_start(subject: Subject, whole: Evaluation, budget: int) -> str:
    """The model before training, where it is more accurate at the budget."""
    start = at_step(subject.run, 0)
    change = None if start is None else difference(subject, start, subject, whole, budget)
    value = None if start is None else accuracy_at(start, budget)
    if change is None or value is None or change.said != "rose":
        return ""
    return (
        f" The model before training is more accurate within {budget:,} tokens: "
        f"{per_cent(value[0])}."
    )


def _better_elsewhere(
    subject: Subject, whole: Evaluation, others: Sequence[Subject], budget: int
) -> str:
    """The runs of the folder whose last checkpoint is more accurate at the budget."""
    found = []
    for other in others:
        last = other.run.evals[-1] if other.run.evals else None
        if last is None or last.step == 0:
            continue
        change = difference(other, last, subject, whole, budget)
        if change is not None:
            found.append((other, last, change))
    changes = corrected([change for _, _, change in found])
    said = []
    for (other, last, _), change in zip(found, changes, strict=True):
        value = accuracy_at(last, budget)
        if value is not None and change.said == "rose":
            said.append(f"{other.described} ({per_cent(value[0])}, {tokens(last.tokens)} tokens)")
    if not said:
        return ""
    be = "is" if len(said) == 1 else "are"
    return f" More accurate within {budget:,} tokens {be} the last step of {listed(said)}."


def _better_gone(
    subject: Subject, choice: Choice, rated: Sequence[Evaluation], there: dict[int, str]
) -> str:
    """A checkpoint that was better and is not kept."""
    gone = []
    for whole in rated:
        one = of_set(whole, subject.select)
        value = accuracy_at(one, choice.budget)
        if whole.step not in there and value is not None:
            gone.append((value[0], one))
    top = accuracy_at(choice.best, choice.budget)
    if not gone or top is None:
        return ""
    most, one = max(gone, key=lambda row: (row[0], -row[1].step))
    change = difference(subject, one, subject, choice.best, choice.budget)
    better = change is not None and change.said == "rose"
    if most - top[0] < NEAR and not better:
        return ""
    if better:
        said = f"was better there ({per_cent(most)})"
    else:
        said = f"has more there ({per_cent(most)}, not told apart from the best one kept)"
    return f" Step {one.step:,} {said} and is not on disk; checkpoint.best keeps such a one."


def _named(subject: Subject, step: int) -> str:
    """The names of a checkpoint in the manifest, or its step."""
    names = [
        str(name)
        for name, entry in subject.run.manifest.items()
        if isinstance(entry, dict) and entry.get("step") == step
    ]
    cycles = subject.run.manifest.get("cycles")
    if not names:
        names = [
            f"{entry.get('which')} of cycle {entry.get('cycle')}"
            for entry in (cycles if isinstance(cycles, list) else [])
            if isinstance(entry, dict) and entry.get("step") == step
        ]
    return ", ".join(names) or f"step {step:,}"


def _command(folder: Path, step: int) -> str:
    if not (folder / "checkpoints" / "manifest.json").is_file():
        return ""
    place = f"./{folder}" if str(folder).startswith("-") else str(folder)  # else it is an option
    return f"siri-train export {shlex.quote(place)} --which {step}"
