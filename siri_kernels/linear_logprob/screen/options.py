"""The arguments of ``linear_logprob`` that ask for a screen, and where there is one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from siri_kernels import _checks as check

KINDS = ("int8", "fp8", "auto")
# With fewer tokens or ids the exact product is as fast (docs/log/kernels.md).
LEAST_TOKENS = 128
LEAST_VOCABULARY = 8192
# The weight's 8-bit copy costs what 500 tokens save; "auto" does not count on its next use.
LEAST_TOKENS_AUTO = 1024


class Screen(NamedTuple):
    """A screen that was asked for.

    Attributes:
        kind: of its 8-bit numbers, "int8" or "fp8".
        tolerance: the largest estimated error of a log-prob, in nats.
        checked: whether a few tokens are computed exactly too, and compared.
        least: with fewer tokens the call is exact.
    """

    kind: str
    tolerance: float
    checked: bool
    least: int

    def pays(self, tokens: int, vocabulary: int) -> bool:
        """Whether the screen is faster than the exact product for such a call."""
        return tokens >= self.least and vocabulary >= LEAST_VOCABULARY


def has_integer_products() -> bool:
    """Whether this processor multiplies 8-bit integers faster than float32 numbers."""
    asked = getattr(torch.cpu, "_is_vnni_supported", None)  # PyTorch has no public function for it
    return asked is not None and bool(asked())


@functools.cache
def integer_products_are_exact() -> bool:
    """Whether ``torch._int_mm`` adds up without a limit.

    Without VNNI oneDNN adds products of 8-bit integers in pairs, in 16 bits, which overflow.
    """
    rows = torch.full((160, 64), 127, dtype=torch.int8, device="cpu")
    columns = torch.full((64, 1024), 127, dtype=torch.int8, device="cpu")
    return bool((torch._int_mm(rows, columns) == 64 * 127 * 127).all())


def asked_for(op: str, screen: object, tolerance: object, checked: object) -> bool:
    """Checks the arguments; whether a screen is asked for.

    Args:
        op: the operation, for messages.
        screen: as the caller gave it, and so on.
        tolerance: the same.
        checked: the same.

    Raises:
        TypeError: a wrong type.
        ValueError: a wrong value.
    """
    if screen is None:
        return False
    if not isinstance(screen, str) or screen not in KINDS:
        raise ValueError(
            f"{op}: screen must be None, {', '.join(map(repr, KINDS))}; got {check.shown(screen)}"
        )
    check.number(op, "logprob_tol", tolerance, above=0)
    if not isinstance(checked, bool):
        raise TypeError(f"{op}: screen_check must be True or False; got {check.shown(checked)}")
    return True


def screen_of(
    op: str,
    screen: str,
    tolerance: float,
    checked: bool,
    *,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    process_group: Any,
) -> Screen | None:
    """The screen of a call; None: the call is exact.

    Args:
        op: the operation, for messages.
        screen: of the arguments, checked.
        tolerance: the same.
        checked: the same.
        backend: which implementation runs.
        device: of the hidden states.
        dtype: of the product.
        process_group: of the arguments.

    Raises:
        ValueError: the caller asks for a screen by name that there is not; "auto" takes none then.
    """
    if screen == "auto" and backend == "triton":
        return None  # on a GPU nothing was timed yet
    if backend == "triton":
        reason = _refused_by_triton(screen, device)
    elif backend != "portable" or device.type != "cpu":
        got = f"backend={backend!r} on {device.type}"
        reason = f"takes backend 'triton', or 'portable' on a CPU; got {got}"
    elif screen == "fp8":
        reason = "is for GPUs, backend 'triton'; a CPU takes screen='int8'"
    else:
        reason = None
    if reason is None and dtype == torch.float64:
        reason = "takes bfloat16, float16 and float32; got float64"
    if reason is None and process_group is not None:
        reason = "takes no process_group so far"
    if screen == "auto":
        if reason is not None or not has_integer_products():
            return None
        return Screen("int8", tolerance, checked, LEAST_TOKENS_AUTO)
    if reason is not None:
        raise ValueError(
            f"{op}: screen={screen!r} {reason}; pass screen=None, or 'auto', which screens where "
            "it can"
        )
    return Screen(screen, tolerance, checked, LEAST_TOKENS)


def _refused_by_triton(screen: str, device: torch.device) -> str | None:
    """Why a GPU has no such screen, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None  # the interpreter has both, and so has every part of AMD that we compile for
    capability = torch.cuda.get_device_capability(device)
    if screen == "fp8" and capability < (8, 9):
        return f"needs compute capability 8.9; got {capability[0]}.{capability[1]}: take 'int8'"
    if capability < (8, 0):
        return f"needs compute capability 8.0; got {capability[0]}.{capability[1]}"
    return None
