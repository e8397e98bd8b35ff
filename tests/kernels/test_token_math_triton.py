"""The kernels over tokens against the formulas in float64, on drawn statistics and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from siri_kernels.linear_logprob import online_softmax
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.error_bound import EntrySums, left_out, within_bound
from siri_kernels.linear_logprob.online_softmax import SoftmaxState
from siri_kernels.linear_logprob.top_entries import LOG_EPS, TopEntries
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats

from .interpreter import DEVICE, direct

pytestmark = direct
IGNORED = -100


def call_of(targets, temperature, vocabulary=50):
    weight = torch.zeros(vocabulary, 1, device=DEVICE)
    hidden = torch.zeros(len(targets), 1, device=DEVICE)
    rule = LogitRule(temperature)
    return HeadCall(
        hidden, weight, targets, None, rule, IGNORED, torch.float32, 1e-2, 16, triton=True
    )


def temperature_of(kind, tokens):
    return 0.6875 if kind == "number" else 0.3 + torch.rand(tokens, device=DEVICE)


def targets_of(tokens):
    targets = torch.randint(50, (tokens,), device=DEVICE)
    targets[torch.rand(tokens, device=DEVICE) < 0.2] = IGNORED
    return targets


def in_float64(values):
    return [v.double() if isinstance(v, torch.Tensor) else v for v in values]


@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_statistics(kind):
    from siri_kernels.linear_logprob.triton.token_math import finish

    torch.manual_seed(int(kind == "number"))
    tokens = 1000
    spread = 10 ** torch.empty(tokens, device=DEVICE).uniform_(-6, 4)
    top = torch.randn(tokens, device=DEVICE) * spread
    target = top + torch.randn(tokens, device=DEVICE) * 10 ** torch.empty_like(top).uniform_(-4, 3)
    target[:20], top[20:40] = float("-inf"), float("-inf")
    total = 10 ** torch.empty_like(top).uniform_(0, 4)
    dev = -total * torch.rand_like(top) * 5
    total[20:40], dev[20:40] = 0, 0
    targets, temperature = targets_of(tokens), temperature_of(kind, tokens)
    got = finish(call_of(targets, temperature), SoftmaxState(target, top, total, dev))
    state = SoftmaxState(*in_float64([target, top, total, dev]))
    cool = temperature.double() if isinstance(temperature, torch.Tensor) else temperature
    wanted = SoftmaxStats(*in_float64(online_softmax.finish(state, cool)))
    shown = targets != IGNORED
    assert all((x[~shown] == 0).all() for x in got)
    # Relative, however close to 0 a log-prob is.
    for a, b in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(a.double()[shown], b[shown], rtol=4e-7, atol=1e-37)
    # Their sum, divided by the temperature, is right to the last digit of the largest logit.
    lse = got.max.double() / cool + got.log_sum.double()
    exact = wanted.max / cool + wanted.log_sum
    error = (lse - exact)[shown]
    fine = (wanted.max / cool).abs()[shown] * 2**-23 + 2**-40
    assert ((error.abs() <= fine) | exact[shown].isinf()).all()
    error = (got.log_sum - wanted.log_sum).abs()[shown]
    assert (error <= 2**-22 * wanted.log_sum.abs()[shown] + 1e-12).all()


@pytest.mark.parametrize("which", ["logprobs", "entropy", "both"])
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_error_bound(which, kind):
    from siri_kernels.linear_logprob.triton import token_math

    torch.manual_seed(len(which) + len(kind))
    tokens, most, vocabulary = 300, 16, 50
    targets, temperature = targets_of(tokens), temperature_of(kind, tokens)
    logits = torch.randn(tokens, vocabulary, dtype=torch.float64, device=DEVICE)
    logits *= 10 ** torch.empty(tokens, 1, dtype=torch.float64, device=DEVICE).uniform_(-0.5, 1.6)
    cool = temperature.double()[:, None] if isinstance(temperature, torch.Tensor) else temperature
    log_p = (logits / cool).log_softmax(1)
    column = targets.clamp(min=0)[:, None]
    top = logits.amax(1)
    log_sum = ((logits - top[:, None]) / cool).logsumexp(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    exact = SoftmaxStats(log_p.gather(1, column)[:, 0], entropy, top, log_sum)
    stats = SoftmaxStats(*(x.float() for x in exact))
    # As forward saves them: in the order of ids, without the target.
    keep = (log_p >= LOG_EPS).scatter_(1, column, False)
    found = keep.sum(1).int()
    ids = torch.zeros(tokens, most, dtype=torch.int32, device=DEVICE)
    saved = torch.zeros(tokens, most, dtype=torch.float32, device=DEVICE)
    chosen = torch.zeros_like(keep)
    for t in range(tokens):
        some = keep[t].nonzero()[:most, 0]
        ids[t, : len(some)], saved[t, : len(some)] = some.int(), logits[t, some].float()
        chosen[t, some] = True
    upstream = [torch.randn(tokens, device=DEVICE) for _ in range(2)]
    for grad in upstream:
        grad[torch.rand(tokens, device=DEVICE) < 0.3] = 0
    upstream[0][0], upstream[1][1] = float("nan"), float("inf")
    if which != "both":
        upstream[which == "logprobs"] = None
    call = call_of(targets, temperature)
    top_entries = TopEntries(ids, saved, found)
    got = token_math.token_gradients(call, stats, top_entries, tuple(upstream))
    split = token_math.split(call, stats, top_entries, tuple(upstream), got)

    active = torch.zeros(tokens, dtype=torch.bool, device=DEVICE)
    for grad in upstream:
        if grad is not None:
            active |= grad != 0
    active &= targets != IGNORED
    assert torch.equal(got.active.bool(), active)
    first = torch.zeros(tokens, device=DEVICE) if upstream[0] is None else upstream[0]
    second = None if upstream[1] is None else upstream[1].double()
    rule = online_softmax.gradient_rule(
        SoftmaxStats(*in_float64(stats)), first.double(), second,
        cool[:, 0] if isinstance(cool, torch.Tensor) else cool,
    )  # fmt: skip
    slope = None if rule.slope is None else rule.slope * math.log(2)
    for a, b in zip(got.rule[1:], (rule.at_target, rule.offset, slope), strict=True):
        if b is not None:
            torch.testing.assert_close(a.double(), b, rtol=3e-7, atol=1e-12, equal_nan=True)
    p = log_p.exp() * chosen
    y = (logits - top[:, None]) / cool
    by = rule.offset[:, None] + (0 if rule.slope is None else rule.slope[:, None] * y)
    size = (y.exp() * by).abs().where(chosen, 0).sum(1)
    sums = EntrySums(
        p.sum(1), (-p * log_p).where(chosen, 0).sum(1), size + rule.at_target.abs(),
        (found > most).double(),
    )  # fmt: skip
    # A row of sums is 0 for tokens without a gradient.
    for row, wanted in zip(got.sums, sums[:3], strict=False):
        wanted = wanted.where(active, 0)
        torch.testing.assert_close(row.double(), wanted, rtol=2e-5, atol=1e-6, equal_nan=True)
    mass, cost = left_out(
        SoftmaxStats(*in_float64(stats)), EntrySums(*got.sums.double()), first.double(), second,
        cool[:, 0] if isinstance(cool, torch.Tensor) else cool,
    )  # fmt: skip
    cost = cost.masked_fill(~active, 0)
    norm = got.sums[2].double()
    within = within_bound(cost, norm, active.sum().clamp(min=1), call.tail) & active
    # float64's left_out allows for float64's roundings: such tokens may fall on either side.
    limit = call.tail * norm.where(norm.isfinite(), 0).sum() / active.sum()
    clear = (cost / limit - 1).abs() > 1e-3
    length = torch.where(within, found.clamp(max=most).long() + 1, 0)
    assert within.any() and (active & ~within).any() and clear.float().mean() > 0.95
    assert torch.equal(split.lengths[clear], length[clear])
    assert torch.equal(split.stops, split.lengths.cumsum(0))
    dense = active & (split.lengths == 0)
    number, recomputed, entries, most_mass = split.report.tolist()
    assert number == active.sum() and recomputed == dense.sum()
    assert torch.equal(split.dense[: int(recomputed)], dense.nonzero()[:, 0])
    assert entries == split.lengths.sum()
    sparse = split.lengths > 0
    assert most_mass == pytest.approx(float(mass[sparse].max()), rel=1e-3, abs=1e-6)
