"""The same call repeated: results, saved top entries and gradients must not differ in a bit.

Half of the calls run beside other work on another stream, and free memory is full of NaN. That
shows results that depend on the order of execution and reads of memory that was not written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.gpu.context import Context
from bench.gpu.head_calls import HeadCalls
from siri_kernels import linear_logprob


def run(context: Context) -> None:
    """Full size first, then a smaller width with more tokens than a block."""
    shapes = [(16_384, 1536, 151_936), (9000, 896, 151_936)]
    if context.rehearse:
        shapes = [(8, 32, 8200)]
    for shape in shapes:
        for tail in (1e-2, 0.0):
            name = f"{'x'.join(map(str, shape))} {'lists' if tail else 'dense'}"
            if context.in_time(name, 8):
                context.attempt(name, lambda s=shape, t=tail, n=name: repeated(context, s, t, n))
                context.device.free()


def _saved(value: Tensor) -> list[Tensor]:
    """The tensors that autograd saves for ``linear_logprob``: statistics and top entries."""
    found, queue = [], [value.grad_fn]
    for _ in range(20):
        if not queue:
            break
        node: Any = queue.pop(0)
        if node is None:
            continue
        if "LinearLogprob" in type(node).__name__:
            found = [t for t in node.saved_tensors if t is not None]
            break
        queue += [after for after, _ in node.next_functions]
    return found


def _defined(tensors: list[Tensor]) -> list[Tensor]:
    """The same with zeros where no top entry was written.

    Top entries are ids [T, K] int32, logits [T, K] and their count [T], in this order.
    """
    result = list(tensors)
    for place, ids in enumerate(tensors[:-2]):
        logits, count = tensors[place + 1 : place + 3]
        if ids.dtype == torch.int32 and ids.dim() == 2 and logits.shape == ids.shape:
            filled = torch.arange(ids.shape[1], device=ids.device) < count[:, None]
            result[place], result[place + 1] = ids * filled, logits.where(filled, 0)
    return result


def repeated(context: Context, shape: tuple[int, int, int], tail: float, name: str) -> None:
    """30 calls compared with the first.

    Args:
        context: of the part.
        shape: T, D, V.
        tail: of ``linear_logprob``.
        name: of the check and of the figure.
    """
    calls = HeadCalls(context, *shape, 0.5)
    count, done = 4 if context.rehearse else 30, 0
    first: dict[str, list[Tensor]] = {}
    differing = dict.fromkeys(("results", "saved", "gradients"), 0)
    examples: list[dict[str, Any]] = []
    for number in range(count):
        if context.left() < 3:
            break
        _poison(context, shape)
        if number % 2:
            context.device.noise()
        out = linear_logprob(
            calls.hidden, calls.weight, calls.targets, tail=tail, backend=calls.backend
        )
        kept = _defined([t for t in _saved(out.logprobs) if t is not calls.weight])
        wanted, upstream = (calls.hidden, calls.weight), (calls.upstream, 0.1 * calls.upstream)
        got = {
            "results": [t.detach() for t in out],
            "saved": kept,
            "gradients": list(torch.autograd.grad(tuple(out), wanted, upstream)),
        }
        done += 1
        if not first:
            first = {key: [t.clone() for t in tensors] for key, tensors in got.items()}
            continue
        for key, tensors in got.items():
            wrong = [
                place
                for place, (a, b) in enumerate(zip(first[key], tensors, strict=True))
                if not torch.equal(a, b)
            ]
            differing[key] += bool(wrong)
            if wrong and len(examples) < 6:
                a, b = first[key][wrong[0]], tensors[wrong[0]]
                rows = (a != b).reshape(len(a), -1).any(1).nonzero()[:, 0]
                examples.append({"repeat": number, "of": key, "which": wrong,
                                 "rows": rows[:8].tolist(), "count": len(rows)})  # fmt: skip
    sparse = any(t.dtype == torch.int32 and t.dim() == 2 for t in first.get("saved", []))
    context.check(
        f"repeats {name}", not any(differing.values()), repeats=done, differing=differing,
        lists_seen=sparse, examples=examples,
    )  # fmt: skip
    context.number(f"repeats.differing.{name}", sum(differing.values()), f"of {done}")


def _poison(context: Context, shape: tuple[int, int, int]) -> None:
    """Fill free memory of the allocator with NaN, so that new buffers hold no zeros."""
    if context.device.kind == "cpu":
        return
    tokens, _, vocabulary = shape
    for size in (2**26, tokens * 1024, vocabulary * 256, 2**20):
        for _ in range(2):
            torch.full((size,), float("nan"), device=context.device.device)
