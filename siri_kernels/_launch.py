"""Launches of Triton kernels again, without what the first launch of their kind found out.

``JITFunction.run`` looks at every argument to find the machine code: 35 us of the host for 25
arguments, longer than many kernels run. A launch whose arguments are of known kinds takes the
machine code that the first of them returned, in the way that Triton has for it,
``CompiledKernel.__getitem__``.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

# AMD's compiler also asks for the size of each tensor's storage: its launches go the long way.
_KINDS_SUFFICE = torch.version.hip is None
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[str, ...]]] = {}
_positional_constants: dict[tuple[int, int], tuple[int, ...]] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    kinds: tuple[Any, ...] | None = None,
    **constants: Any,
) -> None:
    """``kernel[grid](*arguments, **constants)``.

    Args:
        kernel: a ``triton.JITFunction``, or what the interpreter has in its place.
        grid: programs, in one to three dimensions.
        arguments: the kernel's first ones.
        kinds: all that machine code depends on, if the caller knows it for less than a look at each
            argument: the GPU, dtypes, which addresses are multiples of 16, whether integers have
            32 bits and what divides them, constants, options.
        constants: its other ones by name, all of them ``tl.constexpr``, and the compiler's options.
    """
    # Tests, and compilation ahead of time, put another ``run`` in the place of Triton's.
    ours = type(kernel) is JITFunction and JITFunction.run.__module__ == JITFunction.__module__
    if not (_KINDS_SUFFICE and ours) or kernel.pre_run_hooks:
        kernel[grid](*arguments, **constants)
        return
    if kinds is None:
        kinds = (torch.cuda.current_device(), tuple(constants.items()), *map(_kind, arguments))
        kinds += tuple(arguments[i] for i in _constants_among(kernel, len(arguments)))
    key = (id(kernel), kinds)
    known = _compiled.get(key)
    if known is not None:
        compiled, names = known
        rows, columns, layers = (*grid, 1, 1)[:3]
        compiled[rows, columns, layers](*arguments, *[constants[name] for name in names])
        return
    compiled = kernel[grid](*arguments, **constants)
    if isinstance(compiled, CompiledKernel):
        _compiled[key] = compiled, tuple(kernel.arg_names[len(arguments) :])


def _kind(value: Any) -> Any:
    """All that machine code depends on: Triton compiles for 1, multiples of 16 and 32 bits."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if type(value) is int:
        return value == 1, value % 16 == 0, -(2**31) <= value < 2**31, value < 2**63
    return type(value)


def _constants_among(kernel: Any, count: int) -> tuple[int, ...]:
    """The places of constants among the kernel's first ``count`` arguments."""
    key = (id(kernel), count)
    places = _positional_constants.get(key)
    if places is None:
        places = tuple(i for i, p in enumerate(kernel.params[:count]) if p.is_constexpr)
        _positional_constants[key] = places
    return places
