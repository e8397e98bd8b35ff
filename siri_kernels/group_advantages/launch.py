"""Launches of a kernel again, without what its first launch found out."""

from __future__ import annotations

from typing import Any

import torch
from triton.compiler import CompiledKernel

# AMD's compiler also asks for the size of each tensor's storage: its launches go the long way.
_KINDS_SUFFICE = torch.version.hip is None
_compiled: dict[Any, Any] = {}


def launch(
    kernel: Any, grid: tuple[int, int, int], kinds: tuple[Any, ...], *arguments: Any, **options: Any
) -> None:
    """``kernel[grid](*arguments, **options)``.

    ``JITFunction.run`` looks at every argument to find the machine code, longer than these kernels
    run. A launch of known kinds takes the machine code that the first of them returned, in the way
    that Triton has for it: ``CompiledKernel.__getitem__``.

    Args:
        kernel: a ``triton.JITFunction``, or what the interpreter has in its place.
        grid: programs.
        kinds: all that machine code depends on: the GPU, dtypes, which addresses are multiples
            of 16, whether integers have 32 bits, constants, options.
        arguments: all of the kernel's, in their order, with its constants.
        options: for the compiler.
    """
    run = type(kernel).run  # tests put another one in its place
    key = (run, id(kernel), kinds)
    compiled = _compiled.get(key)
    if compiled is not None and not kernel.pre_run_hooks:
        compiled[grid](*arguments)
        return
    compiled = kernel[grid](*arguments, **options)
    if _KINDS_SUFFICE and isinstance(compiled, CompiledKernel):
        _compiled[key] = compiled
