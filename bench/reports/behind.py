"""The cases of ``kernels.json`` in which another contender is faster than ours."""

from __future__ import annotations

from bench.reports.tables import Result, amount, seconds

OURS = "ours"


def behind(result: Result) -> str:
    """A table of these cases: our time, eager's and the fastest other's, and the memory of both.

    Forms of ours that are asked for, as ``tail=0``, are not among them; a line below says how long
    ``tail=0`` takes. Where there is no such case a line says so in place of the table.

    Args:
        result: of ``kernels.json``.
    """
    clock = result["clock"]
    lines = [
        "| row | ours | / eager | faster | ours / it | memory of ours | of eager | of the faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        entries = row["contenders"]
        times = {n: seconds(e, clock) for n, e in entries.items()}
        ours, eager = times.get(OURS), times.get("eager")
        others = {n: t for n, t in times.items() if t and not n.startswith(OURS)}
        if not ours or not others:
            continue
        best = min(others, key=lambda n: others[n])
        if others[best] >= ours:
            continue
        memory = [
            amount(entries[n]["peak_mib"], "MiB") if n in entries else ""
            for n in (OURS, "eager", best)
        ]
        cells = [name, amount(ours), f"{ours / eager:.2f}" if eager else "", best]
        lines.append("| " + " | ".join([*cells, f"{ours / others[best]:.2f}", *memory]) + " |")
    if len(lines) == 2:
        lines = ["None: ours is the fastest in every row."]
    span = asked_for(result, "ours, tail=0")
    if span:
        least, most = (f"{ratio:.2f}" for ratio in span)
        lines += ["", f"`tail=0` takes {least} to {most} times eager's time, forward and backward."]
    return "\n".join(lines) + "\n"


def asked_for(result: Result, form: str) -> tuple[float, float] | None:
    """The least and the largest time of a form of ours over eager's, forward and backward.

    None where no case has both.

    Args:
        result: of ``kernels.json``.
        form: a contender, as "ours, tail=0".
    """
    clock, ratios = result["clock"], []
    for row in result["rows"].values():
        times = [seconds(row["contenders"].get(n, {}), clock) for n in (form, "eager")]
        if row["case"].get("mode") == "both" and times[0] and times[1]:
            ratios.append(times[0] / times[1])
    return (min(ratios), max(ratios)) if ratios else None
