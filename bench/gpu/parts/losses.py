"""Time, bytes and launches of policy loss and group advantages, beside eager TRL and verl."""

from __future__ import annotations

from typing import Any

from bench.device import rates
from bench.gpu.context import Context
from bench.measure import measure
from bench.peers import entries
from bench.rows.elementwise import AdvantageCase, LossCase


def run(context: Context) -> None:
    """32 K, 256 K and 1 M tokens; as many samples as a step has, and many more."""
    if context.rehearse:
        cases: list[Any] = [LossCase(300, ragged=True), AdvantageCase(4, 8)]
    else:
        cases = [LossCase(2**k) for k in (15, 18, 20)]
        cases += [AdvantageCase(1024), AdvantageCase(16_384), AdvantageCase(65_536)]
        cases += [LossCase(2**18, ragged=True), LossCase(2**20, ragged=True)]
    limits = rates(context.device, 1 if context.rehearse else 7)
    context.device.free()
    for case in cases:
        if context.in_time(case.name, 4):
            context.attempt(case.name, lambda c=case: _row(context, c, limits))
            context.device.free()


def _row(context: Context, case: Any, limits: dict[str, float]) -> None:
    """One case of the bench, with the contenders that need no package."""
    work = case.build(context.where, context.device, None, entries(case.group, bare=True))
    seconds, least = (0.0, 1) if context.rehearse else (1.5, 3)
    result = measure(work, context.device, limits, seconds, least)
    clock = context.device.clock
    context.say("row", name=case.name, clock=clock, result=trimmed(result))
    size = case.tokens if case.group == "loss" else case.groups * case.size
    kind = f"losses.{case.group}" + (".ragged" if getattr(case, "ragged", False) else "")
    for name, entry in result["contenders"].items():
        if "wrong" in entry:
            context.check(f"{case.name}, {name}", not name.startswith("ours"), why=entry["wrong"])
            continue
        time = entry[f"seconds_{clock}"]["median"]
        context.number(f"{kind}.us.{name}.{size}", 1e6 * time, "us")
        context.number(f"{kind}.bytes.{name}.{size}", result["bytes"] / time, "B/s")
        if entry.get("launches") is not None:
            context.number(f"{kind}.launches.{name}.{size}", entry["launches"])
    ours = result["contenders"].get("ours", {}).get(f"seconds_{clock}")
    if ours:
        rate = result["bytes"] / ours["median"] / limits["copy_bytes_per_s"]
        context.number(f"{kind}.of_copy_rate.{size}", rate, "of the copy's rate")
        for name, entry in result["contenders"].items():
            theirs = entry.get(f"seconds_{clock}")
            if theirs and not name.startswith("ours"):
                ratio = theirs["median"] / ours["median"]
                context.number(f"{kind}.gain.{name}.{size}", ratio, "times ours")


def trimmed(row: Any) -> Any:
    """A result without its single rounds."""
    if isinstance(row, dict):
        return {key: trimmed(value) for key, value in row.items() if key != "all"}
    return row
