"""The fused gradient of recomputed tokens: its values, repeats, and the time of the worst case.

The kernel's own output is compared with float64 first, at sizes that grow, then the whole backward
pass. "fused" and "apart" differ in this kernel only: forward is the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from bench.gpu import oracle
from bench.gpu.context import Context
from bench.gpu.head_calls import HeadCalls, switched, unfused
from bench.gpu.parts import repeats, values
from bench.gpu.parts.values import Case
from bench.gpu.plan import FUSED_GRADIENT
from bench.gpu.timing import rounds
from bench.measure import distance

# Gradients held at a time in the timed comparison, in MiB.
HELD = (132, 288, 576)


def _switched(on: bool) -> AbstractContextManager[None]:
    """The kernel for every call that it can take, or for none."""
    return switched(importlib.import_module(FUSED_GRADIENT), "ENABLED", on)


def run(context: Context) -> None:
    """Values of the kernel, of the backward pass, repeats, time."""
    tiny = [Case(5, 32, 300), Case(5, 32, 300, everything=True)]
    cases = [
        Case(200, 192, 1000),
        Case(300, 896, 3001, everything=True),
        Case(300, 896, 3001, "float16", everything=True),
        Case(1111, 896, 50_001, everything=True),
        Case(16_384, 1536, values.VOCABULARY),
    ]
    for case in tiny if context.rehearse else cases:
        context.say("begins", case=case.name)
        context.attempt(f"dz {case.name}", lambda c=case: check_gradients(context, c))
        context.device.free()
    if context.failures:
        context.say("left_out", step="time", why="the kernel's values are wrong")
        return
    with _switched(True):
        whole = tiny[1] if context.rehearse else Case(9000, 1536, values.VOCABULARY)
        if context.in_time(whole.name, 15):
            context.attempt(
                whole.name, lambda: values.compare(context, whole, "fused.gradient.values")
            )
            context.device.free()
        shape = (20, 32, 500) if context.rehearse else (4096, 1536, 151_936)
        name = f"{'x'.join(map(str, shape))} fused gradient"
        context.attempt(name, lambda: repeats.repeated(context, shape, 0.0, name))
        context.device.free()
    tokens, vocabulary = (20, 500) if context.rehearse else (16_384, 151_936)
    for dim in (32,) if context.rehearse else (1536, 3584):
        if context.in_time(f"worst case {dim}", 12):
            shape = (tokens, dim, vocabulary)
            context.attempt(f"worst case {dim}", lambda s=shape: _worst_case(context, s))
            context.device.free()


def check_gradients(context: Context, case: Case) -> None:
    """The gradient of the raw logits from either form against float64.

    The measure is the error of float64's gradient rounded to the form's 16 bits.

    Args:
        context: of the part.
        case: what is compared.
    """
    if context.backend == "portable":
        context.say("left_out", step=case.name, why="Triton's interpreter does not run here")
        return
    from siri_kernels.linear_logprob.call import HeadCall
    from siri_kernels.linear_logprob.triton import arguments, dense_backward, forward
    from siri_kernels.linear_logprob.types import LogitRule

    hidden, weight, targets, options = values._inputs(context, case)
    targets = targets.clamp(min=0)
    generator = torch.Generator(hidden.device).manual_seed(6)
    normal = torch.randn(2, case.tokens, generator=generator, device=hidden.device)
    upstream = (normal[0], 0.1 * normal[1] if case.everything else None)
    rule = LogitRule(options.temperature, options.softcap)
    call = arguments.prepared(
        HeadCall(hidden, weight, targets, options.bias, rule, -100, hidden.dtype, 0.0, 0, True)
    )
    with unfused(), torch.no_grad():
        stats, _ = forward.forward(call)
    by_row = dense_backward.kernel_rule(stats, *upstream, call.rule.temperature)
    factor = dense_backward.fp16_factor(call, by_row) if hidden.is_cuda else None
    forms: dict[str, Any] = {"apart": dense_backward.LogitGradients}
    module = importlib.import_module(FUSED_GRADIENT)
    why = module.refusal(call)
    if why is None:
        forms["fused"] = module.FusedGradients
    elif not context.rehearse:
        context.check(f"dz {case.name} fused", False, why=why)
    made = {}
    for name, form in forms.items():
        made[name] = _whole(form(call, by_row, factor, 2**25 // case.dim), case, factor)
        context.device.synchronize()
        context.say("made", form=name, case=case.name)
    exact = _exact(hidden, weight, targets, upstream, options)
    sums = {name: [0.0, 0.0] for name in (*made, "rounded")}
    size = worst = 0.0
    equal, rows_seen, blocks = 0, 0, {name: [] for name in made}
    for rows, want in exact:
        rounded = want if factor is None else want * factor
        rounded = rounded.to(hidden.dtype).double() / (1 if factor is None else factor)
        size += float(want.square().sum())
        sums["rounded"][0] += float((rounded - want).square().sum())
        for name, whole in made.items():
            got = whole[rows].double() / (1 if factor is None else factor)
            sums[name][0] += float((got - want).square().sum())
            blocks[name].append(distance(got, want)["relative"])
            if name == "fused":
                worst = max(worst, float((got - want).abs().max()))
        if "fused" in made:
            equal += int((made["fused"][rows] == made["apart"][rows]).sum())
            rows_seen += len(want)
    errors = {name: (total[0] / size) ** 0.5 for name, total in sums.items()}
    for name in made:
        # Logits are products in fp32, so their rounding adds little to that to 16 bits.
        right = errors[name] <= 1.1 * errors["rounded"] + 1e-5
        context.check(f"dz {case.name} {name}", right, errors=errors, blocks=blocks[name][:32])
    if "fused" in made:
        context.number(f"fused.gradient.dz.{case.name}", errors["fused"] / errors["rounded"],
                       "of the error of rounding", largest=worst,
                       equal=equal / (rows_seen * case.vocabulary))  # fmt: skip


def _whole(gradients: Any, case: Case, factor: Tensor | None) -> Tensor:
    """[T, V] what a form gives, tile by tile."""
    pieces: list[Tensor] = []
    for start in gradients.starts():
        tile = gradients.tile(start)
        columns = [
            gradients.gradient(block, start, tile).clone() for block in range(len(gradients.tokens))
        ]
        pieces.append(torch.cat(columns))
    return torch.cat(pieces, 1)


def _exact(
    hidden: Tensor, weight: Tensor, targets: Tensor, upstream: tuple[Tensor, Tensor | None],
    options: oracle.Options,
) -> Iterator[tuple[slice, Tensor]]:  # fmt: skip
    """Float64's gradient of the raw logits, some tokens at a time."""
    wide = weight.double()
    for start in range(0, len(hidden), max(1, oracle.CHUNK_BYTES // (8 * len(weight)))):
        rows = slice(start, start + max(1, oracle.CHUNK_BYTES // (8 * len(weight))))
        raw = (hidden[rows].double() @ wide.T).requires_grad_()
        log = options.logits(raw, rows).log_softmax(-1)
        loss = (log.gather(1, targets[rows, None])[:, 0] * upstream[0][rows]).sum()
        if upstream[1] is not None:
            loss = loss - ((log.exp() * log).sum(-1) * upstream[1][rows]).sum()
        yield rows, torch.autograd.grad(loss, raw)[0]


def _worst_case(context: Context, shape: tuple[int, int, int]) -> None:
    """Every token recomputed: both forms in turns with the bare products, and their kernels."""
    calls, dim = HeadCalls(context, *shape, "uniform"), shape[1]
    module = importlib.import_module(FUSED_GRADIENT)

    def with_switch(on: bool, held: int | None = None, tail: float = 0.0) -> Callable[[], Any]:
        def go() -> Any:
            before = module.GRADIENTS
            module.GRADIENTS = before if held is None else held * 2**19
            try:
                with _switched(on):
                    return calls.both(tail)
            finally:
                module.GRADIENTS = before

        return go

    steps = {
        **calls.products(), "forward": calls.forward,
        "worst fused": with_switch(True), "worst apart": with_switch(False),
        "worst with top entries fused": with_switch(True, tail=1e-2),
        **{f"worst fused {held} MiB": with_switch(True, held) for held in HELD},
    }  # fmt: skip
    middle = {name: row["median"] for name, row in rounds(context, steps, 5.0).items()}
    for name, seconds in middle.items():
        context.number(f"fused.ms.{name}.{dim}", 1e3 * seconds, "ms")
        ratio = seconds / middle["product_bf16"]
        context.number(f"fused.{name}/product_bf16.{dim}", ratio, "ratio")
    for name in ("worst fused", "worst apart"):
        found = context.device.kernels(steps[name]) or {}
        context.say("kernels", function=name, dim=dim, **found)
        peak = context.device.peak(steps[name]) - calls.returned
        context.number(f"fused.peak_mib.{name}.{dim}", max(0, peak) / 2**20, "MiB")
