"""``siri-train train --dry-run``: what would run, the memory it takes, and for how long."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch

from siri_train.checkpoint.retention import ends
from siri_train.commands.memory_estimate import GB, Memory, Sizes, estimate
from siri_train.config import engines
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.data.sources import responses_in_all
from siri_train.model.policy import choose_device
from siri_train.trainer.memory_check import advice
from siri_train.trainer.preflight import model_config, preflight

USABLE = 0.9
"""Share of a GPU's memory that a run may plan with. CUDA, NCCL and fragmentation take the rest."""


_MEASURED = ("tokens", "time_rollout", "time_train", "response_len_mean", "cap")


@dataclass(frozen=True)
class Rates:
    """Measured times of a run: medians over its steps.

    Args:
        rollout: seconds of sampling per response token.
        train: seconds of everything else in a step per response token.
        filled: mean response length as a share of the cap.
        steps: how many steps were measured.
        where: the run's folder.
    """

    rollout: float
    train: float
    filled: float
    steps: int
    where: Path


def dry_run(
    config: RunConfig,
    *,
    ranks: int | None = None,
    memory_gb: float | None = None,
    rates_from: str | None = None,
) -> str:
    """The resolved configuration, memory per rank, tokens a step and expected hours.

    All checks before a run are made. The text is YAML: everything after the configuration is a
    comment.

    Args:
        config: the recipe.
        ranks: processes that would share the model; default: torchrun's, else 1.
        memory_gb: of one GPU, in 10**9 bytes; default: of this machine's GPU, if it has one.
        rates_from: folder of a run whose ``metrics.jsonl`` has measured rates; default: the
            recipe's own, if it has been started.

    Raises:
        ConfigError: as :func:`siri_train.trainer.preflight.preflight`; or ``rates_from`` has no
            rates.
    """
    checked = preflight(config)
    ranks = ranks or _ranks_of_torchrun()
    device = choose_device(config.device)
    if memory_gb is None and device.type == "cuda":
        memory_gb = torch.cuda.get_device_properties(device).total_memory / GB
    gpu = memory_gb is not None
    sizes = Sizes.of(model_config(config, checked.start))
    other = checked.reference.config if checked.reference is not None else None
    memory = estimate(
        config,
        sizes,
        ranks=ranks,
        gpu=gpu,
        memory_gb=memory_gb,
        reference=None if other is None else Sizes.of(other),
    )
    rates = measured_rates(Path(rates_from) if rates_from else config.run_dir)
    if rates_from and rates is None:
        raise ConfigError(
            f"--rates: {rates_from}/metrics.jsonl has no finished step; give the folder "
            "of a run that has one"
        )
    lines = [
        f"{len(checked.train_questions)} training and {len(checked.eval_questions)} held-out "
        "questions",
        *describe_memory(config, sizes, memory, ranks, memory_gb),
        *describe_time(
            config,
            rates,
            len(checked.eval_questions),
            responses_in_all(config, checked.eval_questions),
        ),
    ]
    return "\n".join([config.to_yaml(), *(f"# {line}".rstrip() for line in lines)])


def describe_memory(
    config: RunConfig, sizes: Sizes, memory: Memory, ranks: int, memory_gb: float | None
) -> list[str]:
    """The estimate as a table of GB with the verdict below.

    Args:
        config: the recipe.
        sizes: of its model.
        memory: of one rank.
        ranks: how many there are.
        memory_gb: of a GPU, in 10**9 bytes; None: no verdict.
    """
    where = f"each of {ranks} ranks" if ranks > 1 else "one process"
    phases = {
        "training": memory.training,
        "optimiser": memory.optimizer,
        "rollout": memory.rollout,
    }
    lines = [
        "",
        f"{sizes.parameters / 1e6:.2f} M parameters; GB on {where}, micro-batches of "
        f"{config.train.token_budget} tokens",
        f"{'':<28}" + "".join(f"{name:>11}" for name in phases),
    ]
    for name in dict.fromkeys(key for parts in phases.values() for key in parts):
        values = [parts.get(name, 0) for parts in phases.values()]
        if any(values):
            lines.append(
                f"{name:<28}" + "".join(f"{v / GB:11.3f}" if v else f"{'':>11}" for v in values)
            )
    totals = [sum(parts.values()) for parts in phases.values()]
    lines += [
        f"{'together':<28}" + "".join(f"{total / GB:11.3f}" for total in totals),
        f"logits: never stored; the log-prob head keeps {memory.logits_saved / GB:.3f} GB, eager "
        f"PyTorch would keep about {memory.logits_eager / GB:.3f}",
    ]
    if memory_gb is not None:
        lines.append(verdict(config, memory, memory_gb))
    return lines


def verdict(config: RunConfig, memory: Memory, memory_gb: float) -> str:
    """Whether the run fits, or the key to change.

    Args:
        config: the recipe.
        memory: of one rank.
        memory_gb: of a GPU, in 10**9 bytes.
    """
    usable = USABLE * memory_gb
    need = memory.peak / GB
    if need <= usable:
        return f"fits: {need:.1f} GB of {usable:.1f} usable ({memory_gb:.0f} GB)"
    totals = memory.totals
    key = engines.engine_of(config).memory_key
    value = None if key is None else attrgetter(key)(config)
    hint = advice(config)
    lowest = value is None or (isinstance(value, int) and value == 1)
    if totals["rollout"] == memory.peak and not lowest:
        hint = f"lower {key} ({value})"
    return f"does NOT fit: {need:.1f} GB, {usable:.1f} usable ({memory_gb:.0f} GB); {hint}"


def describe_time(
    config: RunConfig,
    rates: Rates | None,
    eval_questions: int,
    eval_responses: int | None = None,
) -> list[str]:
    """Tokens of a step and, where rates have been measured, hours of the whole run.

    Args:
        config: the recipe.
        rates: seconds a token; None where no step has been measured.
        eval_questions: held-out questions.
        eval_responses: see :func:`expected_hours`.
    """
    responses = config.rollout.prompts * config.rollout.group_size
    schedule = config.schedule.build()
    low, high = schedule.lowest, schedule.max_len
    lines = [
        "",
        f"{responses} responses a step in {config.train.mini_batches} updates; tokens at most "
        + " to ".join(f"{responses * cap / 1e6:.3g} M" for cap in sorted({low, high})),
        *([f"schedule: {schedule.forecast}"] if schedule.forecast else []),
    ]
    if rates is None:
        return [
            *lines,
            "hours: unknown until a step has been measured (run a few with train.steps=2, or give "
            "a run on the same hardware: --rates FOLDER)",
        ]
    rollout, train, evaluation = expected_hours(config, rates, eval_questions, eval_responses)
    most = "" if config.train.max_tokens is None else "at most "  # as it may end earlier
    return [
        *lines,
        f"expected {rollout + train + evaluation:.2f} h for {most}{config.train.steps} steps: "
        f"sampling {rollout:.2f}, training {train:.2f}, evaluation {evaluation:.2f}",
        f"from {rates.steps} steps of {rates.where}: {1 / rates.rollout:.0f} tokens/s sampled, "
        f"{1 / rates.train:.0f} trained, {rates.filled:.0%} of the cap used",
    ]


def _ranks_of_torchrun() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text)):
        raise ConfigError(
            f"WORLD_SIZE: got {text[:40]!r} in the environment; takes torchrun's number of "
            "processes, or none"
        )
    return int(text)


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e18


def measured_rates(run_dir: Path) -> Rates | None:
    """Medians over the last 50 steps in a run's ``metrics.jsonl``; None where there are none.

    Damaged records and steps without tokens are left out.
    """
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    rows = []
    for line in lines[-50:]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a run that is being written, or was killed
        if isinstance(row, dict) and all(_positive(row.get(key)) for key in _MEASURED):
            rows.append(row)
    if not rows:
        return None
    return Rates(
        rollout=statistics.median(row["time_rollout"] / row["tokens"] for row in rows),
        train=statistics.median(row["time_train"] / row["tokens"] for row in rows),
        filled=statistics.median(row["response_len_mean"] / row["cap"] for row in rows),
        steps=len(rows),
        where=run_dir,
    )


def expected_hours(
    config: RunConfig, rates: Rates, eval_questions: int, eval_responses: int | None = None
) -> tuple[float, float, float]:
    """Hours of the whole run, if responses fill the same share of the cap as measured.

    Args:
        config: the recipe.
        rates: seconds a token, and the measured share of the cap.
        eval_questions: held-out questions.
        eval_responses: to all of them in one evaluation; None: ``eval.samples`` to each.

    Returns:
        Hours of sampling, of training and of evaluation.
    """
    schedule = config.schedule.build()
    steps = config.train.steps
    responses = config.rollout.prompts * config.rollout.group_size
    tokens = rates.filled * responses * steps * schedule.mean(steps)
    evaluated = {steps, *ends(schedule, steps, config.checkpoint.lag, steps)}
    if config.eval.every:
        evaluated |= set(range(config.eval.every, steps, config.eval.every))
    evaluated |= {0} if config.eval.at_start else set()
    if eval_responses is None:
        eval_responses = eval_questions * config.eval.samples
    graded = len(evaluated) * eval_responses
    length = rates.filled * config.budgets[-1]
    return (
        tokens * rates.rollout / 3600,
        tokens * rates.train / 3600,
        graded * length * rates.rollout / 3600,
    )
