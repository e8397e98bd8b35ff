"""TRL (1.16): ``linear_logprob`` in place of the kernel under TRL's fused LM head."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

from siri_kernels.linear_logprob import linear_logprob
from siri_kernels.linear_logprob.screen.options import asked_for

_PARAMETERS = (
    "ctx", "hidden", "weight", "bias", "targets", "temperature", "chunk_size",
    "final_logit_softcapping", "logit_scale", "outputs",
)  # fmt: skip
_OUTPUTS = ("log_probs", "entropy")  # of ours, in TRL's order
_SEAM = "_ChunkedLogProbFunction"


@dataclass
class FusedHead:
    """Replaces TRL's kernel, and counts its calls, which shows that it is in use.

    Attributes:
        tail: largest relative L1 error of the logit gradient, see ``linear_logprob``.
        backend: of ``linear_logprob``.
        screen: of ``linear_logprob``.
        logprob_tol: of ``linear_logprob``.
        calls: forward passes of the head so far.
        rows: tokens scored in them.
    """

    tail: float = 1e-2
    backend: str | None = None
    screen: str | None = None
    logprob_tol: float = 1e-4
    calls: int = 0
    rows: int = 0

    def apply(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = _OUTPUTS,
    ) -> tuple[torch.Tensor | None, ...]:
        """TRL's call, with five results.

        Args:
            hidden: [N, D].
            weight: [V, D].
            bias: [V], or None.
            targets: [N] int64.
            temperature: divides the logits.
            chunk_size: of TRL's tiles; not used.
            final_logit_softcapping: as in TRL.
            logit_scale: factor of the logits.
            outputs: of "log_probs" and "entropy".

        Returns:
            Log-probs [N], entropy [N] or None, and three times None for the outputs that no
            GRPO-like trainer requests.

        Raises:
            NotImplementedError: another output is requested (TRL's SFT does).
            ValueError: ``logit_scale`` <= 0, and as ``linear_logprob``.
        """
        missing = [name for name in outputs if name not in _OUTPUTS]
        if missing:
            raise NotImplementedError(
                f"fused_lm_head: outputs {missing} are asked for; takes {list(_OUTPUTS)}, what "
                "GRPO, RLOO and GMPO ask for. Train DPO, KTO and SFT outside the block"
            )
        if not logit_scale > 0:
            raise ValueError(f"fused_lm_head: logit_scale must be > 0; got {logit_scale}")
        if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
            # cast_lm_head_to_fp32: TRL's kernel casts tile by tile, here it is one copy.
            weight = weight.to(hidden.dtype)
        self.calls += 1
        self.rows += len(targets)
        # softcap(scale * raw) / temperature, without touching a tensor for the scale.
        cap = None if final_logit_softcapping is None else final_logit_softcapping / logit_scale
        out = linear_logprob(
            hidden,
            weight,
            targets,
            bias=bias,
            temperature=temperature / logit_scale,
            softcap=cap,
            tail=self.tail,
            backend=self.backend,
            screen=self.screen,
            logprob_tol=self.logprob_tol,
        )
        return out.logprobs, out.entropy if "entropy" in outputs else None, None, None, None


@contextlib.contextmanager
def fused_lm_head(
    *,
    tail: float = 1e-2,
    backend: str | None = None,
    screen: str | None = None,
    logprob_tol: float = 1e-4,
) -> Iterator[FusedHead]:
    """Run TRL's fused LM head on :func:`siri_kernels.linear_logprob` within the block.

    GRPO, RLOO and the experimental GMPO use log-probs and entropy, and train within it. DPO, KTO
    and SFT use more (mean logits, top-1, ...) and are refused at their first step. All of them call
    one function object, which is replaced on entry and restored on exit, also after an error. First
    TRL's interface is checked: the function's parameters, its use by ``add_fused_lm_head``, and its
    values on a small random problem with scale, softcap, temperature and bias.

    Args:
        tail: of ``linear_logprob``; 0.0 is exact.
        backend: of ``linear_logprob``.
        screen: of ``linear_logprob``: None, "int8", "fp8" or "auto".
        logprob_tol: of ``linear_logprob``, with a screen.

    Yields:
        FusedHead: its ``calls`` and ``rows`` count the scored tokens.

    Raises:
        ImportError: TRL is not installed.
        TypeError: a screen with a ``logprob_tol`` that is not a number.
        ValueError: an unknown ``screen``, or one with ``logprob_tol`` <= 0.
        RuntimeError: TRL's interface is not that of 1.16, or a block is open already.
    """
    asked_for("fused_lm_head", screen, logprob_tol, True)
    import trl.trainer.utils as utils

    original = getattr(utils, _SEAM, None)
    if isinstance(original, FusedHead):
        raise RuntimeError("fused_lm_head: a block is open already; it takes one at a time")
    _check_contract(original, utils)
    head = FusedHead(tail, backend, screen, logprob_tol)
    setattr(utils, _SEAM, head)
    try:
        yield head
    finally:
        setattr(utils, _SEAM, original)


def _check_contract(original: Any, utils: Any) -> None:
    if not hasattr(original, "forward"):
        raise _changed(f"trl.trainer.utils.{_SEAM} is {original!r}, not an autograd.Function")
    parameters = tuple(inspect.signature(original.forward).parameters)
    if parameters != _PARAMETERS:
        raise _changed(f"its parameters are {parameters}, known is {_PARAMETERS}")
    builder = getattr(utils, "add_fused_lm_head", None)
    if builder is None or _SEAM not in _names(builder.__code__):
        raise _changed(f"add_fused_lm_head does not look up {_SEAM} any more")
    _check_values(original)


def _names(code: CodeType) -> set[str]:
    """Every global name that a function and those defined in it read."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found


@torch.no_grad()
def _check_values(original: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        for shape in ((5, 8), (11, 8), (11,))
    )
    targets = torch.randint(0, 11, (5,), generator=generator, dtype=torch.int64, device="cpu")
    call = (hidden, weight, bias, targets, 0.7, 256, 5.0, 1.5, _OUTPUTS)
    try:
        theirs = original.apply(*call)
        log_probs, entropy, *rest = theirs
    except Exception as error:
        raise _changed(f"a call as 1.16 takes it fails: {error!r}") from error
    ours = FusedHead(tail=0.0).apply(*call)
    for name, got, want in zip(_OUTPUTS, ours, (log_probs, entropy), strict=False):
        assert got is not None
        if want is None or want.shape != got.shape or not torch.allclose(got, want, atol=1e-4):
            raise _changed(f"{name} of a small problem is {want}, ours {got}")
    if len(rest) != 3:
        raise _changed(f"it returns {len(theirs)} results, known are 5")


def _changed(what: str) -> RuntimeError:
    import trl

    return RuntimeError(
        f"fused_lm_head: TRL {trl.__version__} has another kernel contract than 1.16: {what}. "
        "Train without the block, or with TRL 1.16"
    )
