"""The types of the registry: a peer, its contenders, where they run, and why one may be missing.

Nothing here or at the top of a peer's file imports torch: the runner of a GPU run reads the
registry, and a broken torch must not stop it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Missing(Exception):
    """A contender that cannot run here; the message says why."""


@dataclass(frozen=True)
class Where:
    """Where the bench runs.

    Args:
        device: of all inputs.
        triton: whether Triton kernels can run there.
        backend: of ``siri_kernels``; None is its own choice, "triton" makes a CPU run the kernels
            in Triton's interpreter.
        without: labels of contenders to leave out.
    """

    device: torch.device
    triton: bool
    backend: str | None = None
    without: frozenset[str] = frozenset()

    def need_triton(self) -> None:
        """Raise where Triton kernels cannot run.

        Raises:
            Missing: they cannot.
        """
        if not self.triton:
            raise Missing("its kernels are Triton's: needs a GPU")


@dataclass(frozen=True)
class Contender:
    """One way to do the work, through its public call.

    Args:
        call: takes hidden states [T, D], weight [V, D] and targets [T] and returns log-probs [T] or
            their sum (tables "head" and "scalar"); a :class:`bench.inputs.LossBatch` and returns
            the loss and the gradient of the log-probs ("loss"); rewards [B], the size of the groups
            and :class:`bench.inputs.GroupIds` and returns advantages [B] ("advantages").
        settings: options of the call, for the reader of the results.
        gate: the error it may have against float64 in the tables "head" and "scalar", as a multiple
            of eager PyTorch's on the same tokens: in the same dtype for "same", in bfloat16 for
            "bfloat16". A contender with a larger error is not timed.
        masks: the call takes ``ignore_index``; the others get the unmasked tokens alone.
    """

    call: Callable[..., Any]
    settings: str
    gate: tuple[float, str] = (2.0, "bfloat16")
    masks: bool = False


Make = Callable[[Where], Contender]


@dataclass(frozen=True)
class Entry:
    """A contender of a peer: its name and the tables it takes part in.

    Args:
        label: its name in tables, in results and for ``--without``.
        make: builds the contender; it imports the peer, and raises :class:`Missing` or the import's
            own error where the peer cannot run.
        tables: of "head" (a log-prob per token), "scalar" (the sum of the log-probs), "loss" and
            "advantages".
        cases: of the table "head", besides the first case, in which all take part: "few" (most
            cases), "sweep" (cases that differ in one thing), "growth" (time against tokens).
        bare: measured by the part ``losses`` of a GPU run, which has no peer installed.
        grid: measured by ``python -m bench kernels``.
        tolerance: relative error against float64 in the tables "loss" and "advantages".
        most: samples up to which it is measured in the table "advantages".
    """

    label: str
    make: Make
    tables: tuple[str, ...] = ("head",)
    cases: tuple[str, ...] = ("few",)
    bare: bool = False
    grid: bool = True
    tolerance: float = 1e-4
    most: int | None = None


@dataclass(frozen=True)
class GpuPart:
    """The part ``peer-NAME`` of a GPU run: this peer beside ours and the bare product.

    Args:
        name: of the part.
        labels: of the entries that it measures.
        imports: the module that holds them; it is read even where the package's ``__init__`` fails.
        needs: packages to look for before anything is imported.
        table: "head" or "scalar".
        order: place among the parts, the smallest first.
        prepare: called after the import.
    """

    name: str
    labels: tuple[str, ...]
    imports: str
    needs: tuple[str, ...]
    table: str = "head"
    order: int = 100
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True)
class Peer:
    """A library, or a way of writing it, beside which ours is measured: ``PEER`` of its file.

    Args:
        entries: its contenders, in the order of the tables.
        package: its distribution's name; empty: nothing to install.
        version: of the package, the one that was measured; the remedy of a GPU run names it.
        also: further distributions whose versions belong to the result.
        order: place among the peers, the smallest first; then by file name.
        parts: of a GPU run.
        remedies: how to get what else a part needs, by module.
    """

    entries: tuple[Entry, ...]
    package: str = ""
    version: str = ""
    also: tuple[str, ...] = ()
    order: int = 100
    parts: tuple[GpuPart, ...] = ()
    remedies: tuple[tuple[str, str], ...] = ()

    def remedy(self, module: str) -> str | None:
        """How to get ``module`` for a GPU run; None if it is not this peer's."""
        known = dict(self.remedies)
        if module in known:
            return known[module]
        if self.package and module == self.package.replace("-", "_"):
            return f"bring the wheel of {self.package}=={self.version} in .whl/"
        return None
