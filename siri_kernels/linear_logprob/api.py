"""``linear_logprob``: the public function and its checks."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels._autograd import untraced
from siri_kernels._backend import resolve_backend
from siri_kernels._compiled import is_number, numbers_in_graph, refusal
from siri_kernels.linear_logprob import custom_op, reference
from siri_kernels.linear_logprob.autograd import OP, LinearLogprob, no_autocast
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.screen.options import Screen, asked_for, screen_of
from siri_kernels.linear_logprob.top_entries import entries_to_save
from siri_kernels.linear_logprob.types import LogprobOutput
from siri_kernels.linear_logprob.validate import (
    check_rule,
    check_targets,
    check_tensors,
    tokens_temperature,
)
from siri_kernels.linear_logprob.vocab_parallel import Shard


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    tail: float = 1e-2,
    backend: str | None = None,
    process_group: Any = None,
    screen: str | None = None,
    logprob_tol: float = 1e-4,
    screen_check: bool = True,
) -> LogprobOutput:
    """Log-prob of each target and entropy of each distribution, without storing logits.

    With ``raw = hidden @ weight.T + bias``, the logits are, in this order, ``raw``, then
    ``softcap * tanh(raw / softcap)`` where a softcap is given (-inf stays -inf), then divided by
    ``temperature``.
    Returns ``log_softmax(logits)[target]`` and ``-sum p log p`` of every token. No tensor of the
    size of the logits ever exists, in forward or backward.

    Args:
        hidden: [..., D] bfloat16, float16, float32 or float64, any strides.
        weight: [V, D], dtype of ``hidden``; under ``torch.autocast`` the two may differ and are
            multiplied in autocast's dtype.
        targets: [...] int64, each in 0..V-1 or ``ignore_index``.
        bias: [V] floating point, added before the softcap. -inf masks an id: probability 0, under
            a softcap too, as for any raw logit of -inf.
        temperature: number > 0, or a tensor of them: of one element, or [...] with 1 in place of
            any size ([B, 1] for targets [B, L]: one per sequence). It gets no gradient: a tensor
            that requires one is refused.
        softcap: number > 0, as ``final_logit_softcapping`` of Gemma; None: no cap.
        ignore_index: tokens with this target are masked: results 0, gradients 0, nothing computed
            on a CPU, and a NaN in their hidden states reaches nothing else.
        tail: the largest relative L1 error that backward may make in the gradient of the raw
            logits of this call, a finite number >= 0; 0: none. Forward saves the top entries of
            each token, and backward recomputes only the tokens for which the entries left out
            exceed the error bound (:mod:`siri_kernels.linear_logprob.error_bound`;
            :func:`~siri_kernels.linear_logprob.take_backward_stats` counts them). With a small
            vocabulary, and with "portable" on a GPU, backward recomputes every token.
        backend: None (fastest there is: "triton" on a GPU but for float64, else "portable"),
            "triton" (forward does not wait for the GPU, backward reads two numbers once),
            "portable" or "reference".
        process_group: of the ranks over which ``weight`` (and ``bias``) is sharded by vocabulary,
            in equal parts: rank r holds the ids from ``r * len(weight)`` on (pad the last shard
            with a bias of -inf). Every rank passes the same ``hidden``, and the same ``targets``,
            which are ids of the whole vocabulary. It gets the same results, the whole gradient of
            ``hidden`` and its own of ``weight``. None: ``weight`` is whole.
        screen: None: every logit is exact. "int8": a product of 8-bit integers finds the logits
            that matter, which are computed exactly, and the mass of all others; the target's is
            always exact. A token whose log-prob is not certain to ``logprob_tol`` that way is
            computed exactly, as is a call of few tokens, a vocabulary below 8192, and a batch of
            which most tokens would be. The weight's 8-bit copy (V x D bytes) is kept
            (:func:`~siri_kernels.linear_logprob.release_screens` frees it). "int8" takes backend
            "portable" on a CPU and "triton", no float64 and no process_group. "fp8": 8-bit floats,
            backend "triton". "auto": "int8" where it was measured faster, on a CPU so far, else
            None. See :doc:`docs/screen.md`.
        logprob_tol: with ``screen``, the largest estimated error of a log-prob in nats, > 0.
        screen_check: with ``screen``, whether a few tokens of the call are computed exactly too. If
            one's error exceeds its estimate, the whole call is computed exactly, with a warning,
            once in a process. :func:`~siri_kernels.linear_logprob.take_forward_stats` reports them.

    Returns:
        LogprobOutput: logprobs [...] and entropy [...], in nats, float32 (float64 if ``hidden`` is
        float64), both differentiable once with respect to ``hidden``, ``weight`` and ``bias``.
        Log-probs are never above 0 and keep their relative precision where ``1 - p`` is below the
        rounding of fp32. ``torch.compile`` takes the call as one ``torch.library`` operator and
        breaks no graph. Gradients are accumulated in fp32 and rounded once. Backward skips tokens
        whose incoming gradients are exactly zero, and inputs that need no gradient. A token with a
        NaN gives NaN for itself alone. Runs on the same machine with the same number of threads
        repeat bit for bit.

    Raises:
        TypeError: wrong type or dtype, or ``hidden`` and ``weight`` differ outside autocast.
        ValueError: wrong shape, device or value, a target out of range (checked on a CPU, elsewhere
            under ``SIRI_KERNELS_CHECK=1``), an unknown backend.
        NotImplementedError: double backward.
    """
    screening = (screen, logprob_tol, screen_check) if screen is not None else None
    options = (bias, temperature, softcap, ignore_index, tail, backend, screening, process_group)
    if torch.compiler.is_compiling() and backend != "reference" and process_group is None:
        try:
            return _in_graph(hidden, weight, targets, *options[:-1])
        except (TypeError, ValueError) as error:
            return LogprobOutput(*[refusal(error, targets, hidden, weight)] * 2)
    return _eager(hidden, weight, targets, *options)


@untraced
def _eager(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float | torch.Tensor,
    softcap: float | None,
    ignore_index: int,
    tail: float,
    backend: str | None,
    screening: tuple[str, float, bool] | None,
    process_group: Any,
) -> LogprobOutput:
    backend, gemm_dtype = _backend(hidden, weight, targets, bias, backend)
    rule = check_rule(OP, temperature, softcap, targets, hidden.device)
    shard = None if process_group is None else Shard.of(OP, process_group)
    if shard is not None and backend == "reference":
        raise ValueError(f"{OP}: backend='reference' takes no process_group; 'portable' does")
    shards = 1 if shard is None else shard.size
    ignore_index = check_targets(OP, targets, shards * weight.shape[0], ignore_index)
    tail = check.number(OP, "tail", tail, at_least=0)
    screen = _screen(screening, backend, hidden.device, gemm_dtype, process_group)
    lead = targets.shape
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if backend == "reference":
        with no_autocast(hidden.device):
            rows, weight = rows.to(gemm_dtype), weight.to(gemm_dtype)
            out = reference.linear_logprob(rows, weight, flat, bias, rule, ignore_index)
    else:
        entries = _entries(hidden, weight, bias, tail, backend)
        triton = backend == "triton"
        call = HeadCall(
            *(rows, weight, flat, bias, rule, ignore_index, gemm_dtype, tail, entries, triton),
            shard=shard,
            screen=screen,
        )
        out = LogprobOutput(*LinearLogprob.apply(rows, weight, bias, call))
    return LogprobOutput(out.logprobs.view(lead), out.entropy.view(lead))


def _in_graph(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float | torch.Tensor,
    softcap: float | None,
    ignore_index: int,
    tail: float,
    backend: str | None,
    screening: tuple[str, float, bool] | None,
) -> LogprobOutput:
    """The same, traced by ``torch.compile``: one operator, which checks values when it runs."""
    backend, gemm_dtype = _backend(hidden, weight, targets, bias, backend)
    lead = targets.shape
    if isinstance(temperature, torch.Tensor):
        temperature = tokens_temperature(OP, temperature, targets, hidden.device)
    elif is_number(temperature):
        temperature = numbers_in_graph([temperature])[0]
    else:
        temperature = check.number(OP, "temperature", temperature, above=0)  # raises
    cap = None
    if softcap is not None:
        if not is_number(softcap):
            check.number(OP, "softcap", softcap, above=0)
        cap = numbers_in_graph([softcap])[0]
    if not (is_number(ignore_index) and isinstance(ignore_index, int)):
        ignore_index = check.integer(OP, "ignore_index", ignore_index)
    if not is_number(tail) or not isinstance(
        tail, Real
    ):  # how many entries are saved depends on it
        check.number(OP, "tail", tail, at_least=0)
    screen = _screen(screening, backend, hidden.device, gemm_dtype, None)
    logprobs, entropy, *_ = custom_op.linear_logprob(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1),
        bias,
        temperature,
        cap,
        ignore_index,
        gemm_dtype,
        tail,
        _entries(hidden, weight, bias, tail, backend),
        backend == "triton",
        *(screen or ("", 0.0, False, 0)),
    )
    return LogprobOutput(logprobs.view(lead), entropy.view(lead))


def _screen(
    screening: tuple[str, float, bool] | None,
    backend: str,
    device: torch.device,
    gemm_dtype: torch.dtype,
    process_group: Any,
) -> Screen | None:
    """The screen of the call; None: every logit is exact."""
    if screening is None or not asked_for(OP, *screening):
        return None
    return screen_of(
        *(OP, *screening),
        backend=backend,
        device=device,
        dtype=gemm_dtype,
        process_group=process_group,
    )


def _backend(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    backend: str | None,
) -> tuple[str, torch.dtype]:
    """Checks the tensors; which implementation runs, and the dtype of the product."""
    asked, backend = backend, resolve_backend(OP, backend, hidden)
    gemm_dtype = check_tensors(hidden, weight, targets, bias)
    if backend == "triton" and gemm_dtype == torch.float64:
        if asked is not None:
            raise ValueError(
                f"{OP}: backend='triton' takes bfloat16, float16 and float32; got hidden "
                f"{check.describe(hidden)}; backend=None and 'portable' take float64"
            )
        backend = "portable"
    return backend, gemm_dtype


def _entries(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tail: float,
    backend: str,
) -> int:
    """How many top entries forward saves of each token."""
    if backend == "portable" and weight.device.type != "cpu":
        return 0  # to collect them it reads sizes
    inputs = (hidden, weight, bias)
    needed = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return entries_to_save(len(weight), tail, needed)
