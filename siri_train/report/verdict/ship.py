"""Which checkpoint to ship: for a strong model, and for a cheap one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siri_train.report.data import Evaluation, number

from .compared import ALPHA, accuracy_at, corrected, difference
from .names import Names
from .subject import Subject, at_step, of_set
from .types import Ship
from .words import counted, listed, per_cent, tokens

NEAR = 0.01
"""A shorter checkpoint is taken instead of the best one if it is less than this share worse."""
CHEAPER = 0.05
"""With one budget: so much accuracy a cheap model may be below the best one."""
_NAME = re.compile(r"step_([0-9]{1,15})")


@dataclass(frozen=True)
class Candidate:
    """An evaluated checkpoint.

    Args:
        run: whose it is; of several seeds one.
        whole: its evaluation.
    """

    run: Subject
    whole: Evaluation

    @property
    def one(self) -> Evaluation:
        """The evaluation on the set that selects."""
        return of_set(self.whole, self.run.select)

    @property
    def length(self) -> float:
        """Mean response tokens; infinite where that is unknown."""
        return self.one.tokens if self.one.tokens is not None else float("inf")

    @property
    def there(self) -> bool:
        """Whether it is on disk."""
        return self.whole.step in kept(self.run.run.folder)

    def at(self, budget: int) -> float | None:
        """Its accuracy at a budget on the set that selects.

        Args:
            budget: tokens.
        """
        found = accuracy_at(self.one, budget)
        return None if found is None else found[0]


@dataclass(frozen=True)
class Choice:
    """A checkpoint that was chosen at a budget.

    Args:
        one: the checkpoint.
        best: the one of the highest accuracy.
        budget: tokens at which both were compared.
        among: how many candidates.
        alike: how many of them are not told apart from the best one, itself among them.
        kept_as_best: whether it is taken, and no shorter one, as the run names it its best.
    """

    one: Candidate
    best: Candidate
    budget: int
    among: int
    alike: int
    kept_as_best: bool = False


def ship(subject: Subject, others: Sequence[Subject], names: Names) -> tuple[tuple[Ship, ...], str]:
    """The checkpoints for a strong and a cheap model, and why there is none.

    Strong is the highest accuracy at the largest budget, cheap that at the smallest. Of checkpoints
    that are not told apart from the best one and less than `NEAR` below it, the one with the
    fewest tokens is taken; of a run whose cap never moves the best one itself, where the run names
    it its best (``checkpoint.best``). Candidates are the evaluated checkpoints that are still on
    disk, of all seeds; if none is, all that were evaluated. The figures are those of the set that
    selects (``eval.select``). With one budget, cheap is the shortest at most `CHEAPER` below the
    best one.

    Args:
        subject: the run.
        others: of the same folder; named where one is better.
        names: of checkpoints.

    Returns:
        At most two, and a sentence where there is none.
    """
    trained = [Candidate(member, one) for member in subject.members
               for one in member.run.evals if one.step > 0]  # fmt: skip
    rated = [one for one in trained if one.one.best is not None]
    if not rated:
        why = "no checkpoint was evaluated after the first step"
        return (), (
            f"No checkpoint to recommend: {why} (eval.every says after how many steps one is)."
        )
    if not any(one.one.best for one in rated):
        return (), "No checkpoint to recommend: none that was evaluated gave a right answer."
    candidates = [one for one in rated if one.there] or rated
    full, low = candidates[-1].one.budgets[-1], candidates[-1].one.budgets[0]
    strong = _choose(candidates, full)
    cheap = _choose(candidates, low) if low < full else _shortest(candidates)
    found = []
    for purpose, choice in (("strong", strong), ("cheap", cheap)):
        if choice is None:
            continue
        run, whole = choice.one.run, choice.one.whole
        step = whole.step
        shown = accuracy_at(whole, choice.budget)
        why = _why(purpose, choice, low < full)
        why += _better_start(run, whole, choice.budget)
        why += _better_elsewhere(run, whole, others, choice.budget)
        path: str | None = None
        command = ""
        if choice.one.there:
            why += _better_gone(choice, rated)
            command = _command(run.run.folder, step)
            path = str(run.run.folder / "checkpoints" / kept(run.run.folder)[step])
            if not command:
                why += " It loads as it is; to export it, checkpoints/manifest.json is missing."
        else:
            why += (
                f" Step {step:,} is not on disk any more. For the next run: checkpoint.best keeps "
                "the most accurate checkpoint, checkpoint.lag_window the shortest behind an end."
            )
        name = ", ".join(names.of(run, step)) or f"step {step:,}"
        found.append(
            Ship(
                purpose=purpose,  # type: ignore[arg-type]
                checkpoint=f"{run.label}: {name}" if subject.seeds else name,
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


def _choose(candidates: Sequence[Candidate], budget: int) -> Choice | None:
    rows = [(value, one) for one in candidates if (value := one.at(budget)) is not None]
    if not rows:
        return None
    best_value, best = max(rows, key=lambda row: (row[0], -row[1].length, -row[1].whole.step))
    alike = [(value, one) for value, one in rows if one is best or _not_apart(best, one, budget)]
    near = [one for value, one in alike if best_value - value < NEAR]
    chosen = min(near, key=lambda one: (one.length, one.whole.step))
    named = best.run.run.manifest.get("best")
    is_best = isinstance(named, dict) and number(named.get("step")) == best.whole.step
    kept_as_best = best.run.run.control and is_best and _is_metric(best.run, best.one, budget)
    return Choice(
        best if kept_as_best else chosen, best, budget, len(rows), len(alike), kept_as_best
    )


def _is_metric(run: Subject, one: Evaluation, budget: int) -> bool:
    """Whether checkpoint.best is about this budget."""
    low = run.setting("checkpoint", "best") == "accuracy_low_budget"
    return budget == one.budgets[0 if low else -1]


def _shortest(candidates: Sequence[Candidate]) -> Choice | None:
    """With one budget: the shortest that is not much below the best."""
    best = _choose(candidates, candidates[-1].one.budgets[-1])
    if best is None:
        return None
    top = best.best.at(best.budget) or 0.0
    rows = [one for one in candidates
            if (value := one.at(best.budget)) is not None and value >= top - CHEAPER]  # fmt: skip
    chosen = min(rows, key=lambda one: (one.length, one.whole.step))
    return Choice(chosen, best.best, best.budget, best.among, len(rows))


def _not_apart(best: Candidate, one: Candidate, budget: int) -> bool:
    change = difference(best.run, best.one, one.run, one.one, budget, quick=True)
    return change is not None and not (change.p_value < ALPHA and change.low > 0)


def _why(purpose: str, choice: Choice, several: bool) -> str:
    chosen, best = choice.one.one, choice.best.one
    value, top = choice.one.at(choice.budget), choice.best.at(choice.budget)
    on = f" on the set {chosen.set}" if chosen.set is not None else ""
    within = f"within {choice.budget:,} tokens"
    of = counted(choice.among, "evaluated checkpoint")
    step = f"step {best.step:,}"
    if choice.best.run is not choice.one.run:
        step = f"{choice.best.run.label}, {step}"
    if not several and purpose == "cheap":
        text = (
            f"Of {of}, {choice.alike:,} {'is' if choice.alike == 1 else 'are'} at most "
            f"{100 * CHEAPER:.0f} points below the best{on} ({step}, {per_cent(top)}); this is the "
            f"shortest of them: {per_cent(value)}, {tokens(chosen.tokens)} tokens."
        )
    elif choice.one is choice.best:
        text = (
            f"The highest accuracy {within}{on} of {of}: {per_cent(value)}, "
            f"{tokens(chosen.tokens)} tokens."
        )
        if choice.kept_as_best:
            text += " The run has kept it as its best."
        elif choice.alike > 1:
            others = choice.alike - 1
            each = "each" if others > 1 else "it"
            text += (
                f" {counted(others, 'other')} cannot be told apart from it, but {each} is no "
                f"shorter, or {100 * NEAR:.0f} point or more below."
            )
    else:
        text = (
            f"{per_cent(value)} right {within}{on}, {tokens(chosen.tokens)} tokens a response. The "
            f"highest of {of} is {step}: {per_cent(top)}, {tokens(best.tokens)} tokens; "
            f"the two cannot be told apart, and this one is shorter."
        )
    whole = choice.one.whole
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


def _better_gone(choice: Choice, rated: Sequence[Candidate]) -> str:
    """A checkpoint that was better and is not kept."""
    gone = [(value, one) for one in rated
            if not one.there and (value := one.at(choice.budget)) is not None]  # fmt: skip
    top = choice.best.at(choice.budget)
    if not gone or top is None:
        return ""
    most, one = max(gone, key=lambda row: (row[0], -row[1].whole.step))
    change = difference(
        one.run, one.one, choice.best.run, choice.best.one, choice.budget, tries=len(gone)
    )
    better = change is not None and change.said == "rose"
    if most - top < NEAR and not better:
        return ""
    if better:
        said = f"was better there ({per_cent(most)})"
    else:
        said = f"has more there ({per_cent(most)}, not told apart from the best one kept)"
    whose = "" if one.run is choice.one.run else f" of {one.run.label}"
    return (
        f" Step {one.whole.step:,}{whose} {said} and is not on disk; checkpoint.best keeps such a "
        "one."
    )


def _command(folder: Path, step: int) -> str:
    if not (folder / "checkpoints" / "manifest.json").is_file():
        return ""
    place = f"./{folder}" if str(folder).startswith("-") else str(folder)  # else it is an option
    return f"siri-train export {shlex.quote(place)} --which {step}"
