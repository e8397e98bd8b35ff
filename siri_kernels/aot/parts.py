"""The GPU generations that kernels are compiled for."""

from __future__ import annotations

from typing import Any, NamedTuple


class Part(NamedTuple):
    """A GPU generation.

    Attributes:
        name: as it is printed.
        backend: Triton's, "cuda" or "hip".
        arch: Triton's name for the architecture.
        warp: threads of a warp.
        shared: bytes of shared memory that a program may use.
    """

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int

    def target(self) -> Any:
        """This part as Triton's compiler names it."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self.backend, self.arch, self.warp)


PARTS = (
    Part("sm_80", "cuda", 80, 32, 163 * 1024),
    Part("sm_90", "cuda", 90, 32, 227 * 1024),
    Part("sm_100", "cuda", 100, 32, 227 * 1024),
    Part("gfx942", "hip", "gfx942", 64, 64 * 1024),
)
