"""linear_logprob(screen="int8"): what it takes, refuses and gives."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from siri_kernels import linear_logprob, take_backward_stats, take_forward_stats
from siri_kernels.linear_logprob.screen import compiled, forward
from siri_kernels.linear_logprob.screen import stats as screen_stats
from siri_kernels.linear_logprob.top_entries import EPS

from .helpers import error, gradients, leaves
from .screen_inputs import drawn, language_head, screen_all, small_calls_too

TOKENS, WIDTH, VOCABULARY = 160, 48, 9000
LOOPS = [
    pytest.param(True, id="loops in C"),
    pytest.param(False, id="PyTorch's operations"),
]


def head(seed=0, tokens=TOKENS, sharp=14.0):
    generator = torch.Generator().manual_seed(seed)
    return language_head(tokens, WIDTH, VOCABULARY, sharp, generator)[:3]


@pytest.fixture(autouse=True)
def fresh():
    take_forward_stats()
    yield
    compiled.library.cache_clear()


def without_compiler(monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, "0")
    compiled.library.cache_clear()


@pytest.mark.parametrize("in_c", LOOPS)
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"softcap": 40.0, "bias": True}, {"temperature": "of each token"}],
    ids=str,
)
def test_values_and_gradients_are_near_the_exact_ones(options, in_c, monkeypatch):
    if not in_c:
        without_compiler(monkeypatch)
    elif compiled.library() is None:
        pytest.skip("no C compiler")
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    targets[3:20] = -100
    options = dict(options)
    inputs = leaves(hidden, weight)
    if options.get("temperature") == "of each token":
        options["temperature"] = torch.rand(TOKENS) + 0.4
    if options.pop("bias", None):
        inputs += leaves(0.3 * torch.randn(VOCABULARY))
    up = torch.randn(TOKENS), 0.01 * torch.randn(TOKENS)

    def run(dtype, **more):
        h, w, *b = (x.detach().to(dtype).requires_grad_() for x in inputs)
        bias = b[0] if b else None
        given = {
            key: value.to(dtype) if isinstance(value, torch.Tensor) else value
            for key, value in options.items()
        }
        out = linear_logprob(h, w, targets, bias=bias, **given, **more)
        return out, gradients(out, (h, w, *b), up)

    exact, exact_grads = run(torch.float64, backend="reference")
    _, plain_grads = run(torch.float32)
    take_backward_stats()
    ours, grads = run(torch.float32, screen="int8")
    stats = take_forward_stats()
    assert stats.screened_frac > 0.4 and stats.estimate_failed == 0
    assert 0 < stats.estimate_max <= 1e-4 and stats.error_max < 1e-4
    assert float(take_backward_stats().dense_row_frac) < 0.9
    assert error(ours.logprobs, exact.logprobs)[0] < 1e-4
    assert error(ours.entropy, exact.entropy)[0] < 2e-3
    assert (ours.logprobs <= 0).all() and (ours.entropy >= 0).all()
    assert not ours.logprobs[3:20].any()
    for mine, plain, true in zip(grads, plain_grads, exact_grads, strict=True):
        assert mine.dtype == torch.float32
        gap = (mine - true).norm() / true.norm()
        assert gap <= 1.2 * (plain - true).norm() / true.norm() + 1e-4, gap


def test_the_loops_in_c_and_pytorchs_operations_agree(monkeypatch):
    if compiled.library() is None:
        pytest.skip("no C compiler")
    small_calls_too(monkeypatch)
    screen_all(monkeypatch)
    kinds = ("language", "masked ids", "softcap", "one huge row", "temperature of each token")
    for seed, kind in enumerate(kinds * 2):
        h, w, y, options = drawn(kind, seed)
        found = []
        for in_c in (True, False):
            if not in_c:
                without_compiler(monkeypatch)
            found.append(linear_logprob(h, w, y, screen="int8", **options))
            monkeypatch.delenv(compiled.VARIABLE, raising=False)
            compiled.library.cache_clear()
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_runs_repeat_bit_for_bit_whatever_the_number_of_threads(monkeypatch):
    screen_all(monkeypatch)
    inputs = head(tokens=300)
    runs = []
    for threads in (1, 2, 3, 1, 2, 3):
        torch.set_num_threads(threads)
        # The hidden states' rotation is a float32 product, as exact logits are.
        runs.append((threads, linear_logprob(*inputs, screen="int8", screen_check=False)))
    torch.set_num_threads(1)
    for (threads, first), (again, second) in zip(runs[:3], runs[3:], strict=True):
        assert threads == again
        assert torch.equal(first.logprobs, second.logprobs)
        assert torch.equal(first.entropy, second.entropy)
    for _, run in runs[1:]:
        torch.testing.assert_close(run.logprobs, runs[0][1].logprobs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tokens", [0, 1, 127])
def test_calls_of_few_tokens_are_exact(tokens):
    inputs = [x[:tokens] if x.dim() == 1 or len(x) == TOKENS else x for x in head()]
    plain, ours = linear_logprob(*inputs), linear_logprob(*inputs, screen="int8")
    assert torch.equal(plain.logprobs, ours.logprobs)
    assert torch.equal(plain.entropy, ours.entropy)
    stats = take_forward_stats()
    assert stats is None if tokens == 0 else stats.screened_frac == 0


def test_a_wide_softmax_is_computed_exactly_without_a_copy_of_the_weight(monkeypatch):
    hidden, weight, targets = head()
    monkeypatch.setattr(forward, "kept_screen", lambda *given: pytest.fail("a copy was made"))
    plain = linear_logprob(hidden * 0.05, weight, targets)
    ours = linear_logprob(hidden * 0.05, weight, targets, screen="int8")
    assert torch.equal(plain.logprobs, ours.logprobs)


def test_tokens_that_cannot_be_screened_are_exact(monkeypatch):
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    hidden[::2] *= 0.05  # flat
    out = linear_logprob(hidden, weight, targets, screen="int8", screen_check=False)
    assert 0.2 < take_forward_stats().screened_frac <= 0.5
    plain = linear_logprob(hidden, weight, targets)
    torch.testing.assert_close(out.logprobs[::2], plain.logprobs[::2], rtol=1e-6, atol=1e-6)


def test_a_token_that_is_nan_is_so_alone(monkeypatch):
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    want = linear_logprob(hidden, weight, targets, screen="int8", screen_check=False)
    hidden[7, 3], hidden[11] = math.nan, math.inf
    out = linear_logprob(hidden, weight, targets, screen="int8", screen_check=False)
    plain = linear_logprob(hidden, weight, targets)
    assert out.logprobs.isnan().nonzero()[:, 0].tolist() == [7, 11]
    assert torch.equal(out.logprobs.isnan(), plain.logprobs.isnan())
    others = ~out.logprobs.isnan()
    torch.testing.assert_close(out.logprobs[others], want.logprobs[others], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_with_a_number_that_is_none_gives_what_it_gives_unscreened(value, monkeypatch):
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    weight[4321, 5] = value
    out = linear_logprob(hidden, weight, targets, screen="int8")
    plain = linear_logprob(hidden, weight, targets)
    assert torch.equal(out.logprobs.isnan(), plain.logprobs.isnan())
    # Where the infinite logit is -inf, the id is impossible.
    known = ~plain.logprobs.isnan() & plain.logprobs.isfinite()
    torch.testing.assert_close(out.logprobs[known], plain.logprobs[known], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("times", [100, 300, 1000])
def test_one_large_row_raises_no_false_alarm(times, monkeypatch):
    screen_all(monkeypatch)
    for seed in range(4):
        hidden, weight, targets = head(seed)
        weight[3] *= times
        linear_logprob(hidden, weight, targets, screen="int8")
        assert take_forward_stats().estimate_failed == 0


def test_impossible_targets_have_no_error(monkeypatch):
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    bias = torch.zeros(VOCABULARY)
    bias[targets[::5]] = -math.inf
    out = linear_logprob(hidden, weight, targets, bias=bias, screen="int8")
    assert out.logprobs.isinf().any()
    stats = take_forward_stats()
    assert stats.error_max < 1e-4 and stats.estimate_failed == 0


def test_an_error_beyond_its_estimate_makes_the_call_exact_and_warns_once(monkeypatch):
    screen_all(monkeypatch)
    monkeypatch.setattr(screen_stats, "_warned", False)
    inputs = head()
    genuine = forward.estimate

    def too_sure(*given):
        found = genuine(*given)
        state = found.state._replace(sum=found.state.sum * 1.01)
        return found._replace(state=state, error=found.error * 0)

    monkeypatch.setattr(forward, "estimate", too_sure)
    with pytest.warns(UserWarning, match="exceeds its estimate"):
        out = linear_logprob(*inputs, screen="int8")
    stats = take_forward_stats()
    assert stats.estimate_failed == 1 and stats.screened_frac == 0 and stats.error_max > 1e-4
    plain = linear_logprob(*inputs)
    torch.testing.assert_close(out.logprobs, plain.logprobs, rtol=1e-6, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_logprob(*inputs, screen="int8")
        linear_logprob(*inputs, screen="int8", screen_check=False)
    stats = take_forward_stats()
    assert stats.estimate_failed == 1 and 0.2 < stats.screened_frac < 0.6


def test_every_entry_of_the_bound_is_listed(monkeypatch):
    """Forward saves the entries of probability EPS and more, but for those near the bound."""
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    call = []
    genuine = forward.forward

    def kept(given):
        out = genuine(given)
        call.append(out)
        return out

    monkeypatch.setattr(forward, "forward", kept)
    linear_logprob(*leaves(hidden, weight), targets, screen="int8", screen_check=False)
    top = call[0][1]
    probability = (hidden.double() @ weight.double().t()).softmax(1)
    probability.scatter_(1, targets[:, None], 0)
    for token in range(TOKENS):
        count = int(top.found[token])
        if count > top.ids.shape[1]:
            continue
        ids = top.ids[token, :count].long()
        assert (ids.diff() > 0).all()
        missed = probability[token].index_fill(0, ids, 0)
        assert missed.max() < 1.5 * EPS
        assert (probability[token][ids] > EPS / 1.5).all()


def test_statistics_add_up(monkeypatch):
    assert take_forward_stats() is None
    screen_all(monkeypatch)
    linear_logprob(*head(), screen="int8")
    first = take_forward_stats()
    linear_logprob(*head(), screen="int8")
    linear_logprob(*(x[:10] if len(x) == TOKENS else x for x in head()), screen="int8")
    both = take_forward_stats()
    assert both.screened_frac == pytest.approx(first.screened_frac * TOKENS / (TOKENS + 10))
    assert both.estimate_max == first.estimate_max and both.error_max == first.error_max
    linear_logprob(*head())
    assert take_forward_stats() is None
