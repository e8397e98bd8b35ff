"""A peer's head beside ours and the bare product, correctness first; each peer is a part."""

from __future__ import annotations

from bench.device import rates
from bench.gpu.context import Context, records_of
from bench.gpu.parts.losses import trimmed
from bench.measure import measure
from bench.peers import gpu_parts
from bench.peers.bare_import import make_importable
from bench.rows.head import HeadCase


def run(context: Context) -> None:
    """Both widths; the reason is written where a peer cannot run."""
    part = gpu_parts()[context.option]
    names, module = part.labels, part.imports
    why = make_importable(module)
    if why:
        context.say("missing", packages=[module], why=f"{module}: {why}")
        return
    if part.prepare is not None:
        part.prepare()
    limits = rates(context.device, 1 if context.rehearse else 5)
    context.device.free()
    tokens, vocabulary = (12, 260) if context.rehearse else (16_384, 151_936)
    for dim in (32,) if context.rehearse else (1536, 3584):
        case = HeadCase(tokens, dim, vocabulary, group=part.table, labels=("ours", *names))
        if context.in_time(case.name, 12):
            context.attempt(case.name, lambda c=case, d=dim: _row(context, c, names, d, limits))
            context.device.free()
    found = [r for r in records_of([context.records.path.parent]) if r.get("part") == context.part]
    reasons = [str(r["why"]) for r in found if r["what"] == "peer"]
    if reasons and not any(
        r["what"] == "number" and r["key"].startswith("peer.gain") for r in found
    ):
        context.say("missing", packages=[module], why=reasons[-1])


def _row(
    context: Context,
    case: HeadCase,
    names: tuple[str, ...],
    dim: int,
    limits: dict[str, float],
) -> None:
    """One case of the bench; ratios to ours."""
    work = case.build(context.where, context.device, None)
    seconds, least = (0.0, 1) if context.rehearse else (4.0, 3)
    result = measure(work, context.device, limits, seconds, least)
    clock = context.device.clock
    context.say("row", name=case.name, clock=clock, result=trimmed(result))
    base = result["contenders"].get("ours", {}).get(f"seconds_{clock}")
    for name in ("ours", *names):
        entry = result["contenders"].get(name)
        if entry is None:
            context.say("peer", name=name, why=result["missing"].get(name, "not measured"))
            continue
        if "wrong" in entry:
            context.say("peer", name=name, why=entry["wrong"])
            continue
        time = entry[f"seconds_{clock}"]["median"]
        context.number(f"peer.ms.{name}.{dim}", 1e3 * time, "ms")
        if name != "ours" and base:
            context.number(f"peer.gain.{name}.{dim}", time / base["median"], "times ours")
