"""Time of the head: forward, forward that saves top entries, backward, all tokens recomputed.

Bare products with bf16 and with fp32 results run in the same rounds; ratios are to them. The
profiler gives the time of each kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.context import Context
from bench.gpu.head_calls import HeadCalls, overlap, tile_of, unfused
from bench.gpu.timing import host_seconds, rounds
from siri_kernels import linear_logprob, take_backward_stats

# Tokens and vocabulary entries: 128 MiB of fp32 logits, then sizes that fit an L2 cache of 50 MiB.
SHAPES = ((8192, 4096), (4096, 4096), (2048, 4096), (8192, 2048), (4096, 2048), (8192, 1024))


def run(context: Context) -> None:
    """Both widths at 0.5 nats, the kernels of each call, few tokens, the worst case."""
    tokens, vocabulary = (6, 260) if context.rehearse else (16_384, 151_936)
    dims = (32,) if context.rehearse else (1536, 3584)
    for dim in dims:
        shape = (tokens, dim, vocabulary)
        if context.in_time(f"head {dim}", 15):
            context.attempt(f"head {dim}", lambda s=shape: main_case(context, s))
            context.device.free()
    for few in (4,) if context.rehearse else (64, 512, 2048):
        shape = (few, dims[0], vocabulary)
        if context.in_time(f"few rows {few}", 5):
            context.attempt(f"few rows {few}", lambda s=shape: _few_rows(context, s))
            context.device.free()
    for dim in dims:
        shape = (tokens, dim, vocabulary)
        if context.in_time(f"worst case {dim}", 12):
            context.attempt(f"worst case {dim}", lambda s=shape: _worst_case(context, s))
            context.device.free()


def main_case(context: Context, shape: tuple[int, int, int]) -> None:
    """Times in turns, with the overlap on and off, then memory, launches and kernels."""
    calls, dim = HeadCalls(context, *shape, 0.5), shape[1]
    context.say("inputs", shape=shape, softmax=0.5)
    took = _timed(context, f"head.{dim}", {**calls.products(), **calls.calls()}, calls.flops, 5.0)
    take_backward_stats()
    calls.both()
    stats = take_backward_stats()
    if stats is not None:
        for name, value in stats._asdict().items():
            context.number(f"head.{name}.{dim}", float(value))
    for name, call in calls.calls().items():
        context.attempt(f"kernels of {name}", lambda n=name, c=call: inside(context, n, c, dim))
    for name, call in calls.calls().items():
        returned = calls.returned if name in ("both", "dense") else 0
        peak = max(0, context.device.peak(call) - returned)
        context.number(f"head.peak_mib.{name}.{dim}", peak / 2**20, "MiB")
    with unfused():  # the following is about the form that stores tiles
        if context.in_time(f"overlap {dim}", 6):
            context.attempt("overlap", lambda: _overlaps(context, calls, dim))
        if context.in_time(f"tiles {dim}", 12):
            context.attempt("tiles", lambda: _tile_shapes(context, calls, dim))
    context.say("medians", dim=dim, seconds=took)


def _timed(
    context: Context,
    key: str,
    steps: dict[str, Callable[[], Any]],
    flops: float,
    seconds: float,
) -> dict[str, float]:
    """Times, rates and ratios to both products as figures; the medians."""
    rows = rounds(context, steps, seconds)
    middle = {name: row["median"] for name, row in rows.items()}
    shape, _, dim = key.partition(".")
    for name, row in rows.items():
        context.number(
            f"{shape}.ms.{name}.{dim}", 1e3 * row["median"], "ms",
            p20=1e3 * row["p20"], p80=1e3 * row["p80"], rounds=len(row["all"]),
            product_flop_per_s=flops / row["median"],
        )  # fmt: skip
        for yardstick in ("product_bf16", "product_fp32"):
            if name != yardstick:
                ratio = row["median"] / middle[yardstick]
                context.number(f"{shape}.{name}/{yardstick}.{dim}", ratio, "ratio")
    return middle


def inside(context: Context, name: str, call: Callable[[], Any], dim: int) -> None:
    """Every kernel of a call, and the time of the host and of the gaps between kernels.

    Args:
        context: of the part.
        name: of the call in the figures.
        call: without arguments.
        dim: D, in the figures.
    """
    host = host_seconds(context, call)
    found = context.device.kernels(call)
    context.number(f"head.host_ms.{name}.{dim}", 1e3 * host, "ms")
    if found is None:
        return
    rows = found.pop("kernels")
    context.say("kernels", function=name, dim=dim, kernels=rows[:60], **found)
    context.number(f"head.launches.{name}.{dim}", found["launches"])
    context.number(f"head.gap_ms.{name}.{dim}", found["span_ms"] - found["busy_ms"], "ms")
    softmax = ("fold", "online_softmax")  # names of its kernels
    taken = [row["ms"] for row in rows if any(name in row["name"] for name in softmax)]
    if taken:
        context.number(f"head.fold_ms.{name}.{dim}", sum(taken), "ms")


def _overlaps(context: Context, calls: HeadCalls, dim: int) -> None:
    """The same calls with the switch on and off, in turns."""

    def switched(call: Callable[[], Any], on: bool) -> Callable[[], Any]:
        def go() -> Any:
            with overlap(on):
                return call()

        return go

    with overlap(True) as there:
        if not there:
            context.say("left_out", step="overlap", why="the library has no such switch")
            return
    steps = {
        f"{name} {'on' if on else 'off'}": switched(call, on)
        for name, call in (("forward", calls.forward), ("both", calls.both))
        for on in (True, False)
    }
    rows = rounds(context, steps, 2.0)
    for name in ("forward", "both"):
        on, off = (rows[f"{name} {way}"]["median"] for way in ("on", "off"))
        context.number(f"head.overlap_gain.{name}.{dim}", 1 - on / off, "of the time",
                       on_ms=1e3 * on, off_ms=1e3 * off)  # fmt: skip


def _tile_shapes(context: Context, calls: HeadCalls, dim: int) -> None:
    """Forward that saves top entries in tiles of other sizes, in turns; results must be equal."""
    shapes = ((4, 128), (8, 256)) if context.rehearse else SHAPES
    usual = calls.forward_lists().logprobs.detach()

    def shaped(rows: int, ids: int) -> Callable[[], Any]:
        def go() -> Any:
            with tile_of(rows, ids):
                return calls.forward_lists()

        return go

    with tile_of(*shapes[0]) as there:
        if not there:
            context.say("left_out", step="tiles", why="the library has no function tile_shape")
            return
    steps = {}
    for rows, ids in shapes:
        step = shaped(rows, ids)
        out = context.attempt(f"tile {rows} x {ids}", step)
        if out is None:
            continue
        gap = float((out.logprobs.detach() - usual).abs().max())
        if context.check(f"tile {rows} x {ids}, D {dim}", gap < 1e-3, largest_difference=gap):
            steps[f"{rows}x{ids}"] = step
        del out
    taken = rounds(context, steps, 3.0) if steps else {}
    usual_size = "x".join(map(str, shapes[0]))
    for name, row in taken.items():
        context.number(f"head.tile_ms.{name}.{dim}", 1e3 * row["median"], "ms")
        if usual_size in taken:
            ratio = row["median"] / taken[usual_size]["median"]
            context.number(f"head.tile_ratio.{name}.{dim}", ratio, "ratio")


def _few_rows(context: Context, shape: tuple[int, int, int]) -> None:
    """Short batches, whose tiles are wider, and a softcap; figures end with the tokens."""
    calls = HeadCalls(context, *shape, 0.5)

    def softcapped() -> Any:
        with torch.no_grad():
            return linear_logprob(
                calls.hidden, calls.weight, calls.targets, softcap=30.0, backend=calls.backend
            )

    steps = {
        **calls.products(), "forward": calls.forward, "both": calls.both, "softcap": softcapped
    }  # fmt: skip
    _timed(context, f"few.{shape[0]}", steps, calls.flops, 1.0)


def _worst_case(context: Context, shape: tuple[int, int, int]) -> None:
    """Uniform softmaxes: every token is recomputed."""
    calls = HeadCalls(context, *shape, "uniform")
    steps = {**calls.products(), "both": calls.both}
    _timed(context, f"worst.{shape[1]}", steps, calls.flops, 3.0)
    context.attempt("kernels of the worst case", lambda: context.say(
        "kernels", function="worst", dim=shape[1], **(context.device.kernels(calls.both) or {})
    ))  # fmt: skip
