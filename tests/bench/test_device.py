"""The GPU's clock on a machine without one: torch.cuda replaced by a record of the calls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bench import device
from bench.device import Cuda


class Event:
    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing
        self.at = None

    def record(self):
        self.at = Event.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def cuda(monkeypatch):
    real = torch.device
    monkeypatch.setattr(device.torch, "device", lambda name: real("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(Event, "now", 0.0)
    return Cuda()


def test_cold_and_hot(cuda):
    durations = iter([30.0, 20.0])
    flushed = cuda._flush

    def step():
        Event.now += next(durations)

    flushed.fill_(1)
    assert cuda.seconds(step) == {"cold": 0.03, "hot": 0.02}
    assert not flushed.any(), "the L2 cache was not flushed"
    assert cuda.clock in cuda.clocks


def test_memory_is_what_came_on_top(cuda):
    assert cuda.peak(lambda: None) == 250
    cuda.free()


def test_launches_are_those_of_the_device(cuda, monkeypatch):
    kinds = torch.autograd.DeviceType

    class Trace:
        def __init__(self, activities):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            return [SimpleNamespace(device_type=k) for k in (kinds.CUDA, kinds.CPU, kinds.CUDA)]

    monkeypatch.setattr(torch.profiler, "profile", Trace)
    assert cuda.launches(lambda: None) == 2


def test_time_of_every_kernel(cuda, monkeypatch):
    kinds = torch.autograd.DeviceType

    class Trace:
        def __init__(self, activities):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            def event(name, start, end, kind=kinds.CUDA):
                times = SimpleNamespace(start=start, end=end)
                return SimpleNamespace(name=name, time_range=times, device_type=kind)

            return [event("fold", 0, 30), event("mm", 10, 50), event("fold", 60, 70),
                    event("cudaLaunchKernel", 0, 500, kinds.CPU)]  # fmt: skip

    monkeypatch.setattr(torch.profiler, "profile", Trace)
    calls = []
    got = cuda.kernels(lambda: calls.append(1))
    assert len(calls) == 2, "the first call compiles and is not looked at"
    assert got["kernels"] == [{"name": "fold", "count": 2, "ms": 0.04},
                              {"name": "mm", "count": 1, "ms": 0.04}]  # fmt: skip
    assert (got["launches"], got["busy_ms"], got["span_ms"]) == (3, 0.06, 0.07)
    assert got["host_ms"] >= 0


def test_a_gpu_that_answers_no_more_is_told_from_one_that_is_full(cuda, monkeypatch):
    cuda.recover()

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit, match="illegal memory access"):
        cuda.recover()


def test_no_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no GPU here"):
        Cuda()
