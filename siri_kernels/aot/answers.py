"""Answers to what the library's host code asks of a GPU, for one that is not there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from siri_kernels.aot.parts import Part

MULTIPROCESSORS = 132


def answers_of(part: Part) -> Iterator[tuple[Any, str, Any]]:
    """Objects, their attributes' names, and what stands there while ``part`` is the current GPU.

    Args:
        part: the GPU generation.
    """
    amd = part.backend == "hip"
    if amd:
        capability = (9, 4)  # of gfx942; what asks for it asks for HIP before
    else:
        assert isinstance(part.arch, int)
        capability = divmod(part.arch, 10)
    properties = SimpleNamespace(gcnArchName=str(part.arch), multi_processor_count=MULTIPROCESSORS)
    yield torch.version, "hip", "ahead of time" if amd else None
    yield torch.cuda, "get_device_capability", lambda *_: capability
    yield torch.cuda, "get_device_properties", lambda *_: properties
    package = "siri_kernels.linear_logprob.screen_triton"
    forward, rows, tiles = (
        importlib.import_module(f"{package}.{name}") for name in ("forward", "rows", "tiles")
    )
    yield rows, "WARPS", 4 if amd else 8
    # Answers are kept for each device; all parts' are called the same.
    yield forward, "tile_of", tiles.tile_of.__wrapped__
    yield forward, "multiprocessors", lambda _: MULTIPROCESSORS
