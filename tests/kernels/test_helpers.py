"""What the other tests of this folder rely on."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from .helpers import unpoisoned


def fills():
    """Operators that an allocation starts beside itself, and what it holds."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        memory = torch.empty(1000)
    return [e.name for e in seen.events() if "fill" in e.name], memory


def test_uninitialised_memory_is_nan_but_not_where_launches_are_counted():
    names, memory = fills()
    assert names and memory.isnan().all()
    with unpoisoned():
        assert fills()[0] == []
    assert fills()[0] == names
