"""From ``linear_logprob`` to a kernel: few functions, one carrier, as docs/architecture.md says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from siri_kernels import linear_logprob
from siri_kernels.aot.record import FakeGPU
from siri_kernels.linear_logprob.call import HeadCall

from .interpreter import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="follows launches of compiled kernels")
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
PACKAGE = "siri_kernels.linear_logprob."
MOST = 4  # functions between the API, or autograd's engine, and a launch


def stack():
    """Frames of the package from the outermost to the launch."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(PACKAGE):
            frames.insert(0, frame)
        frame = frame.f_back
    return frames


def holds_call(frame):
    """Whether a function has the carrier: as a variable, or in its own object."""
    values = list(frame.f_locals.values())
    return any(
        isinstance(v, HeadCall) or isinstance(getattr(v, "call", None), HeadCall) for v in values
    )


class Kernel:
    """In the place of the fused kernel."""

    def __init__(self, launched):
        self.launched = launched

    def __getitem__(self, grid):
        return self.launched


def follow(fused_kernel=False, counts=(100, 70001), bias=True):
    """The names of the functions on the way to each launch of a call, and who lacks the carrier."""
    from triton.runtime.jit import JITFunction

    from siri_kernels.linear_logprob.triton import fused

    ways, without = [], []

    def launched(*args, **kwargs):
        frames = stack()
        names = [(f.f_globals["__name__"][len(PACKAGE) :], f.f_code.co_name) for f in frames]
        ways.append(tuple(names))
        first = next(i for i, (module, _) in enumerate(names) if module == "autograd")
        without.extend(
            n for f, n in zip(frames[first:], names[first:], strict=True) if not holds_call(f)
        )

    gpu = FakeGPU()
    gpu.counts = list(counts)
    with gpu.active(), mock.patch.object(JITFunction, "run", launched):
        with (
            mock.patch.object(fused, "takes", lambda call: fused_kernel),
            mock.patch.object(fused, "multiprocessors", lambda device: 132),
            mock.patch.object(fused, "operands", lambda *_: (Kernel(launched), (), {})),
        ):
            tensors = [
                torch.empty(shape, dtype=torch.bfloat16, device="cuda").requires_grad_()
                for shape in ((512, 64), (16384, 64), (16384,))
            ]
            targets = torch.empty(512, dtype=torch.int64, device="cuda")
            linear_logprob(
                *tensors[:2], targets, bias=tensors[2] if bias else None, temperature=0.7
            )
            gpu.backward()
    return ways, without


def written(name):
    """A path of the page, as :func:`follow` has it."""
    block = re.search(rf"```path {name}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block, f"docs/architecture.md has no path {name}"
    lines = [line.split("#")[0].strip() for line in block[1].splitlines() if line.strip()]
    modules = {
        str(path.relative_to(PAGE.parents[1] / "siri_kernels" / "linear_logprob").with_suffix(""))
        for path in (PAGE.parents[1] / "siri_kernels" / "linear_logprob").rglob("*.py")
    }
    found = []
    for line in lines:
        parts = line.split(".")
        size = max(n for n in range(1, len(parts)) if "/".join(parts[:n]) in modules)
        found.append((".".join(parts[:size]), parts[-1]))
    return tuple(found)


@pytest.mark.parametrize("counts", [(100, 70001), (0, 70001), (512, 0)])
@pytest.mark.parametrize("fused_kernel", [False, True])
def test_few_functions_and_one_carrier(fused_kernel, counts):
    ways, without = follow(fused_kernel, counts)
    forward = [way for way in ways if way[0] == ("api", "linear_logprob")]
    backward = [way for way in ways if way[0] == ("autograd", "backward")]
    assert forward and backward and len(forward) + len(backward) == len(ways)
    assert max(len(way) - 1 for way in forward) <= MOST, max(forward, key=len)
    assert max(len(way) for way in backward) <= MOST, max(backward, key=len)
    assert not without, "these compute without the carrier"


def test_the_page_has_the_paths():
    ways, _ = follow()
    fused_ways, _ = follow(fused_kernel=True)
    assert written("forward") in ways and written("backward") in ways
    assert written("fused") in fused_ways
