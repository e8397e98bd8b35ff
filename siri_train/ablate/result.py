"""The result of an ablation: rows, notes, and the files ``ablate.json``, ``.md`` and ``.svg``."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from siri_train import __version__
from siri_train.ablate.compare import (
    Row,
    Sets,
    as_json,
    compare,
    reference_row,
    rows_of,
    set_figures,
)
from siri_train.ablate.figures import CHECKPOINTS, finished, named_steps, scores, spent
from siri_train.ablate.plan import Arm, Member, Plan, Run
from siri_train.ablate.plot import plot
from siri_train.ablate.presets import METHODS
from siri_train.ablate.table import page
from siri_train.checkpoint.save_load import write_json
from siri_train.config.base import ConfigError
from siri_train.files import replace_text
from siri_train.registry import one_of


@dataclass
class Result:
    """The comparison of the finished runs.

    Attributes:
        rows: of all arms that have some, compared.
        reference: one of them; None where there are none.
        notes: what a reader must know, a sentence or two each.
        sets: of questions that were used.
        swept: the last checkpoint of every cap of the arms that sweep; not compared.
    """

    rows: list[Row]
    reference: Row | None
    notes: list[str]
    sets: Sets
    swept: list[Row] = field(default_factory=list)


_REMEDY = "give data.eval a second set and name it in eval.select (docs/ablations.md)"


def result(plan: Plan, at: Sequence[str], against: str | None, named: str | None = None) -> Result:
    """Read the finished runs and compare the arms.

    Args:
        plan: whose runs.
        at: names of checkpoints, see :func:`siri_train.ablate.compare.rows_of`.
        against: the reference, see :func:`reference_name`.
        named: the set of questions; see :func:`sets_of`.

    Raises:
        ConfigError: the reference does not exist, or a run's files cannot be read.
    """
    sets = sets_of(plan, named)
    wanted = reference_name(plan, against)
    missing = [run.label for run in plan.runs if not finished(run.folder)]
    rows: list[Row] = []
    notes: list[str] = []
    for arm in plan.arms:
        if arm.same_as is not None:
            notes.append(f"{arm.name} has the same settings as {arm.same_as}, whose rows are its.")
            continue
        member = _chosen(arm, missing, sets, notes)
        found = [] if member is None else rows_of(arm, member, at, missing, sets)
        if not found:
            notes.append(f"{arm.name} has no finished run with such a checkpoint.")
        rows += found
    short = [f"{row.name} ({len(row.scores)})" for row in rows if len(row.scores) < len(plan.seeds)]
    if short:
        notes.append(f"Fewer than {len(plan.seeds)} seeds: {', '.join(short)}.")
    if "best" in at and sets.shown == sets.select:
        notes.append(
            "best was chosen by the questions on which it is shown, so its accuracy is too high; "
            f"{_REMEDY}."
        )
    notes += _short_of_budget(plan, missing)
    if not rows:
        return Result([], None, notes, sets)
    set_figures(rows)
    reference = reference_row(rows, wanted)
    if wanted not in (reference.arm, reference.name):
        notes.append(f"{wanted} has no row, so the differences are from {reference.name}.")
    compare(rows, reference)
    return Result(rows, reference, notes, sets, _swept(plan, missing, sets))


def _swept(plan: Plan, missing: Sequence[str], sets: Sets) -> list[Row]:
    found = []
    for arm in plan.arms:
        if arm.sweeps and arm.same_as is None:
            for member in arm.members:
                found += rows_of(arm, member, ["last"], missing, sets)
    set_figures(found)
    return found


def write(plan: Plan, found: Result) -> list[Path]:
    """Write the files into the plan's folder; returns them."""
    paths = [plan.out / "ablate.json"]
    write_json(paths[0], _as_json(plan, found))
    if found.reference is not None:
        paths += [plan.out / "ablate.md", plan.out / "ablate.svg"]
        replace_text(paths[1], page(plan, found.rows, found.reference, found.notes, found.swept))
        replace_text(paths[2], plot(found.rows, f"Ablation of {plan.recipe}"))
    return paths


def sets_of(plan: Plan, named: str | None) -> Sets:
    """The sets of questions that figures are about and that choices are made by.

    Args:
        plan: whose first run's recipe names them.
        named: the set to show; None: the first of ``data.eval`` that is not ``eval.select``, else
            the first.

    Raises:
        ConfigError: there is no such set.
    """
    config = plan.runs[0].config
    names = config.data.set_names
    select = config.eval.select or next(iter(names), None)
    if named is not None and named not in names:
        there = one_of(names, named) if names else "the sources of data.eval have no names"
        raise ConfigError(f"--set: got {named!r}; {there}")
    others = [name for name in names if name != config.eval.select]
    return Sets(named or next(iter(others), select), select)


def reference_name(plan: Plan, against: str | None) -> str:
    """The arm that the others are compared with, as ARM or ARM@CHECKPOINT.

    Args:
        plan: all arms.
        against: what ``--against`` got; None: the first arm.

    Returns:
        The name, of an arm that is equal to another that of the other.

    Raises:
        ConfigError: there is no such arm, or no checkpoint of this name.
    """
    arms = {arm.name: arm for arm in plan.arms}
    name, sign, checkpoint = (against or plan.arms[0].name).partition("@")
    if name not in arms:
        raise ConfigError(f"--against: got {against!r}; {one_of(arms, name)}")
    if sign and checkpoint not in CHECKPOINTS:
        raise ConfigError(
            f"--against: got {against!r}; behind the @ it {one_of(CHECKPOINTS, checkpoint)}"
        )
    return (arms[name].same_as or name) + sign + checkpoint


def _chosen(arm: Arm, missing: Sequence[str], sets: Sets, notes: list[str]) -> Member | None:
    """The member that counts: of a sweep the one with the best last checkpoint.

    All seeds of all members must have finished; of equals the one with fewer tokens counts.
    """
    if not arm.sweeps:
        return arm.members[0]
    left = [run for member in arm.members for run in member.runs.values() if run.label in missing]
    if left:
        notes.append(
            f"{arm.name}: {len(left)} runs of its sweep have not finished; none is chosen."
        )
        return None
    found = []
    for member in arm.members:
        ends = [
            scores(run.folder, named_steps(run.folder, sets.select)["last"], sets.select)
            for run in member.runs.values()
        ]
        accuracy = float(np.mean([end.shares[-1] for end in ends]))
        found.append((accuracy, -float(np.mean([end.lengths for end in ends])), member))
    accuracy, _, chosen = max(found, key=lambda one: one[:2])
    caps = ", ".join(str(member.cap) for member in arm.members)
    by = f"the set {sets.select}" if sets.shown != sets.select else "the questions shown here"
    warning = f", so its accuracy is too high; {_REMEDY}" if sets.shown == sets.select else ""
    notes.append(
        f"{arm.name}: of the caps {caps} the cap {chosen.cap} was chosen by {by} "
        f"({accuracy:.1%} at the last step){warning}."
    )
    return chosen


def _short_of_budget(plan: Plan, missing: Sequence[str]) -> list[str]:
    """Runs that ended by their steps before they had sampled the budget."""
    notes = []
    for run in plan.runs:
        most = run.config.train.max_tokens
        if most is not None and run.label not in missing:
            tokens, _ = spent(run.folder, None)
            if tokens < most:
                notes.append(
                    f"{run.label} ended after {run.config.train.steps} steps with {tokens:,} of "
                    f"{most:,} tokens."
                )
    return notes


def _as_json(plan: Plan, found: Result) -> dict[str, Any]:
    return {
        "format": 1,
        "versions": _versions(),
        "recipe": plan.recipe,
        "overrides": plan.overrides,
        "seeds": plan.seeds,
        "match": plan.match,
        "tokens": plan.tokens,
        "set": found.sets.shown,
        "chosen_by": found.sets.select,
        "arms": [_arm(arm) for arm in plan.arms],
        "runs": [_run(run, plan.out, found.sets) for run in plan.runs],
        "against": found.reference.name if found.reference else None,
        "rows": [as_json(row) for row in found.rows],
        "swept": [as_json(row) for row in found.swept],
        "notes": found.notes,
    }


def _arm(arm: Arm) -> dict[str, Any]:
    method = METHODS[arm.method] if arm.method else None
    return {
        "name": arm.name,
        "method": arm.method,
        "text": method.text if method else None,
        "source": method.source if method else None,
        "same_as": arm.same_as,
        "members": [
            {"name": member.name, "cap": member.cap, "overrides": member.overrides}
            for member in arm.members
        ],
    }


def _run(run: Run, out: Path, sets: Sets) -> dict[str, Any]:
    told: dict[str, Any] = {
        "run": run.label,
        "seed": run.seed,
        "folder": run.folder.relative_to(out).as_posix(),
        "finished": finished(run.folder),
    }
    if told["finished"]:
        tokens, seconds = spent(run.folder, None)
        steps = named_steps(run.folder, sets.select)
        told |= {"tokens": tokens, "seconds": seconds, "checkpoints": steps}
    return told


def _versions() -> Mapping[str, str | None]:
    found: dict[str, str | None] = {
        "siri-kernels": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for package in ("torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def require_free(out: Path) -> None:
    """Refuse a folder that holds a run or a demo.

    Raises:
        ConfigError: it does.
    """
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        if (out / name).exists():
            raise ConfigError(f"--out: {out} holds a run or a demo ({name}); give another folder")
