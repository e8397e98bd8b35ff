"""Time, memory and launches of a call, on a CPU and on a GPU behind one interface."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from bench.memory import allocated_peak

Step = Callable[[], Any]


class Timer(Protocol):
    """Takes the time of a call by one or more clocks."""

    clocks: tuple[str, ...]

    def seconds(self, step: Step) -> dict[str, float]:
        """Seconds of one call, by clock."""


class Wall:
    """Wall time until all work of a call is done: for whole training steps, which run once."""

    clocks: tuple[str, ...] = ("wall",)

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"

    def seconds(self, step: Step) -> dict[str, float]:
        """One call."""
        self._wait()
        start = time.perf_counter()
        step()
        self._wait()
        return {"wall": time.perf_counter() - start}

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()


class Cpu:
    """Wall time and time of the process; memory from PyTorch's allocator.

    With one thread the tables use the process's time (``clock``), which other work on the machine
    lengthens least. It includes threads that wait for each other, so with more threads the tables
    use wall time.
    """

    kind = "cpu"
    device = torch.device("cpu")
    clocks: tuple[str, ...] = ("cold", "process")

    def __init__(self, threads: int = 1) -> None:
        self.clock = "process" if threads == 1 else "cold"
        self.sizes = {"copy": 2**27, "product": 2048}
        self.dtype = torch.float32

    def seconds(self, step: Step) -> dict[str, float]:
        """One call."""
        start, process = time.perf_counter(), time.process_time()
        step()
        return {
            "cold": time.perf_counter() - start,
            "process": time.process_time() - process,
        }

    def peak(self, step: Step) -> int:
        """Most bytes alive at once beyond what was there before the call."""
        return allocated_peak(step)

    def launches(self, step: Step) -> int | None:
        """Nothing is launched on a CPU."""
        return None

    def free(self) -> None:
        """Release memory that nothing uses."""
        gc.collect()

    def synchronize(self) -> None:
        """Nothing to wait for on a CPU."""

    def recover(self) -> None:
        """After an exception: release memory."""
        self.free()

    def kernels(self, step: Step) -> dict[str, Any] | None:
        """Nothing is launched on a CPU."""
        step()
        return None

    def graphed(self, step: Step) -> Step:
        """The step itself: there are no launches to save."""
        return step

    def noise(self) -> None:
        """Do nothing: a CPU has no streams."""


class Cuda:
    """Time between events, with the L2 cache flushed before and not; memory of its allocator.

    Raises:
        SystemExit: there is no GPU.
    """

    kind = "cuda"
    clocks: tuple[str, ...] = ("cold", "hot")
    clock = "cold"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("bench: no GPU here; without --device cuda it measures on the CPU")
        self.device = torch.device("cuda")
        self.sizes = {"copy": 2**31, "product": 8192}
        self.dtype = torch.bfloat16
        self._flush = torch.empty(2**28, dtype=torch.uint8, device=self.device)

    def seconds(self, step: Step) -> dict[str, float]:
        """One call after a flush of the L2 cache, and one right after that."""
        self._flush.zero_()
        return {"cold": self._between(step), "hot": self._between(step)}

    def _between(self, step: Step) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def peak(self, step: Step) -> int:
        """Most bytes of the allocator beyond what was there before the call."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def launches(self, step: Step) -> int | None:
        """Kernels, copies and fills that one call starts."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
        return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in trace.events())

    def free(self) -> None:
        """Release memory that nothing uses."""
        gc.collect()
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for all launched work; errors of kernels are raised here."""
        torch.cuda.synchronize()

    def recover(self) -> None:
        """After an exception: release memory.

        Raises:
            SystemExit: this process can no longer use the GPU (after an illegal access, say).
        """
        try:
            torch.cuda.synchronize()
            self.free()
        except Exception as error:  # of several classes, by version of torch
            raise SystemExit(f"the GPU is lost to this process: {error}") from None

    def kernels(self, step: Step) -> dict[str, Any] | None:
        """Time of every kernel, copy and fill of one call, by PyTorch's profiler.

        Returns:
            ``kernels``: name, count and total ms, the longest first; ``launches``; ``busy_ms``, in
            which at least one was running; ``span_ms`` from the first's start to the last's end;
            ``host_ms``, until the call returned, with the profiler's own work in it.
        """
        from torch.profiler import ProfilerActivity, profile

        step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            started = time.perf_counter()
            step()
            host = time.perf_counter() - started
            torch.cuda.synchronize()
        kind = torch.autograd.DeviceType.CUDA
        found = [e for e in trace.events() if e.device_type == kind]
        return {
            **spans([(e.name, e.time_range.start, e.time_range.end) for e in found]),
            "host_ms": host * 1e3,
        }

    def graphed(self, step: Step) -> Step:
        """The step as a CUDA graph, so that its launches cost the host nothing."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def noise(self) -> None:
        """Launch work on another stream, which runs beside what is launched next."""
        if not hasattr(self, "_noise"):
            self._noise = torch.cuda.Stream()
            self._factor = torch.randn(4096, 4096, device=self.device, dtype=self.dtype)
            torch.cuda.synchronize()
        with torch.cuda.stream(self._noise):
            for _ in range(50):  # about 10 ms alone
                self._factor = (self._factor @ self._factor).clamp_(-1, 1)


def spans(events: list[tuple[str, float, float]]) -> dict[str, Any]:
    """The result of :meth:`Cuda.kernels`, without ``host_ms``, from (name, start, end) in us."""
    by_name: dict[str, list[float]] = {}
    for name, start, end in events:
        by_name.setdefault(name, []).append(end - start)
    busy, reached = 0.0, float("-inf")
    for _, start, end in sorted(events, key=lambda event: event[1]):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    rows = [
        {"name": name[:120], "count": len(times), "ms": sum(times) / 1e3}
        for name, times in by_name.items()
    ]
    first = min((start for _, start, _ in events), default=0.0)
    return {
        "kernels": sorted(rows, key=lambda row: -row["ms"]),
        "launches": len(events),
        "busy_ms": busy / 1e3,
        "span_ms": max(0.0, reached - first) / 1e3 if events else 0.0,
    }


Device = Cpu | Cuda


def rates(device: Device, rounds: int = 7) -> dict[str, float]:
    """Measured rates of this device: bytes/s of a copy, flop/s of a large product."""
    count = device.sizes["copy"]
    a = torch.randint(127, (count,), dtype=torch.uint8, device=device.device)
    b = torch.empty_like(a)
    n = device.sizes["product"]
    x, y = (torch.randn(n, n, device=device.device, dtype=device.dtype) for _ in range(2))

    def best(step: Step) -> float:
        step()
        return sorted(device.seconds(step)[device.clock] for _ in range(rounds))[rounds // 2]

    return {
        "copy_bytes_per_s": 2 * count / best(lambda: b.copy_(a)),
        "product_flop_per_s": 2 * n**3 / best(lambda: x @ y),
    }
