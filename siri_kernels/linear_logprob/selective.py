"""``selective_logprob``: the same results from logits that already exist."""

from __future__ import annotations

import torch

from siri_kernels import _checks as check
from siri_kernels._autograd import untraced
from siri_kernels._backend import resolve_backend
from siri_kernels._compiled import is_number, numbers_in_graph, refusal
from siri_kernels.linear_logprob import custom_op_selective, reference
from siri_kernels.linear_logprob.selective_autograd import OP, SelectiveLogprob
from siri_kernels.linear_logprob.types import LogprobOutput
from siri_kernels.linear_logprob.validate import check_rule, check_targets, tokens_temperature


def selective_logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    ignore_index: int = -100,
    backend: str | None = None,
) -> LogprobOutput:
    """Log-prob of each target and entropy of each distribution, from given logits.

    ``log_softmax(logits / temperature)[target]`` and ``-sum p log p``, without a second tensor of
    the size of the logits but the gradient that backward returns. A logit of -inf is probability 0.

    Args:
        logits: [..., V] bfloat16, float16, float32 or float64, any strides.
        targets: [...] int64, each in 0..V-1 or ``ignore_index``.
        temperature: number > 0, or a tensor of them without gradient: of one element, or [...]
            with 1 in place of any size.
        ignore_index: tokens with this target are masked: results 0, gradients 0.
        backend: None (fastest there is: "triton" on a GPU but for float64, else "portable"),
            "triton", "portable" or "reference".

    Returns:
        LogprobOutput: as :func:`siri_kernels.linear_logprob` gives, with the same precision:
        float32 (float64 for float64 logits), both differentiable once. ``torch.compile`` takes the
        call as one ``torch.library`` operator.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`siri_kernels.linear_logprob`.
    """
    if torch.compiler.is_compiling() and backend != "reference":
        try:
            return _in_graph(logits, targets, temperature, ignore_index, backend)
        except (TypeError, ValueError) as error:
            return LogprobOutput(*[refusal(error, targets, logits)] * 2)
    return _eager(logits, targets, temperature, ignore_index, backend)


def _backend(logits: torch.Tensor, targets: torch.Tensor, backend: str | None) -> str:
    """Checks the tensors; which implementation runs."""
    asked, backend = backend, resolve_backend(OP, backend, logits)
    check.tensor(OP, "logits", logits, holds_values=True)
    check.tensor(OP, "targets", targets)
    check.dtype(OP, "logits", logits)
    check.dtype(OP, "targets", targets, (torch.int64,))
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"{OP}: logits must have shape [..., V] with V >= 1; got {check.describe(logits)}"
        )
    check.device(OP, "targets", targets, "logits", logits.device)
    check.shape(OP, "targets", targets, logits.shape[:-1], "logits.shape[:-1]")
    if backend == "triton" and logits.dtype == torch.float64:
        if asked is not None:
            raise ValueError(
                f"{OP}: backend='triton' takes bfloat16, float16 and float32; got logits "
                f"{check.describe(logits)}; backend=None and 'portable' take float64"
            )
        backend = "portable"
    return backend


@untraced
def _eager(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float | torch.Tensor,
    ignore_index: int,
    backend: str | None,
) -> LogprobOutput:
    backend = _backend(logits, targets, backend)
    rule = check_rule(OP, temperature, None, targets, logits.device)
    ignore_index = check_targets(OP, targets, logits.shape[-1], ignore_index)
    lead = targets.shape
    rows, flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    if backend == "reference":
        out = reference.selective_logprob(rows, flat, rule, ignore_index)
    else:
        triton = backend == "triton"
        out = LogprobOutput(*SelectiveLogprob.apply(rows, flat, rule, ignore_index, triton))
    return LogprobOutput(out.logprobs.view(lead), out.entropy.view(lead))


def _in_graph(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float | torch.Tensor,
    ignore_index: int,
    backend: str | None,
) -> LogprobOutput:
    """The same, traced by ``torch.compile``: one operator, which checks values when it runs."""
    backend = _backend(logits, targets, backend)
    if isinstance(temperature, torch.Tensor):
        temperature = tokens_temperature(OP, temperature, targets, logits.device)
    elif is_number(temperature):
        temperature = numbers_in_graph([temperature])[0]
    else:
        temperature = check.number(OP, "temperature", temperature, above=0)  # raises
    if not (is_number(ignore_index) and isinstance(ignore_index, int)):
        ignore_index = check.integer(OP, "ignore_index", ignore_index)
    logprobs, entropy, _, _ = custom_op_selective.selective_logprob(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        temperature,
        ignore_index,
        backend == "triton",
    )
    return LogprobOutput(logprobs.view(targets.shape), entropy.view(targets.shape))
