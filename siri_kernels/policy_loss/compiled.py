"""The policy loss on a CPU as a compiled loop, :file:`loop.c`: one pass over memory.

It gives what :mod:`.portable` gives, to rounding, and is chosen for float32 arithmetic where a
compiler is there. A process chooses once, at its first call, so that its results do not change
while it runs: the loop, if it is compiled by then. If not, the compiler is started for later
processes, and this one keeps to :mod:`.portable`: no call waits. A program whose results must not
depend on that, as a run that is resumed to the bit, calls :func:`compile_loop` when it starts; its
next call then waits for the compiler, which by then has finished. ``SIRI_KERNELS_COMPILED_LOSS=1``
in the environment makes every first call wait and fail where the loop cannot be compiled; ``0``
means that no process uses it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels import _native
from siri_kernels.policy_loss import objectives
from siri_kernels.policy_loss.portable import LossAndGradient
from siri_kernels.policy_loss.types import LossInputs, LossOptions, RolloutCorrection, metric_names

SOURCE = Path(__file__).with_name("loop.c")
VARIABLE = "SIRI_KERNELS_COMPILED_LOSS"
# Starting a thread takes as long as 6000 tokens, one of PyTorch's as long as 1000.
TOKENS_A_THREAD = {"own": 1 << 16, "team": 1 << 14}
# The order of the loop's results.
METRICS = (
    *("clip_frac_low", "clip_frac_high", "ratio_mean", "ratio_max", "approx_kl", "tokens"),
    *("entropy", "ref_kl", "rollout_kl", "rollout_weight_mean", "off_policy_frac"),
)
_OBJECTIVES = ("clip", "cispo", "sapo", "gmpo", "reinforce")
_MODES = ("none", "truncate", "mask", "reject")
_LEVELS = ("token", "sequence", "geometric")
_ESTIMATORS = ("k1", "k2", "k3")

Loop = Callable[..., int]
_lock = threading.Lock()
_asked = False  # for the loop, by compile_loop
_choice: Loop | None | str = "open"


def compile_loop(*, wait: bool = False) -> None:
    """Start the compiler of the loop in the background, unless the loop is there or forbidden.

    The next call of ``policy_loss`` on a CPU then waits until the compiler has finished. A process
    that has chosen the blocked form, because the loop was not there, chooses again.

    Args:
        wait: here already, and choose.
    """
    global _asked, _choice
    if os.environ.get(VARIABLE) != "0":
        _asked = True
        _native.start(SOURCE)
        with _lock:
            if _choice is None:
                _choice = "open"
    if wait:
        chosen()


def in_use() -> str:
    """The form of calls on a CPU: "compiled", "blocked", or "open" before the first call."""
    return "open" if _choice == "open" else "blocked" if _choice is None else "compiled"


def chosen() -> Loop | None:
    """The loop; None: not used in this process.

    Raises:
        RuntimeError: ``SIRI_KERNELS_COMPILED_LOSS=1`` and there is none.
    """
    global _choice
    if isinstance(_choice, str):
        with _lock:
            if isinstance(_choice, str):
                _choice = _choose()
    return _choice


def _choose() -> Loop | None:
    forced = os.environ.get(VARIABLE, "")
    if forced == "0":
        return None
    library = _native.load(SOURCE, wait=_asked or forced == "1")
    loop = None if library is None else _function(library)
    if forced == "1" and loop is None:
        raise RuntimeError(
            f"policy_loss: {VARIABLE}=1, but {SOURCE.name} cannot be compiled and used here: it "
            "needs a C compiler (cc) and a folder ~/.cache/siri_kernels that only you can write"
        )
    if library is None:
        _native.start(SOURCE)
    return loop


def _function(library: ctypes.CDLL) -> Loop | None:
    """The library's function; None if it is not right on this machine."""
    function = library.siri_policy_loss
    numbers: list[Any] = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_double]
    pointers: list[Any] = 12 * [ctypes.c_void_p]
    function.argtypes = [ctypes.c_char_p, *pointers, *numbers, ctypes.c_int64, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function if _right(function) else None


def _right(loop: Loop) -> bool:
    """Whether the loss of one token of ratio exp(0.1) and its gradient are right."""
    values = torch.tensor([-0.9, -1.0, -1.0, -0.9], dtype=torch.float32, device="cpu")
    options = LossOptions(
        *("clip", 0.2, 0.28, None, None, "verl", (1.0, 1.05), "token", "token-mean", None, None),
        *(None, 0.0, "k3", False, None, 0.0),
    )
    offsets = torch.tensor([0, 2], dtype=torch.int32, device="cpu")
    one = torch.ones(1, dtype=torch.float32, device="cpu")
    x = LossInputs(values[:2], values[2:], one, offsets, None, None, None, None)
    with torch.no_grad():
        out = policy_loss(x, options, loop)
    if out is None:
        return False
    want = torch.tensor([-1.1051709, -0.9048374], dtype=torch.float32, device="cpu")
    return bool(
        torch.allclose(out.d_logprobs, want / 2, rtol=1e-6)
        and (out.loss - want.mean()).abs() < 1e-6
    )


def takes(x: LossInputs, options: LossOptions) -> bool:
    """Whether the loop computes such a call: float32 arithmetic on a CPU, derivatives by hand.

    Args:
        x: checked, but for the values of cu_seqlens.
        options: checked.
    """
    logprobs = x.logprobs
    return (
        logprobs.is_cpu
        and logprobs.dtype != torch.float64
        and options.objective in objectives.BY_HAND
        and options.objective in _OBJECTIVES
        and logprobs.size(0) > 0
        and type(logprobs) in _PLAIN
        and check.may_read(logprobs)
        and chosen() is not None
    )


# A subclass, as a fake tensor, may hold no values.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def policy_loss(x: LossInputs, options: LossOptions, loop: Loop) -> LossAndGradient | None:
    """Loss, its gradient with respect to logprobs and entropy, and metrics; without autograd.

    Args:
        x: inputs that the loop takes.
        options: checked.
        loop: of :func:`chosen`.

    Returns:
        None where cu_seqlens is wrong.

    Raises:
        MemoryError: there is no memory for the sums.
    """
    total = x.logprobs.size(0)
    d_logprobs = torch.empty(total, dtype=torch.float32, device="cpu")
    d_entropy = torch.empty_like(d_logprobs) if options.entropy_coef != 0 else None
    # A tensor of its own: a metric that is changed in place must not touch it.
    loss = torch.empty((), dtype=torch.float32, device="cpu")
    out = torch.empty(len(METRICS), dtype=torch.float32, device="cpu")
    given = [
        _float32(x.logprobs),
        _float32(x.old_logprobs),
        _float32(x.advantages),
        x.cu_seqlens.contiguous(),
        None if x.mask is None else x.mask.contiguous(),
        None if x.rollout_logprobs is None else _float32(x.rollout_logprobs),
        None if x.ref_logprobs is None else _float32(x.ref_logprobs),
        None if x.entropy is None else _float32(x.entropy),
    ]
    team = _native.team()
    each = TOKENS_A_THREAD["team" if team else "own"]
    threads = 1 if total < 2 * each else min(torch.get_num_threads(), total // each)
    wrong = loop(
        _packed(options.constant),
        *[None if tensor is None else tensor.data_ptr() for tensor in given],
        d_logprobs.data_ptr(),
        None if d_entropy is None else d_entropy.data_ptr(),
        loss.data_ptr(),
        out.data_ptr(),
        total,
        x.sequences,
        x.advantage_per_token,
        _denominator(options),
        threads,
        team,
    )
    if wrong == 2:
        raise MemoryError(f"policy_loss: no memory for the sums of {total} tokens")
    if wrong:
        return None
    values = out.unbind()
    if x.entropy is x.ref_logprobs is x.rollout_logprobs is options.off_policy_threshold is None:
        metrics = dict(zip(METRICS[:6], values, strict=False))
    else:
        metrics = {
            name: values[METRICS.index(name)]
            for name in metric_names(x, options.off_policy_threshold is not None)
        }
    return LossAndGradient(loss, d_logprobs, d_entropy, 1.0, metrics)


def _denominator(options: LossOptions) -> float:
    """Its value; -1: the tokens, -2: the sequences that are not empty."""
    value = options.denominator
    if value is None:
        return -2.0 if options.aggregation.startswith("seq-mean") else -1.0
    return float(value) or float("inf")  # a step without tokens: loss and gradient are 0


def _float32(values: torch.Tensor) -> torch.Tensor:
    """Contiguous, in float32, and not a view with a sign to be applied."""
    if values.dtype == torch.float32 and values.is_contiguous() and not values.is_neg():
        return values
    return values.detach().to(torch.float32).resolve_neg().contiguous()


@functools.lru_cache(maxsize=256)
def _packed(options: LossOptions) -> bytes:
    """The options as the loop's struct; the denominator is not one of it."""
    correction = options.correction or RolloutCorrection()
    return struct.pack(
        "10i11f",
        _OBJECTIVES.index(options.objective),
        options.sequence_ratio,
        options.ceiling is not None,
        options.aggregation == "seq-mean-token-mean",
        0 if options.correction is None else _MODES.index(correction.mode),
        _LEVELS.index(correction.level),
        options.off_policy_threshold is not None,
        _ESTIMATORS.index(options.kl_estimator),
        options.kl_unbiased,
        options.kl_limit is not None,
        *options.bounds,
        options.ceiling or 0.0,
        *options.sapo_tau,
        correction.low,
        correction.high,
        options.off_policy_threshold or 0.0,
        options.kl_coef,
        options.kl_limit or 0.0,
        options.entropy_coef,
    )
