"""``siri-train demo``: the whole method on a CPU, beside controls with a constant cap."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siri_train.ablate.plan import Asked, Plan, Run
from siri_train.ablate.presets import METHODS, constant, mean_cap
from siri_train.ablate.runs import carry_out, check_unchanged
from siri_train.checkpoint.save_load import write_json
from siri_train.commands.ablate import ablate
from siri_train.commands.demo_result import Control, entries, sentences
from siri_train.commands.output import encodable
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig
from siri_train.data.demo_task import questions as embedded
from siri_train.files import replace_text
from siri_train.model import demo_model
from siri_train.monitor.progress import duration
from siri_train.report import changes, summary_table, write_report
from siri_train.report.data import ABOUT
from siri_train.terminal.lines import broken, terminal_width, words
from siri_train.trainer.lock import NAME, run_lock
from siri_train.trainer.signals import stop_request

RECIPE = "demo.yaml"
BETWEEN = (24, 28)
"""Constant caps between the shortest and the mean one. With the other controls the best fixed cap
is among them: docs/log/method.md has the sweep."""
JOBS = 2
"""Runs at a time, where there are as many cores."""
SEEDS = 5
"""Training runs of each method with ``--full``."""
GRACE = 20.0
"""Seconds that the runs of a demo that was killed have to end."""
TELL = 10.0
"""Seconds between lines about the runs that go on."""

INTRODUCTION = """\
SIRI on a CPU: a model of {parameters:,} parameters that was taught to think wastefully (it
re-checks behind "wait" and writes every step out) learns by reinforcement which thoughts pay.

  {task}
  example   {example}
  SIRI      {steps} steps, the cap swinging {max_len} -> {min_len} -> {max_len}, {cycles:g} cycles
  controls  the same training with the cap fixed at {caps} tokens
"""


def demo(out: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Train SIRI and its controls from the shipped start; write summary.json and report.html.

    A second call with the same folder and seed reuses whatever is finished and continues the rest.

    Args:
        out: the folder. The runs are OUT/siri, OUT/constant (the longest cap) and
            OUT/controls/constant-N.
        seed: of sampling and question order; the start is the same for every seed.

    Returns:
        The entries of summary.json, see :func:`siri_train.commands.demo_result.entries`.

    Raises:
        ConfigError: the folder holds a demo with another seed or of another version, or a run of
            ``siri-train train``; another process writes there; it cannot be written; or a run
            failed.
        Stopped: a signal; the same command continues.
    """
    with run_lock(out, "--out"):
        return _demo(out, seed)


def full(out: Path, seed: int = 0) -> int:
    """Every method of ``siri-train ablate`` on the demo's task, with five seeds.

    Args:
        out: the folder of the ablation; a second call continues.
        seed: the first of the seeds.

    Returns:
        See :func:`siri_train.commands.ablate.ablate`.

    Raises:
        ConfigError, Stopped: see there.
    """
    siri = demo_config(out / "siri", seed)
    asked = Asked(
        recipe=RECIPE,
        out=out,
        methods=["constant-max", *(name for name in METHODS if name != "constant-max")],
        seeds=",".join(str(seed + k) for k in range(SEEDS)),
        caps=sorted(caps(siri)),
    )
    return ablate(asked, jobs=min(JOBS, os.cpu_count() or 1))


def _demo(out: Path, seed: int) -> list[dict[str, Any]]:
    for name in ("config.yaml", "metrics.jsonl"):
        if (out / name).exists():
            raise ConfigError(
                f"--out: {out} holds a run of `siri-train train` ({name}), whose table and page "
                "the demo would replace; give another folder"
            )
    started = time.monotonic()
    siri = demo_config(out / "siri", seed)
    controls = {cap: _control(out, seed, siri, cap) for cap in caps(siri)}
    runs = [Run(c.run_dir, c.run_dir.name, seed, c) for c in (siri, *controls.values())]
    _require_free(runs)
    check_unchanged(runs)
    _say(broken(_introduction(siri, list(controls)), terminal_width()))
    plan = Plan(RECIPE, [], out, [seed], "steps", None, [], runs)
    with stop_request() as stop, _told(runs):
        failed = carry_out(plan, min(JOBS, os.cpu_count() or 1), stop, _say)
    if failed:
        raise ConfigError(
            f"demo: {', '.join(failed)} failed, see above; run the same command again to continue"
        )
    found = [Control(cap, config.run_dir) for cap, config in controls.items()]
    summary = entries(out, out / "siri", found, siri.eval.select)
    write_json(out / "summary.json", summary)
    said = sentences(out, summary, siri.data.eval[0].name)
    replace_text(out / ABOUT, "\n".join([embedded.ABOUT, *said]) + "\n")
    page = write_report(out)
    print(f"\n{encodable(summary_table(summary, terminal_width()))}\n")
    for text in (*changes(summary), "", *said):
        _say("\n".join(words("", text, terminal_width())))
    print(f"\nreport: {page}   ({duration(time.monotonic() - started)})", flush=True)
    return summary


def demo_config(folder: Path, seed: int, overrides: Sequence[str] = ()) -> RunConfig:
    """The packaged recipe ``demo.yaml`` with another folder, seed and settings.

    Args:
        folder: of the run.
        seed: of sampling and question order.
        overrides: ``a.b=c``.
    """
    given = [f"output={folder}", f"seed={seed}", f"name={folder.name}"]
    return load_config(RECIPE, [*overrides, *given])


def caps(siri: RunConfig) -> list[int]:
    """The constant caps of the controls in tokens, the longest first.

    Args:
        siri: the run with the moving cap.
    """
    schedule = siri.schedule
    found = {schedule.max_len, mean_cap(siri), *BETWEEN, schedule.min_len}
    return sorted(found, reverse=True)


def _require_free(runs: Sequence[Run]) -> None:
    """Wait a little for the runs of a demo that was killed, which write their last checkpoint.

    Raises:
        ConfigError: another process holds a run, and keeps it.
    """
    until = time.monotonic() + GRACE
    for run in runs:
        while (run.folder / NAME).exists():
            try:
                with run_lock(run.folder):
                    break
            except ConfigError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)


def _control(out: Path, seed: int, siri: RunConfig, cap: int) -> RunConfig:
    longest = cap == siri.schedule.max_len
    folder = out / ("constant" if longest else f"controls/constant-{cap}")
    return demo_config(folder, seed, constant(siri, cap))


def _introduction(siri: RunConfig, fixed: Sequence[int]) -> str:
    schedule = siri.schedule
    return INTRODUCTION.format(
        parameters=demo_model.start_parameters(),
        task=embedded.ABOUT.replace("\n", "\n  "),
        example=embedded.questions(1, seed=3)[0].prompt,
        steps=siri.train.steps,
        max_len=schedule.max_len,
        min_len=schedule.min_len,
        cycles=siri.train.steps / schedule.cycle,
        caps=f"{', '.join(map(str, fixed[:-1]))} and {fixed[-1]}",
    )


def _say(line: str) -> None:
    print(encodable(line), flush=True)


@contextmanager
def _told(runs: Sequence[Run]) -> Iterator[None]:
    """Inside the block a line every few seconds says how far the runs are."""
    over = threading.Event()
    started = time.monotonic()

    def tell() -> None:
        while not over.wait(TELL):
            steps = [(run, _steps(run)) for run in runs]
            going = [
                f"{run.label} {done}/{run.config.train.steps}"
                for run, done in steps
                if 0 < done < run.config.train.steps
            ]
            every = sum(run.config.train.steps for run in runs)
            done = sum(done for _, done in steps)
            _say(
                f"  {duration(time.monotonic() - started):>12}  {done / every:4.0%}  "
                + "  ".join(going)
            )

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _steps(run: Run) -> int:
    """Steps that a run has recorded."""
    try:
        return (run.folder / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0
