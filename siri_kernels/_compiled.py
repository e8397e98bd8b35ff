"""Shared by the operators that ``torch.compile`` keeps in its graph.

A call that is traced becomes one ``torch.library`` operator. Its fake form has sizes only, so every
check and every read of a value happens when the operator runs; errors are those of an eager call.
Numbers are passed as a tensor: a Python number as an operator's argument would be a constant of the
graph, which would be compiled again for another number.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

import numpy as np
import torch

from siri_kernels import _checks as check

# An operator that reads a size on the host cannot be replayed. (Added to PyTorch in 2.8.)
_UNSAFE = getattr(torch.Tag, "cudagraph_unsafe", None)
READS_ON_HOST: tuple[torch.Tag, ...] = () if _UNSAFE is None else (_UNSAFE,)


def is_number(value: object) -> bool:
    """Whether a tensor can be made of it in a graph; if not, the checks raise an error.

    ``torch.compile`` traces NumPy's scalars as arrays of no dimensions: they are numbers too.
    """
    if isinstance(value, np.ndarray):
        array = torch.from_numpy(value)
        return array.dim() == 0 and array.dtype != torch.bool and not array.is_complex()
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return not isinstance(value, int) or -(2**62) < value < 2**62


def numbers_in_graph(values: Iterable[float]) -> torch.Tensor:
    """[n] float64 on the CPU, of numbers for which :func:`is_number` holds.

    They are products, because a product does not make a changing number a constant of the graph.
    """
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack(
        [
            one * (torch.from_numpy(x).to(one.dtype) if isinstance(x, np.ndarray) else x)
            for x in values
        ]
    )


@torch.library.custom_op("siri_kernels::refuse", mutates_args=())
def _refuse(message: str, is_type_error: bool, like: torch.Tensor) -> torch.Tensor:
    raise (TypeError if is_type_error else ValueError)(message)


@_refuse.register_fake
def _(message: str, is_type_error: bool, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(like.shape, dtype=torch.float32)


def refusal(error: Exception, *candidates: object) -> torch.Tensor:
    """In a graph: an operator that raises ``error``; the compiler would change the exception.

    Args:
        error: a TypeError or ValueError.
        candidates: arguments of the call; the result is like the first plain tensor among them,
            so that the rest of the graph can be traced.
    """
    like = torch.empty(0, dtype=torch.float32, device="cpu")
    for candidate in candidates:
        if isinstance(candidate, torch.Tensor) and not check.is_dtensor(candidate):
            like = candidate.detach()
            break
    return _refuse(error.args[0], isinstance(error, TypeError), like)
