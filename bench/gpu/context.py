"""The surroundings of a part: records, time, device and sizes."""

from __future__ import annotations

import importlib.metadata
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.gpu.clock import Clock
from bench.gpu.records import Record, Records

if TYPE_CHECKING:
    import torch

    from bench.device import Device
    from bench.peers.base import Where

T = TypeVar("T")


@dataclass
class Context:
    """A part's surroundings.

    Args:
        part: its name.
        records: where its lines go.
        seconds: its limit.
        rehearse: tiny sizes, on a CPU.
        option: of the part, see :class:`bench.gpu.plan.Part`.
        before: records of the calls before and of this one so far.
        clock: the time.
    """

    part: str
    records: Records
    seconds: float
    rehearse: bool = False
    option: str = ""
    before: list[Record] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.began = self.clock.now()
        self._device: Any = None

    def left(self) -> float:
        """Seconds until the limit, two of them kept for ending."""
        return self.seconds - 2 - (self.clock.now() - self.began)

    def say(self, what: str, **facts: Any) -> Record:
        """Write a line."""
        return self.records.write(what, at=round(self.clock.now() - self.began, 2), **facts)

    def number(self, key: str, value: float, unit: str = "", **facts: Any) -> None:
        """Write a single figure.

        Args:
            key: its name, which the report and the predictions use.
            value: the figure.
            unit: of the value.
            facts: further keys of the line.
        """
        self.say("number", key=key, value=value, unit=unit, **facts)

    def attempt(self, what: str, step: Callable[[], T]) -> T | None:
        """``step()``; where it raises, a line that says so, and None.

        After an illegal access the process can no longer use the GPU: then the part ends.
        """
        try:
            return step()
        except Exception as error:  # the part's other steps go on
            traceback.print_exc()
            text = (str(error).strip().splitlines() or [""])[0]
            why = f"{type(error).__name__}: {text[:300]}"
        self.say("failed", step=what, why=why)
        self.failures.append(what)
        self.device.recover()  # here: the exception held the tensors of its frames
        return None

    @property
    def failures(self) -> list[str]:
        """Steps that raised or gave a wrong result; the part has failed if there is one."""
        return self.__dict__.setdefault("_failures", [])

    def check(self, what: str, right: bool, **facts: Any) -> bool:
        """Write whether something is right.

        Args:
            what: the name of the check.
            right: its result; False makes the part fail.
            facts: written beside it, by name.
        """
        self.say("check", name=what, ok=right, **facts)
        if not right:
            self.failures.append(what)
        return right

    def in_time(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left for ``what``; if not, a line names what is left out."""
        if self.left() >= (0 if self.rehearse else seconds):
            return True
        self.say("left_out", step=what, why=f"{max(0.0, self.left()):.0f} s were left")
        return False

    @property
    def device(self) -> Device:
        """The GPU; in a rehearsal, or where there is none, the CPU."""
        if self._device is None:
            from bench.device import Cpu, Cuda

            self._device = Cpu() if self.rehearse else Cuda()
            if self.rehearse:
                self._device.sizes = {"copy": 2**20, "product": 128}
        return self._device

    @property
    def where(self) -> Where:
        """The same for the contenders of the bench."""
        from bench.peers.base import Where

        triton = not self.rehearse
        return Where(self.device.device, triton=triton, backend=self.backend)

    @property
    def backend(self) -> str | None:
        """The backend of ``siri_kernels``: None on a GPU, in a rehearsal the interpreter."""
        if not self.rehearse:
            return None
        return "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "portable"

    def backend_for(self, vocabulary: int) -> str | None:
        """The same for a vocabulary; with saved top entries the interpreter would take minutes."""
        from siri_kernels.linear_logprob.top_entries import LEAST_VOCABULARY

        sparse = self.rehearse and vocabulary >= LEAST_VOCABULARY
        return "portable" if sparse else self.backend

    def dtype(self) -> torch.dtype:
        """The dtype of hidden states and weights: bfloat16, which the interpreter takes too."""
        import torch

        return torch.bfloat16


def interpreter_works() -> bool:
    """Whether Triton's interpreter runs here: that of 3.6 fails with numpy 2.4 and later."""
    try:
        triton, numpy = (importlib.metadata.version(name) for name in ("triton", "numpy"))
    except importlib.metadata.PackageNotFoundError:
        return False
    return _pair(triton) >= (3, 7) or _pair(numpy) < (2, 4)


def _pair(version: str) -> tuple[int, int]:
    first, second, *_ = version.split(".")
    return int(first), int(second)


def records_of(folders: Iterable[Path | None]) -> list[Record]:
    """All lines of these folders, None left out."""
    from bench.gpu.records import read

    return list(read(*(folder for folder in folders if folder is not None)))
