"""Time of the head: forward, forward that saves top entries, backward, all tokens recomputed.

Bare products with bf16 and with fp32 results run in the same rounds; ratios are to them. The
profiler gives the time of each kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.context import Context
from bench.gpu.head_calls import HeadCalls
from bench.gpu.timing import host_seconds, rounds
from siri_kernels import linear_logprob, take_backward_stats


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
    """Times in turns, then memory, launches and kernels."""
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
