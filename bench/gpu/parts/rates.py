"""The rates of this GPU: copies, bare products, tiles whose logits stay in the L2 cache.

Ratios of the other parts are to these figures or to products timed in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.context import Context
from bench.gpu.environment import gpu_state
from bench.gpu.timing import medians

VOCABULARY = 151_936
# Tokens and vocabulary entries of a tile. The first is in use; the fp32 logits of the others are 16
# to 48 MiB, and an H100 has 50 MiB of L2, an H200 60.
TILES = (
    (8192, 4096), (16_384, 768), (16_384, 512), (8192, 1536), (8192, 1024), (8192, 512),
    (4096, 2048), (4096, 1024), (2048, 4096), (2048, 2048), (1024, 8192),
)  # fmt: skip


def run(context: Context) -> None:
    """The environment that torch reports, then the rates."""
    _facts(context)
    context.attempt("copy", lambda: _copies(context))
    context.attempt("addmm", lambda: _accumulation(context))
    for dim in (64, 128) if context.rehearse else (1536, 3584):
        context.attempt(f"products {dim}", lambda d=dim: _products(context, d))
        if context.in_time(f"tiles {dim}", 10):
            context.attempt(f"tiles {dim}", lambda d=dim: _tiles(context, d))
    context.say("clocks", when="after", **gpu_state())


def _facts(context: Context) -> None:
    """Device, versions and clocks."""
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if context.device.kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name, "processors": properties.multi_processor_count,
            "l2_mib": properties.L2_cache_size / 2**20, "cuda": torch.version.cuda,
            "memory_gib": properties.total_memory / 2**30,
            "capability": f"{properties.major}.{properties.minor}",
        }  # fmt: skip
    context.say("device", **found)
    context.say("clocks", when="before", **gpu_state())


def _copies(context: Context) -> None:
    """A large copy of random bytes: bytes read plus bytes written a second."""
    count = 2**17 if context.rehearse else 2**29
    a = torch.randint(-(2**62), 2**62, (count,), device=context.device.device)
    b = torch.empty_like(a)
    time = medians(context, {"copy": lambda: b.copy_(a), "fill": lambda: b.fill_(1)})
    context.number("rates.copy", 2 * a.nbytes / time["copy"], "B/s", bytes=2 * a.nbytes)
    context.number("rates.fill", a.nbytes / time["fill"], "B/s")


def _accumulation(context: Context) -> None:
    """Whether a 16-bit product can be added to an fp32 result in place, and its error."""
    n, k, m = (64, 32, 48) if context.rehearse else (4096, 8192, 1536)
    a = torch.randn(n, k, device=context.device.device, dtype=context.dtype())
    b = torch.randn(k, m, device=context.device.device, dtype=context.dtype())
    start = torch.randn(n, m, device=context.device.device)
    exact, refused = a.double() @ b.double(), False
    for name, add in (("mm", False), ("addmm", True)):
        out = start.clone()
        try:
            if add:
                torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
            else:
                torch.mm(a, b, out_dtype=torch.float32, out=out)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            context.say("refused", function=name, why=str(error)[:300])
            if context.device.kind == "cuda":
                context.number(f"rates.{name}_fp32", 0.0, "works")
            refused = True
            continue
        gap = (out.double() - exact - (start.double() if add else 0)).norm() / exact.norm()
        works = float(gap) < 1e-4
        context.number(f"rates.{name}_fp32", float(works), "works", relative_error=float(gap))
    if refused:
        return
    out = torch.zeros(n, m, device=context.device.device)
    time = medians(context, {
        "apart": lambda: out.add_(torch.mm(a, b, out_dtype=torch.float32)),
        "in_place": lambda: torch.addmm(out, a, b, out_dtype=torch.float32, out=out),
    })  # fmt: skip
    context.number("rates.addmm_over_mm_add", time["in_place"] / time["apart"], "ratio")


def _product_fp32(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b.T`` of 16-bit factors with fp32 results, as the head needs it."""
    if a.device.type == "cpu":  # no such product there
        return torch.mm(a.float(), b.float().t(), out=out)
    return torch.mm(a, b.t(), out_dtype=torch.float32, out=out)


def _products(context: Context, dim: int) -> None:
    """Bare products of the head's size with both dtypes of result."""
    device, vocabulary = context.device.device, 1024 if context.rehearse else VOCABULARY
    for rows in (32, 64) if context.rehearse else (8192, 16_384):
        a = torch.randn(rows, dim, device=device, dtype=context.dtype())
        b = torch.randn(vocabulary, dim, device=device, dtype=context.dtype())
        out16 = torch.empty(rows, vocabulary, device=device, dtype=context.dtype())
        out32 = torch.empty(rows, vocabulary, device=device)
        time = medians(
            context,
            {
                "bf16": lambda a=a, b=b, out=out16: torch.mm(a, b.t(), out=out),
                "fp32": lambda a=a, b=b, out=out32: _product_fp32(a, b, out),
            },
        )
        flops = 2.0 * rows * dim * vocabulary
        for name, seconds in time.items():
            key = f"rates.product_{name}.{rows}x{dim}"
            context.number(key, flops / seconds, "FLOP/s", seconds=seconds)
        del a, b, out16, out32
        context.device.free()


def _tiles(context: Context, dim: int) -> None:
    """All logits tile by tile, alone and read again once each, per size of tile.

    As CUDA graphs, so that the host's time is not measured; where there are none, launched one by
    one, and a line says so. The reading takes the largest of each row: as cheap as a pass over a
    tile can be.
    """
    device = context.device.device
    total, vocabulary = (64, 512) if context.rehearse else (16_384, 36_864)
    shapes = ((64, 64), (32, 128)) if context.rehearse else TILES
    a = torch.randn(total, dim, device=device, dtype=context.dtype())
    b = torch.randn(vocabulary, dim, device=device, dtype=context.dtype())
    flops, best, graphs = 2.0 * total * dim * vocabulary, {}, True
    for rows, ids in shapes:
        if not context.in_time(f"tile {rows} x {ids}", 5):
            break
        out, top = torch.empty(rows, ids, device=device), torch.empty(rows, device=device)

        def go(read: bool, rows: int = rows, ids: int = ids, out: Any = out, top: Any = top):
            for start in range(0, vocabulary // ids * ids, ids):
                for first in range(0, total, rows):
                    _product_fp32(a[first : first + rows], b[start : start + ids], out)
                    if read:
                        torch.amax(out, 1, out=top)

        steps: dict[str, Callable[[], Any]] = {
            "product": lambda go=go: go(False), "and_read": lambda go=go: go(True)
        }  # fmt: skip
        if graphs:
            try:
                steps = {name: context.device.graphed(step) for name, step in steps.items()}
            except RuntimeError as error:
                graphs = False
                context.say("note", text=f"no CUDA graphs, host time is in: {str(error)[:200]}")
        time = medians(context, steps, seconds=0.4)
        done = flops * (vocabulary // ids * ids) / vocabulary
        best[rows, ids] = done / time["and_read"]
        context.say(
            "tile", dim=dim, rows=rows, ids=ids, mib=out.nbytes / 2**20,
            product_flop_per_s=done / time["product"], and_read_flop_per_s=done / time["and_read"],
        )  # fmt: skip
        share = time["and_read"] / time["product"] - 1
        context.number(f"rates.read_share.{rows}x{ids}.{dim}", share, "of a product")
    if best:
        rows, ids = max(best, key=best.__getitem__)
        context.number(f"rates.best_tile.{dim}", best[rows, ids], "FLOP/s", rows=rows, ids=ids)
