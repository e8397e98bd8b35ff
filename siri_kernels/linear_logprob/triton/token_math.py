"""Launches of the kernels over tokens: what is computed once a token, not for each logit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton

from siri_kernels._launch import launch
from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import GradientRule, SoftmaxState
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments, token_kernels
from siri_kernels.linear_logprob.triton.arguments import pointer
from siri_kernels.linear_logprob.types import SoftmaxStats, Upstream


def rows_of(count: int, tokens: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """``count`` tensors [tokens] float32, uninitialised, each at a multiple of 16 bytes.

    Kernels are compiled anew for pointers that are not.

    Args:
        count: of tensors.
        tokens: T.
        device: of the tensors.
    """
    padded = (tokens + 3) // 4 * 4
    return torch.empty(count, padded, dtype=torch.float32, device=device)[:, :tokens].unbind()


def finish(call: HeadCall, state: SoftmaxState) -> SoftmaxStats:
    """The softmax's statistics, after the last tile; 0 where masked.

    Args:
        call: as :func:`siri_kernels.linear_logprob.triton.arguments.prepared` gives it.
        state: contiguous [T], before the temperature.
    """
    total, block, temperature = len(state.sum), token_kernels.TOKENS, call.rule.temperature
    stats = SoftmaxStats(*rows_of(4, total, state.sum.device))
    if total:
        launch(
            token_kernels.statistics_kernel, (triton.cdiv(total, block),),
            *state, call.targets, temperature, *stats, total, call.ignore_index,
            PER_ROW=isinstance(temperature, torch.Tensor), BLOCK=block,
        )  # fmt: skip
    return stats


class TokenGradients(NamedTuple):
    """Each token's part in backward, before a logit is touched.

    Attributes:
        rule: how a token's logits become their gradient.
        active: [T] int8, 1 for a token with a gradient.
        head: [T] gradient of the target's raw logit, 0 if the target is in another shard; None
            without top entries.
        sums: [4, T] the fields of ``error_bound.EntrySums``; None without top entries.
    """

    rule: GradientRule
    active: torch.Tensor
    head: torch.Tensor | None
    sums: torch.Tensor | None


def token_gradients(
    call: HeadCall, stats: SoftmaxStats, top: TopEntries | None, upstream: Upstream
) -> TokenGradients:
    """The tokens' gradient rules, and the sums over their top entries.

    Args:
        call: as :func:`siri_kernels.linear_logprob.triton.arguments.prepared` gives it.
        stats: of the tokens.
        top: of the tokens, or None.
        upstream: gradients [T] of the log-probs and of the entropy, contiguous; None: 0.
    """
    (grad_logprobs, grad_entropy), total = upstream, len(stats.max)
    device, temperature = stats.max.device, call.rule.temperature
    at_target, offset, slope = rows_of(3, total, device)
    active = torch.empty(total, dtype=torch.int8, device=device)
    head = sums = None
    most = 16 if top is None else top.ids.shape[1]
    if top is not None:
        head = torch.empty(total, dtype=torch.float32, device=device)
        sums = torch.empty(4, total, dtype=torch.float32, device=device)
    if total:
        launch(
            token_kernels.rule_kernel, (total,),
            stats.logprobs, stats.entropy, stats.max, stats.log_sum, call.targets,
            pointer(grad_logprobs, offset), pointer(grad_entropy, offset), temperature,
            arguments.scale(call), offset if top is None else top.logits,
            active if top is None else top.found, active, at_target, offset, slope,
            pointer(head, offset), pointer(sums, offset), total, call.ignore_index,
            len(call.weight), most, arguments.softcap(call)[1],
            LOGPROBS=grad_logprobs is not None, ENTROPY=grad_entropy is not None,
            TOP_ENTRIES=top is not None,
            BLOCK=min(token_kernels.ENTRIES, triton.next_power_of_2(most)),
            num_warps=1 if top is None else 4,
            **arguments.rule_constants(call),
        )  # fmt: skip
    rule = GradientRule(stats.max, at_target, offset, None if grad_entropy is None else slope)
    return TokenGradients(rule, active, head, sums)


class Split(NamedTuple):
    """Which tokens come from their top entries, and which are recomputed.

    Attributes:
        stops: [T] int64, where each token's entries end.
        lengths: [T] int64, how many entries each token has, the target's included; 0 for a token
            that is recomputed or has no gradient.
        dense: [T] int64, the tokens to recompute, as many as there are.
        report: [4] float64: tokens with a gradient, tokens to recompute, entries of the others, and
            the largest probability mass left out of one of them.
    """

    stops: torch.Tensor
    lengths: torch.Tensor
    dense: torch.Tensor
    report: torch.Tensor


def split(
    call: HeadCall,
    stats: SoftmaxStats,
    top: TopEntries | None,
    upstream: Upstream,
    tokens: TokenGradients,
) -> Split:
    """Applies the error bound to every token.

    Args:
        call: as for :func:`token_gradients`, and so on.
        stats: the same.
        top: the same.
        upstream: the same.
        tokens: what that function returned, with the sums of all shards.
    """
    (grad_logprobs, grad_entropy), total = upstream, len(stats.max)
    device = stats.max.device
    stops, lengths, dense = torch.empty(3, total, dtype=torch.int64, device=device).unbind()
    out = Split(stops, lengths, dense, torch.empty(4, dtype=torch.float64, device=device))
    launch(
            token_kernels.split_kernel, (1,),
        stats.logprobs, stats.entropy, pointer(grad_logprobs, stats.max),
        pointer(grad_entropy, stats.max), call.rule.temperature, tokens.active,
        pointer(tokens.sums, stats.max), tokens.active if top is None else top.found, *out, total,
        16 if top is None else top.ids.shape[1], call.tail, top_entries.LOG_EPS,
        LOGPROBS=grad_logprobs is not None, ENTROPY=grad_entropy is not None,
        TOP_ENTRIES=top is not None, PER_ROW=isinstance(call.rule.temperature, torch.Tensor),
        BLOCK=token_kernels.SPLIT_TOKENS, num_warps=16,
    )  # fmt: skip
    return out


def reading(report: torch.Tensor) -> Callable[[], list[int]]:
    """Begins to copy ``report`` to the host; the result waits for it and returns two counts.

    What is launched in between keeps the GPU busy while the host waits. It is the only wait of a
    call.

    Args:
        report: of :class:`Split`.

    Returns:
        A function for the number of tokens to recompute and of entries of the others.
    """
    if not report.is_cuda:
        return lambda: [int(x) for x in report[1:3].tolist()]
    host = torch.empty(4, dtype=torch.float64, device="cpu", pin_memory=True)
    host.copy_(report, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def counts() -> list[int]:
        copied.synchronize()
        return [int(x) for x in host[1:3].tolist()]

    return counts
