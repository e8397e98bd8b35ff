"""The fused product and online softmax: values, repeats and time at the head's sizes.

``linear_logprob`` uses it for every call that it supports while its switch ``ENABLED`` is true.
"forward" saves top entries for backward, "score" does not. "multicast": two programs share each
tile of the weight, where this Triton can.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.context import Context
from bench.gpu.head_calls import HeadCalls, switched
from bench.gpu.parts import head, repeats, values
from bench.gpu.parts.values import Case
from bench.gpu.plan import FUSED
from bench.gpu.timing import rounds


def run(context: Context) -> None:
    """The checks of the other parts, with the fused kernel."""
    fused = importlib.import_module(FUSED)
    if not hasattr(fused, "ENABLED"):
        context.say("missing", packages=[FUSED], why=f"{FUSED} has no switch ENABLED")
        return
    fused.ENABLED = True
    first = Case(20, 32, 500) if context.rehearse else Case(9000, 1536, 151_936)
    context.attempt(f"fused {first.name}", lambda: values.compare(context, first, "fused.values"))
    context.device.free()
    multicast = _can_multicast(fused)
    if multicast:
        with switched(fused, "MULTICAST", True):
            name = f"multicast {first.name}"
            context.attempt(name, lambda: values.compare(context, first, "fused.multicast values"))
        context.device.free()
    else:
        context.say("left_out", step="multicast", why="it needs Triton 3.8 or newer")
    shape = (20, 32, 500) if context.rehearse else (16_384, 1536, 151_936)
    name = f"{'x'.join(map(str, shape))} fused"
    context.attempt(name, lambda: repeats.repeated(context, shape, 1e-2, name))
    context.device.free()
    if multicast:
        with switched(fused, "MULTICAST", True):
            context.attempt(
                f"{name} multicast",
                lambda: repeats.repeated(context, shape, 1e-2, f"{name} multicast"),
            )
        context.device.free()
    for dim in (32,) if context.rehearse else (1536, 3584):
        if context.in_time(f"time {dim}", 12):
            context.attempt(f"time {dim}", lambda d=dim: _timed(context, fused, shape, d))
            context.device.free()
    dim = 32 if context.rehearse else 1536
    for option in ("temperature of each token", "bias", "softcap"):
        if context.in_time(f"time with a {option}", 8):
            context.attempt(
                f"time with a {option}", lambda o=option: _timed(context, fused, shape, dim, o)
            )
            context.device.free()


def _options(context: Context, option: str, tokens: int, vocab: int) -> dict[str, Any]:
    """Arguments of ``linear_logprob`` for an option of the kernels, drawn."""
    generator = torch.Generator(context.device.device).manual_seed(5)
    if option == "softcap":
        return {"softcap": 50.0}
    size = vocab if option == "bias" else tokens
    drawn = torch.randn(size, generator=generator, device=context.device.device)
    if option == "bias":
        return {"bias": (drawn / 10).to(context.dtype())}
    return {"temperature": 1.0 + 0.01 * drawn.clamp(-3, 3)} if option else {}


def _timed(
    context: Context, fused: Any, shape: tuple[int, int, int], dim: int, option: str = ""
) -> None:
    """Fused and not, in turns with the bare products."""
    given = _options(context, option, shape[0], shape[2])
    calls = HeadCalls(context, shape[0], dim, shape[2], 0.5, **given)
    where = f"{dim}.{option}" if option else str(dim)

    def one_way(call: Callable[[], Any], on: bool, multicast: bool = False) -> Callable[[], Any]:
        def go() -> Any:
            with switched(fused, "ENABLED", on), switched(fused, "MULTICAST", multicast):
                return call()

        return go

    steps = dict(calls.products())
    ways = {"fused": (True, False), "apart": (False, False)}
    if _can_multicast(fused):
        ways["multicast"] = (True, True)
    for label, way in ways.items():
        steps[f"score {label}"] = one_way(calls.forward, *way)
        steps[f"forward {label}"] = one_way(calls.forward_lists, *way)
        steps[f"both {label}"] = one_way(calls.both, *way)
    seconds = 1.5 if option else 4.0
    middle = {name: row["median"] for name, row in rounds(context, steps, seconds).items()}
    for name, seconds in middle.items():
        context.number(f"fused.ms.{name}.{where}", 1e3 * seconds, "ms")
        for yardstick in ("product_bf16", "product_fp32"):
            context.number(
                f"fused.{name}/{yardstick}.{where}", seconds / middle[yardstick], "ratio"
            )
    if not option:
        head.inside(context, "fused", one_way(calls.both, True), dim)


def _can_multicast(fused: Any) -> bool:
    """Whether two programs can share tiles of the weight here."""
    return bool(getattr(getattr(fused, "fused_kernels", None), "CLUSTERS", False))
