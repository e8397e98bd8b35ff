"""Markdown and plots of ``kernels.json``, from it alone."""

from __future__ import annotations

import math
from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]

TITLES = {
    "head": "Log-prob of the head",
    "scalar": "Sum of the log-probs, gradient known in advance",
    "growth": "Growth with the number of tokens",
    "loss": "Policy loss, forward and backward",
    "advantages": "Group advantages",
}
PARTS = ("logprobs", "d_hidden", "d_weight", "loss", "d_logprobs", "advantages")


def group(name: str) -> str:
    """The group of a case, by its name."""
    return name.partition(":")[0]


def seconds(entry: Row, clock: str) -> float | None:
    """Median time, None where nothing was timed."""
    times = entry.get(f"seconds_{clock}")
    return times["median"] if times else None


def amount(value: float | None, unit: str = "s") -> str:
    """A time or a size with three digits."""
    if value is None:
        return ""
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e3, "ms")):
            if value * factor >= 1:
                return f"{value * factor:.3g} {name}"
        return f"{value * 1e6:.3g} us"
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def row_table(row: Row, clock: str) -> list[str]:
    """Lines of a case's table, the fastest contender first."""
    entries = row["contenders"]
    parts = [part for part in PARTS if any(part in e["errors"] for e in entries.values())]
    yardstick, measured = next(iter(row["yardsticks"].items()))
    base, eager = seconds(measured, clock), seconds(entries.get("eager", {}), clock)
    hot = any("seconds_hot" in e for e in entries.values())
    launches = any(e.get("launches") is not None for e in entries.values())
    head = ["contender", "time", "p20 to p80", *(["hot"] if hot else []), "/ eager",
            f"/ {yardstick}", "/ limit", "memory", *(["launches"] if launches else []),
            *[f"{part} max, rms, bias" for part in parts]]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

    def errors(of: Row) -> list[str]:
        return [
            "{max:.1e}, {rms:.1e}, {bias:+.1e}".format(**of[p]) if p in of else "" for p in parts
        ]

    for name, e in sorted(entries.items(), key=lambda x: seconds(x[1], clock) or math.inf):
        time = seconds(e, clock)
        if time is None:
            cells = [e["wrong"], *[""] * (len(head) - 2 - len(parts))]
        else:
            spread = e[f"seconds_{clock}"]
            cells = [amount(time), f"{amount(spread['p20'])} to {amount(spread['p80'])}"]
            cells += [amount(seconds(e, "hot"))] if hot else []
            cells += [f"{time / other:.2f}" if other else ""
                      for other in (eager, base, row["limit_seconds"])]  # fmt: skip
            cells.append(amount(e["peak_mib"], "MiB"))
            cells += [str(e.get("launches", ""))] if launches else []
        lines.append("| " + " | ".join([name, *cells, *errors(e["errors"])]) + " |")
    cells = [amount(base), *[""] * (len(head) - 2)]
    lines.append("| " + " | ".join([f"*{yardstick} alone*", *cells]) + " |")
    if "errors_eager" in row:
        cells = [*[""] * (len(head) - 1 - len(parts)), *errors(row["errors_eager"]["bfloat16"])]
        lines.append("| " + " | ".join(["*eager in bfloat16*", *cells]) + " |")
    if row.get("entries_kept") is not None:
        lines += ["", f"Ours saved {row['entries_kept']:.0f} top entries a token and recomputed "
                      f"{row['dense_row_frac']:.1%} of the tokens."]  # fmt: skip
    return lines


def exponent(points: list[tuple[float, float]]) -> float | None:
    """Slope of the logarithms by least squares; None for fewer than three positive points."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(logs) < 3:
        return None
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum(
        (x - mean_x) ** 2 for x, _ in logs
    )


def growth(result: Result) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Time and memory of each contender against the tokens."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    rows = [row for name, row in result["rows"].items() if group(name) == "growth"]
    for row in sorted(rows, key=lambda r: r["case"]["tokens"]):
        for name, entry in row["contenders"].items():
            time = seconds(entry, result["clock"])
            if time is not None:
                lines = series.setdefault(name, {"time": [], "memory": []})
                lines["time"].append((row["case"]["tokens"], time))
                lines["memory"].append((row["case"]["tokens"], entry["peak_mib"]))
    return series


def growth_table(result: Result) -> list[str]:
    """Exponents, and the largest size."""
    lines = ["| contender | time grows as N to the | memory as N to the | at N | time | memory |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, values in growth(result).items():
        powers = [exponent(values[kind]) for kind in ("time", "memory")]
        cells = ["" if p is None else f"{p:.2f}" for p in powers]
        (n, time), (_, memory) = values["time"][-1], values["memory"][-1]
        cells += [str(n), amount(time), amount(memory, "MiB")]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def heading(result: Result) -> list[str]:
    """Where and how the cases were measured."""
    rates, clock = result["rates"], {"cold": "wall time" if "driver" not in result else
                                     "after a flush of the L2 cache"}  # fmt: skip
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v[0].isdigit())
    return [
        f"{result['device']}, {result['cores']} cores, {result['threads']} thread(s), "
        + (f"driver {result['driver']}, " if "driver" in result else "")
        + f"torch {result['torch']}, {versions}; commit {result['commit']}.",
        "",
        f"Medians of rounds in turns, {clock.get(result['clock'], 'time of the process')}. Memory "
        "is beyond inputs and returned gradients. Errors are against float64 in units of the exact "
        "result's root mean square; a bias below 0 means too small. / product: the bare forward "
        "product of the same shape in the same rounds. / limit: the larger of flops and bytes that "
        "the whole work needs (2 N D V forward, 6 N D V with backward, 4 with a frozen head) over "
        f"this run's rates, {rates['product_flop_per_s'] / 1e9:.0f} GFLOP/s of a product and "
        f"{rates['copy_bytes_per_s'] / 1e9:.1f} GB/s of a copy; below 1 is possible where backward "
        "leaves products out.",
    ]


def everything(result: Result) -> str:
    """The Markdown of all cases."""
    lines = ["# Kernels, measured", "", *heading(result)]
    missing: dict[str, str] = dict(result["not_measured"])
    settings: dict[str, str] = {}
    for key, title in TITLES.items():
        rows = {n: r for n, r in result["rows"].items() if group(n) == key}
        if rows:
            lines += ["", f"## {title}"]
        if key == "growth" and rows:
            case = next(iter(rows.values()))["case"]
            lines += ["", f"D {case['dim']}, V {case['vocab']}, forward and backward."]
            lines += ["", *growth_table(result)]
        for name, row in rows.items():
            missing |= {f"{key}, {n}": why for n, why in row["missing"].items()}
            settings |= {f"{key}, {n}": how for n, how in row["settings"].items()}
            if key != "growth":
                lines += ["", f"**{name}**", "", *row_table(row, result["clock"])]
    lines += ["", "## Settings", "", *[f"- {n}: {how}" for n, how in settings.items()]]
    lines += ["", "## Not measured", "", *[f"- {n}: {why}" for n, why in missing.items()]]
    return "\n".join(lines) + "\n"


def summary(result: Result) -> str:
    """The table in the README: the most important cases, a line for each contender."""
    clock = result["clock"]
    lines = ["| row | contender | time | / eager | / ours | memory | error |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for key in ("head", "loss", "advantages"):
        rows = [(n, r) for n, r in result["rows"].items() if group(n) == key]
        if key == "head":
            rows = [(n, r) for n, r in rows if r["case"]["mode"] == "both"]
        for name, row in rows[: 3 if key == "head" else 1]:
            entries = row["contenders"]
            eager, ours = (seconds(entries.get(n, {}), clock) for n in ("eager", "ours"))
            timed = [(seconds(e, clock), n, e) for n, e in entries.items() if seconds(e, clock)]
            for time, contender, e in sorted(timed, key=lambda item: item[0] or 0):
                part = [p for p in ("d_hidden", "d_logprobs", "advantages") if p in e["errors"]]
                ratios = [
                    f"{time / other:.2f}" if time and other else "" for other in (eager, ours)
                ]
                lines.append(
                    f"| {name.partition(': ')[2]} | {contender} | {amount(time)} | "
                    f"{' | '.join(ratios)} | {amount(e['peak_mib'], 'MiB')} | "
                    f"{e['errors'][part[0]]['rms']:.1e} |"
                )
    return "\n".join(lines) + "\n"
