"""The time of a run: seconds by cap, averaged over the steps of each phase of its schedule."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from siri_train.checkpoint.retention import ends
from siri_train.config.rollout import RolloutConfig
from siri_train.config.run import RunConfig
from siri_train.plan.efficiency import Efficiency
from siri_train.plan.memory import Sizes
from siri_train.plan.samplers import sampler_of
from siri_train.plan.sampling_time import SamplingTime, sampling_time
from siri_train.plan.training_time import Machines, TrainingTime, training_time

_GRID = 6
"""Caps at which seconds are computed; between them they are joined by lines."""
_RETRIED = 1.5
"""Questions a step samples in dynamic sampling with several rounds, at least, over those kept."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step at one cap.

    Args:
        cap: response tokens at most.
        rollout: of sampling.
        training: of the rest.
    """

    cap: float
    rollout: SamplingTime
    training: TrainingTime


@dataclass(frozen=True)
class Phase:
    """A phase of the schedule.

    Args:
        name: ``"compression"``, ``"expansion"`` or ``"constant"``.
        cycle: counted from 1.
        steps: of it.
        mean_cap: mean cap of its steps.
        tokens: response tokens of the whole phase.
        rollout: seconds of sampling a step, mean.
        training: seconds of the rest of a step, mean.
        step: seconds of a step, mean; less than the sum where both run at once.
    """

    name: str
    cycle: int
    steps: int
    mean_cap: float
    tokens: float
    rollout: float
    training: float
    step: float

    @property
    def hours(self) -> float:
        """Hours of the whole phase."""
        return self.steps * self.step / 3600


def sampled(config: RunConfig) -> float:
    """Responses that a step samples: with dynamic sampling more than it trains on.

    Args:
        config: the recipe.
    """
    rounds = _RETRIED if config.rollout.max_rounds > 1 else 1.0
    kept = config.rollout.prompts * config.rollout.group_size
    return kept * max(config.rollout.oversample, rounds)


def step_time(
    config: RunConfig,
    sizes: Sizes,
    machines: Machines,
    *,
    cap: float,
    share: float,
    prompt: float,
    speed: Efficiency,
    reference: Sizes | None = None,
) -> StepTime:
    """Seconds of one step.

    Args:
        config: the recipe.
        sizes: of its model.
        machines: the GPUs.
        cap: of the step.
        share: mean response length over ``cap``.
        prompt: mean tokens of a prompt.
        speed: the efficiencies.
        reference: sizes of the KL term's model; None: as ``sizes``.
    """
    sampler = sampler_of(config, sizes, machines)
    rollout = sampling_time(
        sizes, machines.gpu, sampler, responses=round(sampled(config)),
        per_prompt=config.rollout.group_size, prompt=prompt, cap=cap, share=share, speed=speed,
    )  # fmt: skip
    training = training_time(
        config, sizes, machines, cap=cap, share=share, prompt=prompt, speed=speed,
        reference=reference,
    )  # fmt: skip
    return StepTime(cap, rollout, training)


def phases(
    config: RunConfig,
    sizes: Sizes,
    machines: Machines,
    *,
    share: float,
    prompt: float,
    speed: Efficiency,
    reference: Sizes | None = None,
) -> tuple[list[Phase], list[StepTime]]:
    """Every phase of the schedule, and the seconds at the caps they were computed from.

    Args:
        config: the recipe.
        sizes: of its model.
        machines: the GPUs.
        share: mean response length over the cap.
        prompt: mean tokens of a prompt.
        speed: the efficiencies.
        reference: sizes of the KL term's model; None: as ``sizes``.
    """
    schedule, steps = config.schedule.build(), config.train.steps
    caps = [schedule(step) for step in range(steps)]
    low, high = min(caps), max(caps)
    count = _GRID if high > low else 1
    grid = [low + (high - low) * i / max(1, count - 1) for i in range(count)]

    def on_grid(rollout: RolloutConfig) -> list[StepTime]:
        return [step_time(
            config.model_copy(update={"rollout": rollout}),
            sizes,
            machines,
            cap=cap,
            share=share,
            prompt=prompt,
            speed=speed,
            reference=reference,
        ) for cap in grid]  # fmt: skip

    known = on_grid(config.rollout)
    plain = None  # of phases that switch dynamic sampling off
    responses = config.rollout.prompts * config.rollout.group_size
    found = []
    for first, behind, name in schedule.phases(steps):
        mine = caps[first:behind]
        times = known
        if config.rollout.dynamic and config.loss.own(name).dynamic_sampling is False:
            times = plain = plain or on_grid(config.rollout.plain)
        at = [_between(grid, times, cap) for cap in mine]
        both = [max(a, b) if config.rollout.asynchronous else a + b for a, b in at]
        found.append(
            Phase(
                name=name,
                cycle=schedule.cycle_index(first),
                steps=len(mine),
                mean_cap=sum(mine) / len(mine),
                tokens=share * responses * sum(mine),
                rollout=sum(a for a, _ in at) / len(mine),
                training=sum(b for _, b in at) / len(mine),
                step=sum(both) / len(mine),
            )
        )
    return found, known


def _between(grid: list[float], known: list[StepTime], cap: float) -> tuple[float, float]:
    """Rollout and training seconds at a cap, on the line between its neighbours in the grid."""
    right = min(bisect_right(grid, cap), len(grid) - 1)
    left = max(0, right - 1)
    width = grid[right] - grid[left]
    weight = (cap - grid[left]) / width if width else 0.0
    a, b = known[left], known[right]
    return (
        a.rollout.seconds * (1 - weight) + b.rollout.seconds * weight,
        a.training.seconds * (1 - weight) + b.training.seconds * weight,
    )


def evaluations(config: RunConfig) -> int:
    """How many evaluations a run makes.

    Args:
        config: the recipe.
    """
    schedule, steps = config.schedule.build(), config.train.steps
    evaluated = {steps, *ends(schedule, steps, config.checkpoint.lag, steps)}
    if config.eval.every:
        evaluated |= set(range(config.eval.every, steps, config.eval.every))
    return len(evaluated | ({0} if config.eval.at_start else set()))


def evaluation_seconds(
    config: RunConfig,
    sizes: Sizes,
    machines: Machines,
    graded: int,
    *,
    share: float,
    prompt: float,
    speed: Efficiency,
) -> float:
    """Seconds of one evaluation.

    Args:
        config: the recipe.
        sizes: of its model.
        machines: the GPUs.
        graded: responses of one evaluation, of all sets.
        share: mean response length over the largest budget.
        prompt: mean tokens of a prompt.
        speed: the efficiencies.
    """
    if not graded:
        return 0.0
    sampler = sampler_of(config, sizes, machines)
    time = sampling_time(
        sizes, machines.gpu, sampler, responses=graded, per_prompt=config.eval.samples,
        prompt=prompt, cap=config.budgets[-1], share=share, speed=speed,
    )  # fmt: skip
    graders = machines.ranks * max(1, config.reward.workers)
    return time.seconds + graded * speed.check / graders
