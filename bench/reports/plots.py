"""Speed, memory, error and growth as SVG, from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from bench.reports.tables import exponent, group, growth, seconds

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = {"ours": "#c0392b", "ours, tail=0": "#e59866"}


def _colour(name: str, position: int) -> Any:
    """Ours is red; the others keep one colour over all plots."""
    return COLOURS.get(name) or plt.get_cmap("Blues")(0.35 + 0.06 * (position % 10))


def _bars(
    path: Path, rows: dict[str, dict[str, float]], label: str, log: bool, line: float | None
) -> None:
    """A panel for each case, a bar for each contender."""
    if not rows:
        return
    columns = 3
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(14, 2.9 * lines), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, (title, values) in zip(axes.flat, rows.items(), strict=False):
        ordered = sorted(values.items(), key=lambda item: -item[1])
        names = [name for name, _ in ordered]
        axis.barh(
            range(len(names)), [v for _, v in ordered],
            color=[_colour(n, i) for i, n in enumerate(names)],
        )  # fmt: skip
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_title(title.partition(": ")[2] or title, fontsize=8)
        axis.set_xlabel(label, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        if log and any(v > 0 for v in values.values()):
            axis.set_xscale("log")
        if line is not None:
            axis.axvline(line, color="black", linewidth=0.8, linestyle=":")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Write without dates and random ids, so that the same numbers give the same file."""
    figure.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "bench"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _lines(path: Path, result: dict[str, Any]) -> None:
    """Time and memory against the number of tokens, with the exponents."""
    series = growth(result)
    if not series:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, kind, label in zip(axes, ("time", "memory"), ("seconds", "MiB"), strict=True):
        for position, (name, values) in enumerate(series.items()):
            power = exponent(values[kind])
            text = name if power is None else f"{name}: N^{power:.2f}"
            axis.plot(*zip(*values[kind], strict=True), marker="o", markersize=3, label=text,
                      color=_colour(name, position))  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axis.legend(fontsize=7)
    _save(figure, path)


def write_plots(folder: Path, result: dict[str, Any]) -> None:
    """``speed.svg``, ``memory.svg``, ``error.svg`` and ``growth.svg``."""
    clock, rows = result["clock"], result["rows"]
    speed: dict[str, dict[str, float]] = {}
    memory: dict[str, dict[str, float]] = {}
    error: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        if group(name) == "growth":
            continue
        timed = {n: e for n, e in row["contenders"].items() if seconds(e, clock)}
        eager = seconds(row["contenders"].get("eager", {}), clock)
        if eager:
            speed[name] = {n: eager / (seconds(e, clock) or 1) for n, e in timed.items()}
        memory[name] = {n: e["peak_mib"] for n, e in timed.items()}
        if group(name) in ("head", "scalar"):
            part = "d_hidden" if row["case"]["mode"] != "forward" else "logprobs"
            error[name] = {n: e["errors"][part]["rms"] for n, e in timed.items()}
            error[name]["eager in bfloat16"] = row["errors_eager"]["bfloat16"][part]["rms"]
    _bars(folder / "speed.svg", speed, "speed, eager is 1", False, 1.0)
    _bars(folder / "memory.svg", memory, "MiB beyond inputs and gradients", False, None)
    _bars(folder / "error.svg", error, "error against float64 (rms, relative)", True, None)
    _lines(folder / "growth.svg", result)
