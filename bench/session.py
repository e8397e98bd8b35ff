"""A run of the bench: the device, what it measured so far, and when it has to stop."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import peers
from bench.device import Cpu, Cuda, Device, rates
from bench.measure import measure
from bench.peers.base import Missing, Where
from bench.results_io import environment, save, source, versions
from bench.rows import elementwise, head

Case = Any  # HeadCase, LossCase or AdvantageCase: name, group, priority, contenders, build()


@dataclass(frozen=True)
class Plan:
    """What a run measures: "cpu", "cuda", or "dry", the GPU's rows made tiny on a CPU."""

    kind: str = "cpu"
    out: Path = Path("bench/results/cpu")
    budget: float = float("inf")
    seconds: float = 12.0
    threads: int = 1
    only: str = ""
    real: str | None = None
    without: frozenset[str] = frozenset()

    def cases(self) -> list[Case]:
        """The rows, the most important first."""
        name = {"cpu": "cpu_cases", "cuda": "gpu_cases", "dry": "tiny_cases"}[self.kind]
        rows = [*getattr(head, name)(), *getattr(elementwise, name)()]
        return sorted((r for r in rows if self.only in r.name), key=lambda r: r.priority)


class Session:
    """Measures each case once and keeps it in ``OUT/kernels.json``.

    A row that is there already from the same code, device, versions and settings is not measured
    again, so a run that was cut goes on where it was.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.started = plan, time.monotonic()
        self.device: Device = Cuda() if plan.kind == "cuda" else Cpu(plan.threads)
        if plan.kind == "dry":
            self.device.sizes = {"copy": 2**20, "product": 128}
        # Probabilities of a sharp softmax underflow, and products with subnormal numbers are a
        # hundred times slower on a CPU: that would only make eager PyTorch look bad.
        torch.set_flush_denormal(True)
        torch.set_num_threads(plan.threads)
        torch.manual_seed(0)
        self.where = Where(
            self.device.device,
            triton=plan.kind == "cuda",
            backend="triton" if plan.kind == "dry" else None,
            without=plan.without,
        )
        self.path = plan.out / "kernels.json"
        self.result = self._resumed()
        self.failed: dict[str, Exception] = {}
        self.steps: dict[str, Any] = {}  # training steps, by model

    def _resumed(self) -> dict[str, Any]:
        settings = {
            **environment(),
            "versions": versions("triton", "numpy", "transformers", *peers.PACKAGES),
            "threads": self.plan.threads,
            "clock": self.device.clock,
            "seconds_a_row": self.plan.seconds,
            "source": source(),
        }
        rows: dict[str, Any] = {}
        if self.path.exists():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            same = {k: v for k, v in settings.items() if k != "commit"}
            rows = before["rows"] if all(before.get(k) == v for k, v in same.items()) else {}
        return {**settings, "rates": {}, "rows": rows, "not_measured": {}}

    GO_ON = "the time budget is spent: run the same command again and it goes on from here"

    def spent(self) -> bool:
        """Whether nothing more may be begun."""
        return time.monotonic() - self.started > self.plan.budget

    def row(self, case: Case) -> dict[str, Any] | str:
        """The case's results; or why it has none."""
        rows = self.result["rows"]
        if case.name in rows:
            return rows[case.name]
        if case.name in self.failed:
            raise self.failed[case.name]
        if self.spent():
            return self.GO_ON
        if not self.result["rates"]:
            self.result["rates"] = rates(self.device)
            self.device.free()
        print(f"\nbench: {case.name}", flush=True)
        started = time.monotonic()
        try:
            work = case.build(self.where, self.device, self.plan.real)
            least = 1 if self.plan.kind == "dry" else 3
            row = measure(work, self.device, self.result["rates"], self.plan.seconds, least)
        except Missing as error:
            self.result["not_measured"][case.name] = str(error)
            save(self.path, self.result)
            return str(error)
        except Exception as error:  # each of the row's tests fails by it, one measures
            self.failed[case.name] = error
            raise
        finally:
            self.device.free()
        row["wall_seconds"] = time.monotonic() - started
        rows[case.name] = row
        save(self.path, self.result)
        return row
