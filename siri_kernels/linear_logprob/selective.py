"""``selective_logprob``: the same results from logits that already exist."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels._autograd import refuse_double_backward, untraced
from siri_kernels._backend import resolve_backend
from siri_kernels._compiled import is_number, numbers_in_graph, refusal
from siri_kernels._device import device_of
from siri_kernels.linear_logprob import reference
from siri_kernels.linear_logprob.autograd import active_rows, counted_rows, spread
from siri_kernels.linear_logprob.online_softmax import Fold, finish, gradient_rule, logit_gradient
from siri_kernels.linear_logprob.portable.forward import tile_shape, widened
from siri_kernels.linear_logprob.types import LogitRule, LogprobOutput, SoftmaxStats
from siri_kernels.linear_logprob.validate import check_rule, check_targets, temperature_rows

OP = "selective_logprob"


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
        ignore_index: rows with this target are skipped: results 0, gradients 0.
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
        out = LogprobOutput(*_SelectiveLogprob.apply(rows, flat, rule, ignore_index, triton))
    return LogprobOutput(out.logprobs.view(lead), out.entropy.view(lead))


def _in_graph(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float | torch.Tensor,
    ignore_index: int,
    backend: str | None,
) -> LogprobOutput:
    """The same, traced by ``torch.compile``: one operator, which checks values when it runs."""
    from siri_kernels.linear_logprob import (
        custom_op_selective as compiled_selective,  # which needs this module
    )

    backend = _backend(logits, targets, backend)
    if isinstance(temperature, torch.Tensor):
        temperature = temperature_rows(OP, temperature, targets, logits.device)
    elif is_number(temperature):
        temperature = numbers_in_graph([temperature])[0]
    else:
        temperature = check.number(OP, "temperature", temperature, above=0)  # says what is wrong
    if not (is_number(ignore_index) and isinstance(ignore_index, int)):
        ignore_index = check.integer(OP, "ignore_index", ignore_index)
    logprobs, entropy, _, _ = compiled_selective.selective_logprob(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        temperature,
        ignore_index,
        backend == "triton",
    )
    return LogprobOutput(logprobs.view(targets.shape), entropy.view(targets.shape))


class _Blocks:
    """Widened logits of a block of rows and a tile of ids, divided by the temperature."""

    def __init__(self, logits: torch.Tensor, rule: LogitRule, index: torch.Tensor | None) -> None:
        self.logits, self.rule = logits, rule
        rows, self.ids = tile_shape(logits.shape[1], logits.device)
        if index is None:
            index = torch.arange(len(logits), dtype=torch.int64, device=logits.device)
        self.rows = index.split(rows) if len(index) else ()
        self.acc = widened(logits.dtype)

    def tiles(self, rows: torch.Tensor) -> Any:
        rule = self.rule.rows(rows)
        for start in range(0, self.logits.shape[1], self.ids):
            tile = self.logits[:, start : start + self.ids].index_select(0, rows).to(self.acc)
            if isinstance(rule.temperature, torch.Tensor):
                tile.div_(rule.temperature[:, None])
            elif rule.temperature != 1.0:
                tile.div_(rule.temperature)
            yield start, tile


def forward_of(
    logits: torch.Tensor, targets: torch.Tensor, rule: LogitRule, ignore_index: int, triton: bool
) -> SoftmaxStats:
    """Statistics of every row of [T, V], 0 where the target is ``ignore_index``."""
    counted = targets != ignore_index
    if triton:
        from siri_kernels.linear_logprob.triton import (
            selective as launch_selective,  # imports Triton
        )

        with device_of(logits):
            stats = launch_selective.forward(_rows_in_one_piece(logits), targets, rule)
        return spread(stats, None, counted)
    blocks = _Blocks(logits, rule, counted_rows(counted))
    stats = SoftmaxStats(*(logits.new_zeros(len(logits), dtype=blocks.acc) for _ in range(4)))
    for rows in blocks.rows:
        fold = Fold(targets[rows], blocks.acc)
        for start, tile in blocks.tiles(rows):
            fold.add(tile, start, torch.empty_like(tile))
        for whole, part in zip(stats, finish(fold.state()), strict=True):
            whole[rows] = part
    for whole in stats:
        whole.masked_fill_(~counted, 0)
    return stats


def gradient_of(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    ignore_index: int,
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    triton: bool,
) -> torch.Tensor:
    """Gradient of [T, V] logits, contiguous."""
    counted = targets != ignore_index
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(stats.logprobs)
    if triton:
        from siri_kernels.linear_logprob.triton import selective as launch_selective

        with device_of(logits):
            return launch_selective.backward(
                _rows_in_one_piece(logits),
                targets,
                rule,
                counted,
                stats,
                grad_logprobs,
                grad_entropy,
            )
    blocks = _Blocks(logits, rule, active_rows(counted, grad_logprobs, grad_entropy))
    grad = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    for rows in blocks.rows:
        row_rule = gradient_rule(
            SoftmaxStats(*(s[rows] for s in stats)),
            grad_logprobs[rows],
            None if grad_entropy is None else grad_entropy[rows],
            rule.rows(rows).temperature,
        )
        for start, tile in blocks.tiles(rows):
            scratch = torch.empty_like(tile)
            dz = logit_gradient(tile, targets[rows], start, row_rule, scratch)
            grad[:, start : start + tile.shape[1]].index_copy_(0, rows, dz.to(grad.dtype))
    return grad


def _rows_in_one_piece(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


class _SelectiveLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        rule: LogitRule,
        ignore_index: int,
        triton: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.rule, ctx.ignore_index, ctx.triton = rule, ignore_index, triton
        stats = forward_of(logits, targets, rule, ignore_index, triton)
        ctx.save_for_backward(logits, targets, *stats)
        return stats.logprobs, stats.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        logits, targets, *saved = ctx.saved_tensors
        with torch.no_grad():
            grad = gradient_of(
                logits,
                targets,
                ctx.rule,
                ctx.ignore_index,
                SoftmaxStats(*saved),
                upstream[0],
                upstream[1],
                ctx.triton,
            )
        return refuse_double_backward(OP, (grad, *[None] * 4), (logits, *upstream))
