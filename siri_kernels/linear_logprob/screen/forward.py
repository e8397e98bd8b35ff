"""Forward with a screen, in PyTorch on a CPU.

First a thousand logits of a few tokens are computed: they say whether most tokens can be screened
at all. With a wide softmax they cannot, and the call is an exact one that has lost next to nothing.
After the screen one exact product computes the tokens whose errors are not known to be small, and
the few tokens that are checked.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import finish
from siri_kernels.linear_logprob.portable.forward import exact_statistics, logits_of
from siri_kernels.linear_logprob.portable.products import product
from siri_kernels.linear_logprob.screen import compiled
from siri_kernels.linear_logprob.screen.estimate import (
    Estimate,
    estimate,
    expected_error,
    logit_deviation,
)
from siri_kernels.linear_logprob.screen.kept import kept_screen
from siri_kernels.linear_logprob.screen.options import Screen, integer_products_are_exact
from siri_kernels.linear_logprob.screen.quantise import ScreenedWeight, quantised
from siri_kernels.linear_logprob.screen.rotation import rotated, rotated_width
from siri_kernels.linear_logprob.screen.running import (
    IDS,
    LEAST,
    PLACES,
    SPARSENESS,
    Candidates,
    Ids,
    Running,
    Tokens,
)
from siri_kernels.linear_logprob.screen.stats import report, warn
from siri_kernels.linear_logprob.tokens import spread, unmasked_tokens
from siri_kernels.linear_logprob.top_entries import MOST_ENTRIES, TopEntries
from siri_kernels.linear_logprob.types import SoftmaxStats

_TOKENS = 1024  # screened together: their candidates are in memory at a time
_BLOCK = 256  # tokens of an integer product: its results stay in a core's second cache
_MOST_CHECKED = 32
_TOKENS_SEEN, _IDS_SEEN = 64, 1024  # of the first look at a batch
_GATHERED = 2048  # rows of the weight gathered at a time
# A screen takes 0.4 of the exact product's time, and that of 64 exact tokens, which it checks. It
# does not pay for a smaller share of tokens that can be screened, even once it has begun.
_LEAST_SHARE, _FIXED_TOKENS = 0.4, 64
# What rounding to 8 bits changes in rows of normal numbers, hidden states and weight together, as a
# share of their norms.
_USUAL_DEVIATION = 0.0106

_CPU = torch.device("cpu")  # whatever the default device is


def forward(call: HeadCall) -> tuple[SoftmaxStats, TopEntries | None]:
    """Statistics of every token, 0 where masked, and the top entries of the unmasked tokens.

    Args:
        call: with a screen, on a CPU, without a shard.
    """
    screen = call.screen
    assert screen is not None
    unmasked = call.unmasked()
    index = unmasked_tokens(unmasked)
    call = call.select(index)
    results = _Results(call)
    _compute(call, screen, results)
    return spread(results.stats, index, unmasked), results.top


class _Results:
    """Statistics and top entries of T tokens, filled in part by part.

    Args:
        call: of the tokens.
    """

    def __init__(self, call: HeadCall) -> None:
        tokens, like = len(call.hidden), call.hidden
        self.stats = SoftmaxStats(
            *(like.new_zeros(tokens, dtype=call.accumulator) for _ in range(4))
        )
        self.top = None
        if call.entries:
            self.top = TopEntries.empty(tokens, call.entries, like, call.accumulator)
        self.done = torch.zeros(tokens, dtype=torch.bool, device=_CPU)

    def put(self, index: torch.Tensor, stats: SoftmaxStats, top: TopEntries | None) -> None:
        """The results of the tokens ``index``; a mass of ids is added."""
        if len(index) == len(self.done):
            dtype = self.stats.logprobs.dtype
            self.stats, self.top = SoftmaxStats(*(s.to(dtype) for s in stats)), top
            self.done.fill_(True)
            return
        for mine, theirs in zip(self.stats, stats, strict=True):
            mine[index] = theirs.to(mine.dtype)
        if self.top is not None and top is not None:
            for mine, theirs in zip(self.top[:3], top[:3], strict=True):
                mine[index] = theirs
            if top.mass is not None:
                mass = top.mass if self.top.mass is None else self.top.mass + top.mass
                self.top = self.top._replace(mass=mass)
        self.done[index] = True


def _compute(call: HeadCall, screen: Screen, results: _Results) -> None:
    tokens = len(call.hidden)
    screened = None
    checked = torch.zeros(tokens, dtype=torch.bool, device=_CPU)
    if screen.pays(tokens, len(call.weight)) and integer_products_are_exact():
        seen = _evenly(tokens, min(_TOKENS_SEEN, max(16, tokens // 8)))
        if _mostly_fits(call.select(seen), screen.tolerance, tokens):
            copy = kept_screen(call.weight, call.gemm_dtype)
            if copy.suited:
                screened = _screened(call, copy, screen, results)
                some = _evenly(tokens, min(_MOST_CHECKED, max(8, tokens // 32)))
                checked[some] = screen.checked
    # One exact product for what could not be screened and what is checked: it reads all the weight.
    done = results.done & ~checked
    exact = (~done).nonzero()[:, 0]
    error, failed, most = None, False, 0.0
    if len(exact) or not tokens:
        every = len(exact) == tokens
        stats, top = exact_statistics(call if every else call.select(exact))
        if screened is not None and screen.checked:
            error, failed = _compared(stats, *(x[exact] for x in (checked, *screened)))
        results.put(exact, stats, top)
    if failed:
        warn(error)
        left = done.nonzero()[:, 0]
        results.put(left, *exact_statistics(call.select(left)))
        done.fill_(False)
    if screened is not None and bool(done.any()):
        most = float(screened[1][done].max())
    if tokens:
        report(tokens, int(done.sum()), most, error, failed)


def _numbers(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int64, device=_CPU)


def _evenly(total: int, count: int) -> torch.Tensor:
    """``count`` different numbers of 0..total-1, evenly spread."""
    return (_numbers(count) * total + total // 2) // count


def _mostly_fits(call: HeadCall, tolerance: float, tokens: int) -> bool:
    """Whether most tokens like these can probably be screened, from a thousand ids.

    Args:
        call: of the tokens.
        tolerance: of the screen.
        tokens: number of all tokens.
    """
    every = max(1, len(call.weight) // _IDS_SEEN)
    ids = torch.arange(0, len(call.weight), every, dtype=torch.int64, device=_CPU)
    rows = call.weight[::every].to(call.gemm_dtype).float()
    exact = call.hidden.to(call.gemm_dtype).float()
    raw = product(exact, rows.t(), None)
    numbers = _numbers(len(exact))
    row = numbers.repeat_interleave(len(ids))
    z = logits_of(raw.view(-1), row, ids.repeat(len(exact)), call).view(raw.shape)
    z.masked_fill_(ids == call.targets[:, None], float("-inf"))
    target = _exact_logits(exact, numbers, call.targets, call)
    total = torch.logaddexp(z.logsumexp(1) + math.log(every), target)
    share = z.sub_(total[:, None]).exp_()
    small = share < LEAST
    found = every * (~small).sum(1)
    mass = every * share.where(small, 0).sum(1)
    spread = (rows - rows.mean(0)).square().sum(1).mean().sqrt()
    deviation = _USUAL_DEVIATION * exact.norm(dim=1) * spread / exact.shape[1] ** 0.5
    error = expected_error(mass.double(), _cooled(deviation, call).double())
    # A token with more than MOST_ENTRIES can be screened, but backward computes it once more.
    fits = (found <= MOST_ENTRIES) & (found + mass / (SPARSENESS * LEAST) <= 0.75 * PLACES)
    fits &= error <= tolerance
    return float(fits.float().mean()) >= _LEAST_SHARE + _FIXED_TOKENS / tokens


def _cooled(values: torch.Tensor, call: HeadCall) -> torch.Tensor:
    temperature = call.rule.temperature
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(values.dtype)
    return values / temperature


def _screened(
    call: HeadCall, copy: ScreenedWeight, screen: Screen, results: _Results
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Screens all tokens; those within the tolerance are done.

    Returns:
        Log-probs [T], float64; their estimated errors [T], infinity where they are not known; the
        distance by rounding [T] of exact logits from float64's.
    """
    tokens = len(call.hidden)
    logprobs = torch.zeros(tokens, dtype=torch.float64, device=_CPU)
    errors = torch.full_like(logprobs, float("inf"))
    rounding = torch.zeros_like(logprobs)
    start = 0
    while start < tokens:
        # The first part is small: if few of its tokens can be screened, the others are not.
        index = start + _numbers(min(_TOKENS if start else _BLOCK, tokens - start))
        part = call.select(index)
        out, top, rounding[index] = _screen_part(part, copy, screen)
        stats = finish(out.state)
        stats = stats._replace(entropy=stats.entropy.clamp(min=0))  # as the exact one
        logprobs[index], errors[index] = stats.logprobs, out.error
        good = out.error <= screen.tolerance
        if top is not None:
            top = top.select(good)
        results.put(index[good], SoftmaxStats(*(s[good] for s in stats)), top)
        start += len(index)
        if float(results.done[:start].float().mean()) < _LEAST_SHARE:
            break
    return logprobs, errors, rounding


def _compared(
    stats: SoftmaxStats,
    checked: torch.Tensor,
    logprobs: torch.Tensor,
    errors: torch.Tensor,
    rounding: torch.Tensor,
) -> tuple[float | None, bool]:
    """The largest error of checked tokens, and whether one exceeds its estimate.

    Args:
        stats: exact ones.
        checked: [T] bool, which of the tokens are checked.
        logprobs: their screened ones.
        errors: their estimates; a token without one counts for nothing.
        rounding: of their exact logits.
    """
    known = checked & errors.isfinite()
    if not bool(known.any()):
        return None, False
    exact = stats.logprobs[known].double()
    error = (logprobs[known] - exact).abs()
    error.masked_fill_(logprobs[known] == exact, 0)  # both may be -inf
    # The exact ones are rounded to fp32 too, they and the logits that they come from.
    size = 1 + exact.abs() + stats.max[known].double().abs()
    allowed = errors[known] + 4 * (rounding[known] + torch.finfo(torch.float32).eps * size)
    return float(error.max()), bool((error > allowed).any())


class _Part(NamedTuple):
    """The hidden states of T tokens as a screen takes them.

    Attributes:
        exact: [T, D] float32.
        codes: [T, D] int8, rotated.
        deviation: [T] of a screened logit's error, after the temperature.
        rounding: [T] of an exact one's in fp32, the same.
    """

    exact: torch.Tensor
    codes: torch.Tensor
    deviation: torch.Tensor
    rounding: torch.Tensor


def _screen_part(
    call: HeadCall, copy: ScreenedWeight, screen: Screen
) -> tuple[Estimate, TopEntries | None, torch.Tensor]:
    """Screens tokens and computes their candidates exactly.

    Returns:
        What is known of them, their top entries, and the rounding [T] of their exact logits.
    """
    part, tokens = _tokens(call, copy)
    running = (Running if compiled.library() is None else compiled.CompiledRunning)(tokens)
    bias = None
    if call.bias is not None:  # the loops in C read its memory
        bias = call.bias.to(torch.float32).resolve_neg().contiguous()
    if len(copy.outliers):
        rows = call.weight.index_select(0, copy.outliers).to(call.gemm_dtype).float()
        raw = product(part.exact, rows.t(), None)
        row = _numbers(len(raw)).repeat_interleave(len(rows))
        ids = copy.outliers.repeat(len(raw))
        running.add_outliers(
            logits_of(raw.view(-1), row, ids, call).view(len(raw), -1), copy.outliers
        )
        bias = torch.zeros_like(copy.scale) if bias is None else bias.clone()
        bias[copy.outliers] = float("-inf")
    out = torch.empty(_BLOCK * IDS, dtype=torch.int32, device=_CPU)
    for start in range(0, len(copy.codes), IDS):
        stop = min(start + IDS, len(copy.codes))
        ids_of = Ids(start, copy.scale[start:stop], None if bias is None else bias[start:stop])
        tile = copy.codes[start:stop].t()
        for first in range(0, len(part.codes), _BLOCK):
            rows = part.codes[first : first + _BLOCK]
            products = out[: len(rows) * (stop - start)].view(len(rows), -1)
            torch._int_mm(rows, tile, out=products)
            running.add(products, slice(first, first + len(rows)), ids_of)
    found = running.candidates()
    exact = _exact_logits(part.exact, found.row, found.id, call)
    result = estimate(running, found, exact, part.deviation)
    good = result.error <= screen.tolerance
    return result, _top_entries(call, found, exact, result, good), part.rounding


def _tokens(call: HeadCall, copy: ScreenedWeight) -> tuple[_Part, Tokens]:
    """The tokens in 8 bits, and what their logits are made of."""
    exact = call.hidden.to(call.gemm_dtype).float().resolve_neg().contiguous()
    norm = exact.norm(dim=1)
    rows = quantised(rotated(exact))
    width = rotated_width(exact.shape[1])
    deviation = logit_deviation(rows.error, norm, copy.error, copy.norm, width)
    cooling = _cooled(torch.ones_like(norm), call)
    numbers = _numbers(len(exact))
    tokens = Tokens(
        rows.scale,
        (exact.double() @ copy.mean.double()).float(),
        cooling,
        call.rule.softcap,
        call.targets,
        _exact_logits(exact, numbers, call.targets, call),
    )
    rounding = torch.finfo(torch.float32).eps * copy.largest * norm.double()
    part = _Part(exact, rows.codes, _cooled(deviation, call), _cooled(rounding, call))
    return part, tokens


def _exact_logits(
    exact: torch.Tensor, row: torch.Tensor, ids: torch.Tensor, call: HeadCall
) -> torch.Tensor:
    """[N] logits of single entries, float32.

    Args:
        exact: [T, D] hidden states as the product takes them, float32.
        row: [N] int64 tokens.
        ids: [N] int64.
        call: of the tokens.
    """
    raw = None
    if call.gemm_dtype in (torch.float32, call.weight.dtype):
        raw = compiled.dots(exact, call.weight, row, ids)
    if raw is None:
        raw = exact.new_empty(len(row))
        for start in range(0, len(row), _GATHERED):
            span = slice(start, start + _GATHERED)
            rows = call.weight.index_select(0, ids[span]).to(call.gemm_dtype).float()
            raw[span] = rows.mul_(exact.index_select(0, row[span])).sum(1)
    return logits_of(raw, row, ids, call)


def _top_entries(
    call: HeadCall,
    found: Candidates,
    exact: torch.Tensor,
    result: Estimate,
    good: torch.Tensor,
) -> TopEntries | None:
    """The top entries as forward saves them, and the mass of ids of the tokens ``good``."""
    if not call.entries:
        return None
    top = TopEntries.empty(len(call.hidden), call.entries, call.hidden, call.accumulator)
    row = found.row[result.saved]
    count = torch.bincount(row, minlength=len(call.hidden))
    place = _numbers(len(row)) - (count.cumsum(0) - count)[row]
    fits = count[row] <= call.entries
    at = (row * call.entries + place)[fits]
    top.ids.view(-1)[at] = found.id[result.saved][fits].int()
    top.logits.view(-1)[at] = exact[result.saved][fits]
    top.found.copy_(count)
    mass = result.mass.where(good[found.row], 0)
    total = mass.new_zeros(len(call.weight)).index_add_(0, found.id, mass)
    return top._replace(mass=total.to(top.logits.dtype))
