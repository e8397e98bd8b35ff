"""Times in turns, for parts that measure no case of the bench."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from bench.gpu.context import Context
from bench.measure import in_turns, spread

Steps = Mapping[str, Callable[[], Any]]


def rounds(context: Context, steps: Steps, seconds: float = 1.0) -> dict[str, dict[str, Any]]:
    """Median, p20, p80 and all times in seconds of each step, by the device's own clock.

    Each step is called once before.

    Args:
        context: of the part.
        steps: calls without arguments.
        seconds: of all rounds.
    """
    for step in steps.values():
        step()
    context.device.synchronize()
    least, seconds = (1, 0.0) if context.rehearse else (3, min(seconds, context.left()))
    times = in_turns(dict(steps), context.device, seconds, least)
    return {name: spread(by_clock[context.device.clock]) for name, by_clock in times.items()}


def medians(context: Context, steps: Steps, seconds: float = 1.0) -> dict[str, float]:
    """The medians of :func:`rounds`.

    Args:
        context: of the part.
        steps: calls without arguments.
        seconds: of all rounds.
    """
    return {name: row["median"] for name, row in rounds(context, steps, seconds).items()}


def host_seconds(context: Context, step: Callable[[], Any], count: int = 3) -> float:
    """Median seconds until a call returns, which may be before the device ends.

    Args:
        context: of the part.
        step: the call.
        count: how often it is called.
    """
    times = []
    for _ in range(1 if context.rehearse else count):
        context.device.synchronize()
        start = context.clock.now()
        step()
        times.append(context.clock.now() - start)
    context.device.synchronize()
    return statistics.median(times)
