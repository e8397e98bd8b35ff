"""Measures the cases of the head, the losses and the advantages beside all peers.

On a CPU a part of the grid, with ``--device cuda`` all cases, the most important first; with
``--dry-run`` the GPU's cases, tiny, in Triton's interpreter. Each case is kept in
``OUT/kernels.json`` as soon as it is measured, and the same command continues from there. Peers
that are not installed are named with the reason; ``sh scripts/peers.sh .peers`` and
``PYTHONPATH=.peers`` bring them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import peers
from bench.device import Cpu, Cuda, Device, rates
from bench.measure import measure
from bench.peers.base import Missing, Where
from bench.reports.tables import row_table
from bench.reports.write import write_results
from bench.results_io import RESULTS, environment, save, slug, source, versions
from bench.rows import elementwise, head

Case = Any  # HeadCase, LossCase or AdvantageCase: name, group, priority, build()
BUDGET_SPENT = "the time budget is spent: run the same command again and it continues from here"


@dataclass(frozen=True)
class Plan:
    """A run of the bench.

    Args:
        kind: "cpu", "cuda", or "dry": the GPU's cases made tiny on a CPU.
        out: folder of the results.
        budget: seconds after which no further case is begun.
        seconds: of a case's timed rounds.
        threads: of a CPU.
        only: cases whose name contains this.
        real: file of SmolLM2's hidden states, see :mod:`bench.real`.
        without: contenders to leave out.
    """

    kind: str = "cpu"
    out: Path = RESULTS / "cpu"
    budget: float = float("inf")
    seconds: float = 12.0
    threads: int = 1
    only: str = ""
    real: str | None = None
    without: frozenset[str] = frozenset()

    def cases(self) -> list[Case]:
        """The cases, the most important first."""
        name = {"cpu": "cpu_cases", "cuda": "gpu_cases", "dry": "tiny_cases"}[self.kind]
        cases = [*getattr(head, name)(), *getattr(elementwise, name)()]
        return sorted((c for c in cases if self.only in c.name), key=lambda c: c.priority)


class Session:
    """Measures each case once and keeps it in ``OUT/kernels.json``.

    A case that is there already from the same code, device, versions and settings is not measured
    again, so an interrupted run continues.
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

    def _resumed(self) -> dict[str, Any]:
        settings = {
            **environment(),
            "versions": versions("triton", "numpy", "transformers", *peers.packages()),
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

    def spent(self) -> bool:
        """Whether nothing more may be begun."""
        return time.monotonic() - self.started > self.plan.budget

    def row(self, case: Case) -> dict[str, Any] | str:
        """The case's results; or the reason why it has none."""
        rows = self.result["rows"]
        if case.name in rows:
            return rows[case.name]
        if self.spent():
            return BUDGET_SPENT
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
        finally:
            self.device.free()
        row["wall_seconds"] = time.monotonic() - started
        rows[case.name] = row
        save(self.path, self.result)
        return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench kernels``."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny, in Triton's interpreter")
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>")
    parser.add_argument("--budget", type=float, default=float("inf"),
                        help="seconds after which no further case is begun")  # fmt: skip
    parser.add_argument("--seconds", type=float, help="a case's timed rounds; default 4, GPU 1.5")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--without", default=[], action="append", metavar="CONTENDER",
                        help="leave it out (one whose kernel takes the GPU down, say)")  # fmt: skip
    parser.add_argument("--real", help="hidden states written by python -m bench states")


def plan_of(given: argparse.Namespace) -> Plan:
    """The run that the command line requests.

    Raises:
        SystemExit: there is no GPU.
    """
    kind = "dry" if given.dry_run else given.device
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench: no GPU here; without --device cuda it measures on the CPU")
    if kind == "dry":
        out = given.out or Path(tempfile.mkdtemp())
    else:
        name = "cpu" if kind == "cpu" else slug(torch.cuda.get_device_name())
        out = given.out or RESULTS / name
    seconds = given.seconds or {"cpu": 4.0, "cuda": 1.5, "dry": 0.01}[kind]
    return Plan(kind, out, given.budget, seconds, given.threads, given.only, given.real,
                frozenset(given.without))  # fmt: skip


def run(given: argparse.Namespace) -> int:
    """``python -m bench kernels``; exit code 1 if a case failed or ours is wrong."""
    session = Session(plan_of(given))
    failed: list[str] = []
    left: list[str] = []
    for case in session.plan.cases():
        known = case.name in session.result["rows"]
        try:
            row = session.row(case)
        except Exception as error:  # the other cases are measured all the same
            failed.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        if row == BUDGET_SPENT:
            left.append(case.name)
        elif isinstance(row, str):
            print(f"bench: {case.name}: not measured: {row}")
        else:
            if not known:
                print("\n".join(row_table(row, session.device.clock)), flush=True)
            failed += [f"{case.name}: {name}: {entry['wrong']}"
                       for name, entry in row["contenders"].items()
                       if name.startswith("ours") and "wrong" in entry]  # fmt: skip
    if session.path.exists():
        write_results(session.plan.out)
    if left:
        print(f"bench: {len(left)} cases left; {BUDGET_SPENT}")
    for line in failed:
        print(f"bench: FAILED {line}")
    return int(bool(failed))
