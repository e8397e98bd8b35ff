"""The plan of a run: memory, hours, money and disk space from its recipe and a number of GPUs.

:func:`plan` needs no data, no weights and no network: the model is a folder with its config.json or
one of the known families.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from siri_train.checkpoint.retention import ends
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.plan import lengths
from siri_train.plan.checks import config_of
from siri_train.plan.efficiency import DEFAULT, FAST, SLOW, Efficiency
from siri_train.plan.fitting import USABLE, Change, least_ranks, needed, remedy
from siri_train.plan.gpus import Gpu, gpu_of
from siri_train.plan.memory import GB, Memory, Sizes
from siri_train.plan.phases import Phase, StepTime, evaluation_seconds, evaluations, phases
from siri_train.plan.questions import read_what_is_here
from siri_train.plan.samplers import engine_gpus, sampler_problem, server_gpus
from siri_train.plan.training_time import Machines


@dataclass(frozen=True)
class Assumed:
    """Values that a plan takes for granted, because only a run can measure them.

    Args:
        share: mean response length over the cap: low, middle, high.
        prompt: mean tokens of a prompt.
        given: whether the user gave the share.
    """

    share: tuple[float, float, float]
    prompt: float
    given: bool = False


@dataclass(frozen=True)
class Hours:
    """Hours of a whole run at one speed and one share of the cap.

    Args:
        phases: of the schedule.
        evaluation: hours of all evaluations.
        steps: seconds at some caps, from which the phases were computed.
    """

    phases: list[Phase]
    evaluation: float
    steps: list[StepTime] = field(repr=False)

    @property
    def rollout(self) -> float:
        """Hours of sampling for training."""
        return sum(phase.steps * phase.rollout for phase in self.phases) / 3600

    @property
    def training(self) -> float:
        """Hours of the rest of the steps."""
        return sum(phase.steps * phase.training for phase in self.phases) / 3600

    @property
    def whole(self) -> float:
        """Hours of the run."""
        return sum(phase.hours for phase in self.phases) + self.evaluation

    @property
    def tokens(self) -> float:
        """Response tokens that are trained on."""
        return sum(phase.tokens for phase in self.phases)


@dataclass(frozen=True)
class Plan:
    """The result: memory, hours, money and disk space of a run.

    Args:
        model: where its shape is from.
        sizes: of the model.
        machines: the GPUs of the trainer.
        server_gpus: GPUs of a rollout server besides.
        engine_gpus: GPUs of one engine of that server.
        memory: of one rank.
        problem: why it does not fit; None: it fits.
        change: what would make it fit; None: it fits, or nothing was found.
        least_ranks: the smallest number of ranks that fits; None: none does.
        hours: low, middle, high: a bare engine with short responses, between, an engine as slow as
            those of published runs with long responses.
        assumed: what was taken for granted.
        evaluations: how many.
        price: money per GPU hour; None: not known.
        checkpoint_bytes: of one checkpoint with the trainer's state.
        checkpoints: how many are kept at the end, at most.
    """

    model: str
    sizes: Sizes
    machines: Machines
    server_gpus: int
    engine_gpus: int
    memory: Memory
    problem: str | None
    change: Change | None
    least_ranks: int | None
    hours: tuple[Hours, Hours, Hours]
    assumed: Assumed
    evaluations: int
    price: float | None
    checkpoint_bytes: int
    checkpoints: int

    @property
    def fits(self) -> bool:
        """Whether every rank's memory suffices."""
        return self.problem is None

    @property
    def gpus(self) -> int:
        """GPUs of trainer and server together."""
        return self.machines.ranks + self.server_gpus

    @property
    def gpu_hours(self) -> tuple[float, float, float]:
        """Low, middle, high."""
        low, middle, high = (each.whole * self.gpus for each in self.hours)
        return low, middle, high

    @property
    def money(self) -> tuple[float, float, float] | None:
        """Low, middle, high, in the price's currency; None: no price is known."""
        if self.price is None:
            return None
        low, middle, high = (hours * self.price for hours in self.gpu_hours)
        return low, middle, high

    @property
    def disk_bytes(self) -> int:
        """Bytes of all checkpoints that are kept at the end."""
        return self.checkpoints * self.checkpoint_bytes


def plan(
    config: RunConfig,
    *,
    ranks: int = 1,
    gpu: str | Gpu = "h100",
    memory_gb: float | None = None,
    gpus_per_node: int = 8,
    price: float | None = None,
    share: float | None = None,
    graded: int | None = None,
    sizes: Sizes | None = None,
    reference: Sizes | None = None,
) -> Plan:
    """Plan a run.

    Args:
        config: the recipe.
        ranks: processes of the trainer, one GPU each.
        gpu: a known GPU or its name.
        memory_gb: of a GPU in 10**9 bytes, if another than the data sheet's.
        gpus_per_node: GPUs of one machine.
        price: money per GPU hour; None: ``monitor.price_per_gpu_hour``.
        share: mean response length over the cap, above 0 and at most 1; None: an assumption with a
            range.
        graded: responses of one evaluation; None: as the sources' names say.
        sizes: of the model; None: of the folder or the known shape of ``model.path``.
        reference: sizes of the KL term's model; None: as ``sizes``.

    Raises:
        ConfigError: an unknown GPU, or a model that is neither a folder here nor known.
        ValueError: a number out of its bounds.
    """
    found = gpu_of(gpu) if isinstance(gpu, str) else gpu
    if memory_gb is not None:
        found = found.with_memory(memory_gb)
    for name, value in (("ranks", ranks), ("gpus_per_node", gpus_per_node)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, takes at least 1")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share: got {share}, takes a number above 0 and at most 1")
    if sizes is None:
        sizes = Sizes.of(config_of(config.model.path))
    if graded is None:
        graded = read_what_is_here(config, only_missing=True).counts.graded(config)
    machines = Machines(ranks, found, gpus_per_node)
    assumed = assumptions(config, share)
    count = evaluations(config)
    low, middle, high = (
        _hours(config, sizes, machines, part, assumed.prompt, speed, graded, reference)
        for part, speed in zip(assumed.share, (FAST, DEFAULT, SLOW), strict=True)
    )
    memory = needed(config, sizes, ranks, found.memory_gb, reference)
    problem = _problem(config, sizes, memory, found)
    change = None if problem is None else remedy(config, sizes, ranks, found, reference)
    return Plan(
        model=config.model.path,
        sizes=sizes,
        machines=machines,
        server_gpus=server_gpus(config, sizes, machines),
        engine_gpus=engine_gpus(config, sizes, machines),
        memory=memory,
        problem=problem,
        change=change,
        least_ranks=least_ranks(config, sizes, found, reference),
        hours=(low, middle, high),
        assumed=assumed,
        evaluations=count,
        price=config.monitor.price_per_gpu_hour if price is None else price,
        checkpoint_bytes=checkpoint_bytes(config, sizes),
        checkpoints=kept_checkpoints(config),
    )


def assumptions(config: RunConfig, share: float | None = None) -> Assumed:
    """The lengths that a plan assumes.

    Args:
        config: the recipe.
        share: mean response length over the cap; None: :data:`lengths.SHARE` and its range.
    """
    shares = (lengths.LOW, lengths.SHARE, lengths.HIGH) if share is None else (share,) * 3
    # A mathematical question with its template has 100 to 200 tokens.
    return Assumed(shares, min(150.0, 0.5 * config.data.max_prompt_len), share is not None)


def _hours(
    config: RunConfig,
    sizes: Sizes,
    machines: Machines,
    share: float,
    prompt: float,
    speed: Efficiency,
    graded: int,
    reference: Sizes | None,
) -> Hours:
    """Hours at one speed; ``graded`` responses an evaluation."""
    found, steps = phases(
        config, sizes, machines, share=share, prompt=prompt, speed=speed, reference=reference
    )
    count = evaluations(config)
    each = evaluation_seconds(
        config, sizes, machines, graded, share=share, prompt=prompt, speed=speed
    )
    return Hours(found, count * each / 3600, steps)


def _problem(config: RunConfig, sizes: Sizes, memory: Memory, gpu: Gpu) -> str | None:
    usable = USABLE * gpu.memory_gb
    told = []
    if memory.peak > usable * GB:
        told.append(f"{memory.peak / GB:.1f} GB, {usable:.1f} usable ({gpu.memory_gb:.0f} GB)")
    told += filter(None, [sampler_problem(config, sizes, gpu)])
    return "; ".join(told) or None


def checkpoint_bytes(config: RunConfig, sizes: Sizes) -> int:
    """Bytes of one checkpoint: whole weights, and the optimiser's state of what is trained.

    Args:
        config: the recipe.
        sizes: of its model.
    """
    stored = 4 if config.model.dtype == "float32" else 2
    moments = 8
    if stored == 2:
        moments = 12 if config.train.master_weights else 4
    return sizes.parameters * stored + sizes.trained(config) * moments


def kept_checkpoints(config: RunConfig) -> int:
    """Checkpoints that a finished run keeps: named ones, the best and the newest periodic ones.

    Args:
        config: the recipe.
    """
    schedule, steps = config.schedule.build(), config.train.steps
    named = {*ends(schedule, steps, config.checkpoint.lag, steps), steps}
    measured = len(ends(schedule, steps, 0, steps)) if config.checkpoint.lag_window else 0
    periodic = 0
    if config.checkpoint.every:
        others = set(range(config.checkpoint.every, steps + 1, config.checkpoint.every)) - named
        periodic = min(config.checkpoint.keep_last, len(others))
    return len(named) + measured + periodic + (config.checkpoint.best is not None)


def share_of(config: RunConfig, text: str) -> float:
    """The share of the cap that ``--mean-length`` gives.

    Args:
        config: the recipe.
        text: a share as 0.5, a per cent as 50%, or tokens at the largest cap as 8000.

    Raises:
        ConfigError: it is none of these, or more than the cap.
    """
    cap = config.schedule.max_len
    plain = text.strip()
    try:
        value = float(plain.removesuffix("%"))
    except ValueError:
        value = -1.0
    if plain.endswith("%"):
        value /= 100
    elif value > 1:
        value /= cap
    if not 0 < value <= 1:
        raise ConfigError(
            f"--mean-length: got {text[:40]!r}; takes a share of the cap as 0.5 or 50%, or tokens "
            f"at the largest cap, at most {cap}"
        )
    return value
