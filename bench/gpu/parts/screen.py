"""The screened head: errors against float64, repeats, and time beside the unscreened head.

A screen takes 8-bit integers or, where the GPU has them, 8-bit floats. The weight's copy is made
once a kind, before the times; what making it takes is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.context import Context
from bench.gpu.head_calls import HeadCalls
from bench.gpu.parts import head
from bench.gpu.timing import rounds
from siri_kernels import linear_logprob, release_screens, take_forward_stats
from siri_kernels.linear_logprob.screen import options

TOLERANCE = 1e-4
CHECKED = 512  # tokens that are compared with float64


def run(context: Context) -> None:
    """Both kinds of 8-bit numbers, widths of rows and of the softmax, fp32 weights."""
    if context.rehearse:  # where the interpreter takes seconds for a call
        options.LEAST_VOCABULARY = 500
    shape = (130, 32, 600) if context.rehearse else (16_384, 1536, 151_936)
    kinds = ["int8"]
    if _backend(context) == "triton" and (
        context.rehearse or torch.cuda.get_device_capability() >= (8, 9)
    ):
        kinds.append("fp8")
    timed = kinds[:1] if context.rehearse else kinds
    for kind in kinds:
        context.attempt(f"values {kind}", lambda k=kind: _values(context, shape, k))
        context.device.free()
    for dim in (32,) if context.rehearse else (1536, 3584):
        if context.in_time(f"time {dim}", 12):
            sized = (shape[0], dim, shape[2])
            context.attempt(f"time {dim}", lambda s=sized: _timed(context, s, 0.5, timed, ""))
            context.device.free()
    for softmax in () if context.rehearse else (1.5, "uniform"):
        if context.in_time(f"time at {softmax}", 8):
            context.attempt(
                f"time at {softmax}",
                lambda s=softmax: _timed(context, shape, s, ["int8"], f".{s}"),
            )
            context.device.free()
    if not context.rehearse and context.in_time("time of fp32", 10):
        few = (4096, *shape[1:])
        context.attempt(
            "time of fp32", lambda: _timed(context, few, 0.5, ["int8"], ".fp32", torch.float32)
        )
        context.device.free()
    release_screens()


def _values(context: Context, shape: tuple[int, int, int], kind: str) -> None:
    """Errors of screened log-probs beside their tolerance, and whether a call repeats."""
    calls = HeadCalls(context, *shape, 0.5)
    take_forward_stats()

    def screened() -> Any:
        with torch.no_grad():
            return linear_logprob(
                calls.hidden,
                calls.weight,
                calls.targets,
                screen=kind,
                logprob_tol=TOLERANCE,
                backend=_backend(context),
            )

    first, again = screened(), screened()
    stats = take_forward_stats()
    every = max(1, shape[0] // CHECKED)
    hidden = calls.hidden.detach()[::every].double()
    log = (hidden @ calls.weight.detach().double().t()).log_softmax(-1)
    exact = log.gather(1, calls.targets[::every, None])[:, 0]
    error = (first.logprobs[::every].double() - exact).abs()
    rounding = 1e-6 * (1 + exact.abs().max().item())
    wrong = int((error > TOLERANCE + rounding).sum())
    context.check(
        f"screened {kind}", wrong == 0 and bool(error.isfinite().all()), wrong=wrong,
        rms=error.square().mean().sqrt().item(), most=error.max().item(),
    )  # fmt: skip
    same = torch.equal(first.logprobs, again.logprobs) and torch.equal(first.entropy, again.entropy)
    context.check(f"screened {kind} repeats", same)
    if stats is not None:
        context.check(f"estimates {kind}", stats.estimate_failed == 0, stats=str(stats))
        context.number(f"screen.screened_frac.{kind}", stats.screened_frac)


def _backend(context: Context) -> str:
    return context.backend or "triton"


def _timed(
    context: Context, shape: tuple[int, int, int], softmax: float | str, kinds: list[str],
    label: str, dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Screened and not, in turns with the bare products.

    Args:
        context: of the part.
        shape: tokens, width, vocabulary.
        softmax: of the inputs.
        kinds: of screens.
        label: of the figures, behind the width.
        dtype: of the inputs; None: the part's.
    """
    calls, where = HeadCalls(context, *shape, softmax), f"{shape[1]}{label}"
    if dtype is not None:
        calls.hidden = calls.hidden.detach().to(dtype).requires_grad_()
        calls.weight = calls.weight.detach().to(dtype).requires_grad_()
    backend = _backend(context)

    def one_way(both: bool, **given: Any) -> Callable[[], Any]:
        def go() -> Any:
            with torch.set_grad_enabled(both):
                out = linear_logprob(
                    calls.hidden, calls.weight, calls.targets, backend=backend, **given
                )
            if both:
                wanted = (calls.hidden, calls.weight)
                return torch.autograd.grad(out.logprobs, wanted, calls.upstream)
            return out

        return go

    steps = dict(calls.products())
    if dtype is not None:
        steps = {"product_bf16": steps["product_bf16"]}  # in this dtype
    steps |= {"score": one_way(False), "both": one_way(True)}
    for kind in kinds:
        steps[f"score {kind}"] = one_way(False, screen=kind)
        steps[f"both {kind}"] = one_way(True, screen=kind)

        def anew(kind: str = kind) -> Any:
            release_screens()
            return one_way(False, screen=kind)()

        steps[f"score and copy {kind}"] = anew
    take_forward_stats()
    middle = {name: row["median"] for name, row in rounds(context, steps, 4.0).items()}
    stats = take_forward_stats()
    for name, seconds in middle.items():
        context.number(f"screen.ms.{name}.{where}", 1e3 * seconds, "ms")
        if name != "product_bf16":
            context.number(
                f"screen.{name}/product_bf16.{where}", seconds / middle["product_bf16"], "ratio"
            )
    for kind in kinds:
        for way in ("score", "both"):
            context.number(f"screen.gain.{way}.{kind}.{where}",
                           middle[way] / middle[f"{way} {kind}"], "ratio")  # fmt: skip
    if stats is not None:
        context.number(f"screen.screened_frac.{where}", stats.screened_frac)
    for kind in kinds if not label else ():
        head.inside(context, f"screened {kind}", one_way(False, screen=kind), shape[1])
