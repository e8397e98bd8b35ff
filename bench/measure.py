"""Measures a case: correctness first, then memory, then times in turns.

:func:`in_turns` takes all times of the bench, :func:`spread` makes all statistics.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.device import Device, Step, Timer

Errors = dict[str, dict[str, float]]


@dataclass
class Work:
    """A case to be measured.

    Args:
        steps: the timed call of each contender.
        check: errors of a contender against float64, and why it is wrong or None.
        yardsticks: bare operations timed in the same rounds.
        flops: floating-point operations that the work needs at least.
        bytes: bytes that the work reads and writes at least.
        returned: bytes of results and gradients, which do not belong to the peak memory.
        missing: contenders that cannot run, with the reason.
        settings: of each contender.
        facts: further keys of the result.
        count_launches: count kernels, copies and fills of a call.
        check_result: why the result of a timed call, at its full size, is wrong, or None.
    """

    steps: dict[str, Step]
    check: Callable[[str], tuple[Errors, str | None]]
    yardsticks: dict[str, Step]
    flops: float
    bytes: float
    returned: int
    missing: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    count_launches: bool = False
    check_result: Callable[[str, Any], str | None] = lambda name, result: None


def distance(got: Tensor, exact: Tensor) -> dict[str, float]:
    """Errors of a result, in units of the exact result's root mean square.

    Returns:
        ``relative`` (Frobenius), and of the entries ``max``, ``rms`` and ``bias``, the signed mean.
        The sign is that of the exact entry: a bias below 0 means results that are too small.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=got.device)
    largest = totals.new_zeros(())
    size = 1 << (18 if got.device.type == "cpu" else 26)  # float64 copies that stay in a cache
    blocks = zip(got.reshape(-1).split(size), exact.reshape(-1).split(size), strict=True)
    for mine, right in blocks:
        gap, right = mine.double() - right.double(), right.double()
        largest = torch.maximum(largest, gap.abs().max())
        sums = (gap.square().sum(), right.square().sum(), (gap * right.sign()).sum())
        totals[:3] += torch.stack(sums)
        totals[3] += len(gap)
    gaps, rights, bias, count = totals.tolist()
    scale = max((rights / count) ** 0.5, 1e-300)
    rms = (gaps / count) ** 0.5 / scale
    return {
        "relative": rms,
        "max": float(largest) / scale,
        "rms": rms,
        "bias": bias / count / scale,
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Median, 20th and 80th percentile, and the values."""
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p20": ordered[len(ordered) // 5],
        "p80": ordered[-1 - len(ordered) // 5],
        "all": values,
    }


def _out_of_memory(error: Exception) -> bool:
    """Whether PyTorch had no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate" in str(error)


def measure(
    work: Work, device: Device, limits: dict[str, float], seconds: float, least: int = 3
) -> dict[str, Any]:
    """Times, memory and errors of each contender, or the reason why there are none.

    Args:
        work: the case.
        device: where it runs.
        limits: rates of the device, of :func:`bench.device.rates`.
        seconds: of the timed rounds; at most 20 rounds.
        least: rounds, whatever they take.

    Raises:
        Exception: ours failed, other than by lack of memory. A peer's exception is its reason.
    """
    row: dict[str, Any] = {
        **work.facts, "flops": work.flops, "bytes": work.bytes, "contenders": {},
        "missing": dict(work.missing), "settings": work.settings,
    }  # fmt: skip
    row["limit_seconds"] = max(
        work.flops / limits["product_flop_per_s"], work.bytes / limits["copy_bytes_per_s"]
    )
    ready: dict[str, Step] = {}
    for name, step in work.steps.items():
        try:
            errors, wrong = work.check(name)
            row["contenders"][name] = entry = {"errors": errors}
            if wrong is None:  # the first call compiles, tunes, fills caches
                wrong = work.check_result(name, step())
            if wrong is not None:
                entry["wrong"] = f"{wrong}; not timed"
                continue
            entry["peak_mib"] = max(0, device.peak(step) - work.returned) / 2**20
            if work.count_launches:
                entry["launches"] = device.launches(step)
            ready[name] = step
        except Exception as error:  # a peer may raise anything; the case goes on without it
            if name.startswith("ours") and not _out_of_memory(error):
                raise
            text = (str(error).strip().splitlines() or [""])[0]
            row["contenders"].pop(name, None)
            row["missing"][name] = f"{type(error).__name__}: {text[:200]}"
            device.free()
    everything = {**work.yardsticks, **ready}
    for step in work.yardsticks.values():
        step()
    times = in_turns(everything, device, seconds, least)
    for name, by_clock in times.items():
        entry = {f"seconds_{key}": spread(values) for key, values in by_clock.items()}
        if name in work.yardsticks:
            row.setdefault("yardsticks", {})[name] = entry
        else:
            row["contenders"][name] |= entry
    return row


def in_turns(
    steps: Mapping[str, Step], device: Timer, seconds: float, least: int, most: int = 20
) -> dict[str, dict[str, list[float]]]:
    """Times of each step, one call a round; each round begins with another step.

    The others follow in an order that is drawn for each round: a step that frees much memory makes
    the one after it pay for pages anew, which must not be the same one each time.

    Args:
        steps: calls without arguments.
        device: takes the time of a call.
        seconds: no round begins that would probably pass them.
        least: rounds, whatever they take.
        most: rounds.

    Returns:
        The times in seconds of each step by clock, in the order of the rounds.
    """
    times: dict[str, dict[str, list[float]]] = {
        name: {key: [] for key in device.clocks} for name in steps
    }
    names, spent, draw = list(steps), 0.0, random.Random(0)
    for number in range(most):
        first = names[number % len(names)]
        others = [name for name in names if name != first]
        lasted = 0.0
        for name in [first, *draw.sample(others, len(others))]:
            for key, value in device.seconds(steps[name]).items():
                times[name][key].append(value)
                lasted += value if key != "process" else 0.0
        spent += lasted
        if number + 1 >= least and spent + lasted > seconds:
            break
    return times
