"""The parts, their order and their time, and the parts of each of the two calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.records import Record
from bench.peers import gpu_parts
from bench.peers import remedy as peer_remedy

ROOT = Path(__file__).parents[2]
FUSED = "siri_kernels.linear_logprob.triton.fused"
SCREEN = "siri_kernels.linear_logprob.screen_triton.forward"
FUSED_GRADIENT = "siri_kernels.linear_logprob.triton.fused_gradient"


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Args:
        name: also of its module in ``bench.gpu.parts``, unless ``module`` is given.
        reserve: seconds that no earlier part may use up.
        most: seconds it gets if there are so many.
        needs: packages, or modules of this project; if one is missing the part ends with a line.
        module: of ``bench.gpu.parts``, with a function ``run``.
        option: for that function.
        rehearsal: seconds it gets in a rehearsal.
    """

    name: str
    reserve: float
    most: float
    needs: tuple[str, ...] = ()
    module: str = ""
    option: str = ""
    rehearsal: float = 40.0

    @property
    def file(self) -> str:
        """The module's name in ``bench.gpu.parts``."""
        return self.module or self.name.replace("-", "_")


def parts() -> tuple[Part, ...]:
    """All parts, the most telling first, as the time may not suffice for all.

    Reserves are 495 s of 495: the time of each part on an H200 and half as much again. The tests
    take all they get.
    """
    peers = gpu_parts().values()
    return (
        Part("rates", 35, 75),
        Part("values", 60, 120),
        Part("head", 75, 140),
        Part("repeats", 25, 60),
        Part("tests", 95, 150, ("pytest",), rehearsal=60),
        Part("fused", 50, 160, (FUSED,)),
        Part("fused-gradient", 25, 90, (FUSED_GRADIENT,)),
        Part("screen", 50, 120, (SCREEN,), rehearsal=120),
        Part("losses", 20, 60),
        Part("step", 60, 110, ("transformers",), rehearsal=60),
        Part("step-full", 0, 110, ("transformers", "pydantic"), rehearsal=60),
        *(Part(f"peer-{p.name}", 0, 60, p.needs, "peers", p.name) for p in peers),
        Part("sanitizer", 0, 120),
    )


PARTS = parts()
BY_NAME = {part.name: part for part in PARTS}
# The second call measures these again when no part is left: with other clocks, on another machine
# of the kind, or with repaired code.
AGAIN = ("rates", "head", "values", "step", "losses")
# A whole call stays under 9.5 and 4 minutes, with the time of starting and ending.
BUDGETS = {"first": 510.0, "second": 210.0}
MARGIN = 15.0
SECOND = 45.0  # what a part may take in the second call, or its reserve
LEAST = 10.0  # seconds under which no part is started

REMEDY = {
    FUSED: "no fused kernel in siri_kernels yet",
    FUSED_GRADIENT: "no fused gradient in siri_kernels yet",
    SCREEN: "no screened head for GPUs in siri_kernels yet",
    "pydantic": "pip install pydantic",
}


def remedy(package: str) -> str:
    """That a package is missing, and how to get it."""
    if package in REMEDY and "." in package:
        return REMEDY[package]
    how = REMEDY.get(package) or peer_remedy(package) or f"pip install {package}"
    return f"{package} is not installed: {how}"


def there(module: str) -> bool:
    """Whether a module of this project exists, found without importing anything."""
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def order(call: str, before: Iterable[Record], only: Sequence[str] = ()) -> list[Part]:
    """The parts of a call, in turn.

    The first call runs all. The second runs the parts that were not reached, then those that failed
    or were killed, then the most important ones again. A part that lacked a package comes last,
    because that costs a second.

    Args:
        call: "first" or "second".
        before: the records of the call before.
        only: names; empty: no restriction.
    """
    if call == "first":
        parts = list(PARTS)
    else:
        last = outcomes(before)
        groups: list[list[Part]] = [[], [], [], []]
        for part in PARTS:
            status = last.get(part.name, "not reached")
            if status == "not reached":
                groups[0].append(part)
            elif status in ("failed", "killed"):
                groups[1].append(part)
            elif status == "missing":
                groups[3].append(part)
        again = [BY_NAME[name] for name in AGAIN if last.get(name) == "done"]
        parts = [*groups[0], *groups[1], *again, *groups[3]]
    return [part for part in parts if not only or part.name in only]


def outcomes(records: Iterable[Record]) -> dict[str, str]:
    """How each part ended last: "done", "failed", "killed", "missing" or "not reached"."""
    return {r["part"]: str(r["status"]) for r in records if r["what"] == "end" and "part" in r}


def limit(part: Part, later: Sequence[Part], left: float, call: str = "first") -> float:
    """Seconds for a part; the reserves of later parts are kept.

    Time that earlier parts did not use is available to it. If there is too little for all reserves,
    earlier parts come first.

    Args:
        part: whose limit it is.
        later: the parts after it.
        left: seconds of the call.
        call: "first" or "second".
    """
    if call == "second":  # no part takes all the time
        return min(part.most, left, max(part.reserve, SECOND))
    kept = sum(other.reserve for other in later)
    return min(part.most, left, max(left - kept, min(part.reserve, left)))
