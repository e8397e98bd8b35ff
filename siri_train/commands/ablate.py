"""``siri-train ablate``: methods and settings side by side, over seeds, with paired tests."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.ablate.plan import Asked, Plan, Run, build_plan, require_start
from siri_train.ablate.presets import METHODS
from siri_train.ablate.result import Result, reference_name, require_free, result, sets_of, write
from siri_train.ablate.runs import carry_out, check_unchanged
from siri_train.ablate.table import explained, matched, table
from siri_train.commands.output import encodable
from siri_train.terminal.lines import broken, terminal_width, words
from siri_train.trainer.lock import run_lock
from siri_train.trainer.signals import stop_request


def ablate(
    asked: Asked,
    *,
    jobs: int = 1,
    at: Sequence[str] = (),
    against: str | None = None,
    named: str | None = None,
    show: bool = False,
    dry_run: bool = False,
) -> int:
    """Train every arm with every seed, compare them, write ``ablate.json``, ``.md``, ``.svg``.

    A second call continues: finished runs are not trained again.

    Args:
        asked: arms, seeds and what is equal between runs.
        jobs: processes at a time.
        at: checkpoints that count; empty: siri-low and siri-high where a run has them, else last.
        against: the reference, ARM or ARM@CHECKPOINT; None: the first arm.
        named: the set of questions that counts, see :func:`siri_train.ablate.result.sets_of`.
        show: train nothing, print the table of what is finished.
        dry_run: print the plan only.

    Returns:
        0; 1 if a run failed, with the table of the others printed and written.

    Raises:
        ConfigError: the plan cannot be, or the folder holds something else; before any run.
        Stopped: a signal; every run that had begun can be continued.
    """
    plan = build_plan(asked)
    sets_of(plan, named)
    reference_name(plan, against)
    if dry_run:
        print(encodable(broken(outline(plan), terminal_width())))
        return 0
    if show:
        check_unchanged(plan.runs)
        _tell(result(plan, at, against, named))
        return 0
    failed: dict[str, str] = {}
    with run_lock(asked.out, "--out"):
        require_free(asked.out)
        require_start(plan)
        check_unchanged(plan.runs)
        print(f"ablate: {len(plan.arms)} arms, {len(plan.runs)} runs, {jobs} at a time", flush=True)
        with stop_request() as stop:
            failed = carry_out(plan, jobs, stop, lambda line: print(encodable(line), flush=True))
        found = result(plan, at, against, named)
        paths = write(plan, found)
    _tell(found)
    print("\n" + "  ".join(map(str, paths)))
    if failed:
        print(f"ablate: {len(failed)} of {len(plan.runs)} runs failed; run the same command again")
    return 1 if failed else 0


def outline(plan: Plan) -> str:
    """The plan in words: what is trained, and each arm's settings."""
    lines = [matched(plan), ""]
    for arm in plan.arms:
        about = f": {METHODS[arm.method].text}" if arm.method else ""
        lines.append(f"{arm.name}{about}")
        if arm.same_as:
            lines.append(f"    equal to {arm.same_as}, trained once")
            continue
        for member in arm.members:
            told = " ".join(member.overrides) or "as the recipe has it"
            lines.append(f"    {member.name + ': ' if member.name else ''}{told}")
    steps = sorted({_steps(run) for run in plan.runs}, key=str)
    lines += ["", f"{len(plan.runs)} runs of {', '.join(steps)} into {plan.out}"]
    return "\n".join(lines)


def _steps(run: Run) -> str:
    train = run.config.train
    if run.waits:
        return "the first arm's tokens"
    return f"{train.steps} steps" if train.max_tokens is None else f"{train.max_tokens:,} tokens"


def _tell(found: Result) -> None:
    if found.reference is None:
        print("\nno finished run has such a checkpoint yet")
    else:
        print(f"\n{encodable(table(found.rows, found.reference, terminal_width()))}\n")
        for text in explained(found.rows, found.reference):
            _say(words("", text, terminal_width()))
    for note in found.notes:
        _say(words("note:", note, terminal_width()))


def _say(lines: Sequence[str]) -> None:
    print(encodable("\n".join(lines)))
