"""The lines of a plan, as ``siri-train train --dry-run`` prints them."""

from __future__ import annotations

from operator import attrgetter

from siri_train.config import engines
from siri_train.config.run import RunConfig
from siri_train.plan.build import Plan
from siri_train.plan.checks import Looked
from siri_train.plan.fitting import MOST_RANKS, USABLE
from siri_train.plan.lengths import truncated
from siri_train.plan.memory import GB, Memory, Sizes
from siri_train.plan.questions import ASSUMED
from siri_train.plan.rates import Rates, expected_hours
from siri_train.trainer.memory_check import advice


def describe_questions(looked: Looked) -> list[str]:
    """How many questions there are, and what could not be checked here.

    Args:
        looked: the result of the checks.
    """
    asked = looked.questions
    train = "an unknown number of" if asked.train is None else str(asked.train)
    sets = ", ".join(f"{name} {count}" for name, count in asked.evaluation.items() if name)
    lines = [
        f"{train} training and {asked.held_out} held-out questions{f' ({sets})' if sets else ''}"
    ]
    if asked.assumed:
        lines.append(f"assumed: {ASSUMED} questions each in {', '.join(asked.assumed)}")
    if looked.not_checked:
        lines += ["", "not checked here:", *(f"  {line}" for line in looked.not_checked)]
    return lines


def describe_memory(
    config: RunConfig,
    sizes: Sizes,
    memory: Memory,
    ranks: int,
    memory_gb: float | None,
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


def describe_batch(config: RunConfig) -> list[str]:
    """Responses and tokens of a step.

    Args:
        config: the recipe.
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
    return lines


def describe_time(config: RunConfig, rates: Rates | None, eval_questions: float) -> list[str]:
    """Tokens of a step and, where rates have been measured, hours of the whole run.

    Args:
        config: the recipe.
        rates: seconds a token; None where no step has been measured.
        eval_questions: held-out questions.
    """
    lines = describe_batch(config)
    if rates is None:
        return [
            *lines,
            "hours: unknown until a step has been measured (run a few with train.steps=2, or give "
            "a run on the same hardware: --rates FOLDER); an estimate for a known GPU: --gpu NAME",
        ]
    rollout, train, evaluation = expected_hours(config, rates, eval_questions)
    most = "" if config.train.max_tokens is None else "at most "  # as it may end earlier
    return [
        *lines,
        f"expected {rollout + train + evaluation:.2f} h for {most}{config.train.steps} steps: "
        f"sampling {rollout:.2f}, training {train:.2f}, evaluation {evaluation:.2f}",
        f"from {rates.steps} steps of {rates.where}: {1 / rates.rollout:.0f} tokens/s sampled, "
        f"{1 / rates.train:.0f} trained, {rates.filled:.0%} of the cap used",
    ]


def describe_fit(plan: Plan) -> list[str]:
    """Whether a plan fits, and what to change where it does not.

    Args:
        plan: of a run.
    """
    gpu, ranks = plan.machines.gpu, plan.machines.ranks
    least = (
        f"at least {plan.least_ranks} rank{'s' * (plan.least_ranks > 1)} of this GPU"
        if plan.least_ranks is not None
        else f"no number of ranks up to {MOST_RANKS} is enough as the recipe stands"
    )
    if plan.fits:
        usable = USABLE * gpu.memory_gb
        room = f"{plan.memory.peak / GB:.1f} GB of {usable:.1f} usable ({gpu.memory_gb:.0f} GB)"
        return [f"fits: {room}; {least}"]
    lines = [f"does NOT fit: {plan.problem}; {least}"]
    change = plan.change
    if change is None:
        lines.append(
            "no change of a key was found that makes it fit: take a smaller model, a GPU with more "
            "memory, or lower schedule.max_len"
        )
        return lines
    told = [f"set {' and '.join(change.settings)}"] if change.settings else []
    if change.ranks != ranks:
        told.append(f"start {change.ranks} ranks")
    lines.append(f"fits with: {', and '.join(told)} ({change.peak / GB:.1f} GB a rank)")
    return lines


def plan_text(plan: Plan) -> list[str]:
    """Hours by phase, their range, money and disk space.

    Args:
        plan: of a run.
    """
    machines, middle = plan.machines, plan.hours[1]
    nodes = f", {machines.nodes} machines" if machines.nodes > 1 else ""
    where = f"{machines.ranks} x {machines.gpu.title}{nodes}"
    if plan.server_gpus:
        where += (
            f" and a rollout server of {plan.server_gpus} more, {plan.engine_gpus} an engine "
            "(tensor parallel)"
        )
    lines = ["", *describe_fit(plan)]
    if not plan.fits:
        return [*lines, "hours: not estimated until it fits"]
    lines += [
        "",
        f"estimated, not measured, for {where}:",
        f"{'cycle and phase':<17}{'steps':>6}{'mean cap':>9}{'M tokens':>9}{'rollout s':>10}"
        f"{'training s':>11}{'step s':>8}{'hours':>8}",
    ]
    for phase in middle.phases:
        lines.append(
            f"{f'{phase.cycle} {phase.name}':<17}{phase.steps:6}{phase.mean_cap:9.0f}"
            f"{_short(phase.tokens / 1e6):>9}{_short(phase.rollout):>10}"
            f"{_short(phase.training):>11}{_short(phase.step):>8}{_short(phase.hours):>8}"
        )
    steps = sum(phase.steps for phase in middle.phases)
    lines += [
        f"{f'{plan.evaluations} evaluations':<70}{_short(middle.evaluation):>8}",
        f"{'together':<17}{steps:6}{'':>9}{_short(middle.tokens / 1e6):>9}{'':>29}"
        f"{_short(middle.whole):>8}",
        _range(plan),
        *_why(plan),
    ]
    return lines


def _range(plan: Plan) -> str:
    def three(values: tuple[float, float, float], unit: str) -> str:
        low, middle, high = values
        return f"{_short(middle)} {unit} ({_short(low)} to {_short(high)})"

    low, middle, high = (hours.whole for hours in plan.hours)
    told = [three((low, middle, high), "hours"), three(plan.gpu_hours, "GPU hours")]
    if plan.money is not None:
        told.append(three(plan.money, f"of money at {plan.price:g} a GPU hour"))
    return "; ".join(told)


def _why(plan: Plan) -> list[str]:
    """The assumptions and the error, in words."""
    low, middle, high = plan.assumed.share
    last = plan.hours[1].steps[-1]
    if plan.assumed.given:
        given = f"responses use {middle:.0%} of the cap, as --mean-length has it"
    else:
        given = (
            f"responses use {middle:.0%} of the cap, {low:.0%} to {high:.0%} in the range "
            "(docs/plan.md; --mean-length sets it)"
        )
    empty = f"{last.rollout.idle:.0%} of its places x time is empty"
    return [
        f"assumed: {given}, and {truncated(middle):.0%} of them reach it; prompts of "
        f"{plan.assumed.prompt:.0f} tokens",
        "low: vLLM as fast as its benchmarks; high: as slow as in trainers of early 2025, whose "
        "published runs the model meets within 27 %",
        "which of these a run is near has not been measured (docs/plan.md); --rates FOLDER of a "
        "run on the same hardware beats all of it",
        f"at the cap {last.cap:.0f} an engine decodes {last.rollout.places} sequences at a time; "
        f"near the end of a rollout only long ones are left: {empty}",
        f"checkpoints: at most {plan.checkpoints} are kept, "
        f"{_short(plan.checkpoint_bytes / GB)} GB each, {_short(plan.disk_bytes / GB)} GB together",
    ]


def _short(value: float) -> str:
    """Three digits that matter, without an exponent."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.4f}"
