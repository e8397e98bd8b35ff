"""The error of screened log-probs on drawn batches: within the tolerance, as estimated."""

from __future__ import annotations

import pytest
import torch

from siri_kernels import linear_logprob, take_forward_stats

from .screen_inputs import KINDS, drawn, screen_all, small_calls_too

TOLERANCE = 1e-4


def float64(value):
    return value.double() if isinstance(value, torch.Tensor) else value


def errors_beyond_rounding(hidden, weight, targets, given, **options):
    """[T] errors of the log-probs, less what fp32 rounds; and the call's statistics."""
    h, w = hidden.double(), weight.double()
    exact = {key: float64(value) for key, value in given.items()}
    want = linear_logprob(h, w, targets, backend="reference", **exact).logprobs
    take_forward_stats()
    got = linear_logprob(hidden, weight, targets, screen="int8", **options, **given)
    temperature = torch.as_tensor(exact.get("temperature", 1.0)).view(-1)
    raw = h @ w.t()
    if "bias" in exact:
        raw += exact["bias"].masked_fill(exact["bias"].isinf(), 0)
    size = raw.abs().amax(1) + h.norm(dim=1) * w.norm(dim=1).square().mean().sqrt()
    rounding = 16 * 2.0**-24 * (1 + size / temperature)
    error = (got.logprobs - want).abs().masked_fill(got.logprobs == want, 0)
    assert not error.isnan().any()
    return error - rounding, take_forward_stats()


def worst_of(count, first, monkeypatch, everything):
    """Draws batches of all kinds in turn; tokens beyond the tolerance, of how many."""
    small_calls_too(monkeypatch)
    if everything:
        screen_all(monkeypatch)
    tokens = screened = beyond = 0
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        *inputs, given = drawn(kind, first + number)
        error, stats = errors_beyond_rounding(
            *inputs, given, logprob_tol=TOLERANCE, screen_check=number % 2 == 0
        )
        assert error.max() <= 10 * TOLERANCE, f"{kind} {first + number}: {error.max():.1e}"
        beyond += int((error > TOLERANCE).sum())
        tokens += len(error)
        screened += stats.screened_frac * len(error)
        assert stats.estimate_failed == 0, f"{kind} {first + number}: {stats}"
    print(f"{tokens} tokens, {screened / tokens:.2f} of them screened, {beyond} beyond {TOLERANCE}")
    assert screened > 0.4 * tokens
    return beyond, tokens


@pytest.mark.parametrize("everything", [False, True], ids=["where it pays", "everywhere"])
def test_errors_stay_within_the_tolerance(monkeypatch, everything):
    first = int(torch.randint(2**31, (1,)))
    beyond, tokens = worst_of(5 * len(KINDS), first, monkeypatch, everything)
    assert beyond <= 1e-3 * tokens


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_errors_of_4200_batches_stay_within_the_tolerance(monkeypatch, seed):
    beyond, tokens = worst_of(100 * len(KINDS), 10**6 * (seed + 1), monkeypatch, True)
    assert beyond <= 1e-3 * tokens


@pytest.mark.parametrize("tolerance", [1e-5, 1e-3])
def test_another_tolerance(monkeypatch, tolerance):
    small_calls_too(monkeypatch)
    screen_all(monkeypatch)
    shares = []
    for seed in range(10):
        *inputs, given = drawn("language", seed)
        error, stats = errors_beyond_rounding(*inputs, given, logprob_tol=tolerance)
        assert error.max() <= tolerance and stats.estimate_max <= tolerance
        shares.append(stats.screened_frac)
    assert sum(shares) / len(shares) > (0.05 if tolerance < 1e-4 else 0.5)
