"""linear_logprob(screen=..., backend="triton"): what it gives, beside float64."""

from __future__ import annotations

import math

import pytest
import torch

from siri_kernels import linear_logprob, release_screens, take_backward_stats, take_forward_stats

from .helpers import gradients
from .interpreter import DEVICE, direct
from .screen_inputs import language_head

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

from siri_kernels.linear_logprob.screen import stats
from siri_kernels.linear_logprob.screen_triton import forward, tiles

from .screen_triton_calls import TOLERANCE, assert_within, called, small_calls_too

pytestmark = direct
TOKENS, WIDTH, VOCABULARY = 32, 48, 1100


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_calls_too(monkeypatch)
    take_forward_stats()
    yield
    release_screens()


def head(tokens=TOKENS, sharp=16.0, vocabulary=VOCABULARY, seed=0):
    generator = torch.Generator().manual_seed(seed + int(torch.randint(2**30, (1,))))
    return language_head(tokens, WIDTH, vocabulary, sharp, generator)[:3]


def masked_bias(targets, vocabulary=VOCABULARY):
    """A third of the ids are impossible, the last 90 among them, and one target."""
    bias = 0.3 * torch.randn(vocabulary)
    lost = torch.rand(vocabulary) < 0.3
    lost[-90:] = True
    lost[targets[1:]] = False
    lost[targets[0]] = True
    return bias.masked_fill(lost, -math.inf)


OPTIONS = {
    "plain": {},
    "bias, softcap": {"bias": True, "softcap": 40.0},
    "a temperature": {"temperature": 0.7},
    "temperatures": {"temperature": True, "bias": True},
}


@pytest.mark.draw(2)
@pytest.mark.parametrize(
    ("kind", "dtype", "which"),
    [
        ("int8", torch.float32, "plain"),
        ("int8", torch.bfloat16, "temperatures"),
        ("fp8", torch.float32, "bias, softcap"),
        ("fp8", torch.float16, "a temperature"),
    ],
    ids=str,
)
def test_values_and_gradients(kind, dtype, which, monkeypatch):
    hidden, weight, targets = head(vocabulary=2100)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    given = dict(OPTIONS[which])
    if given.pop("temperature", None) is True:
        given["temperature"] = torch.randn(TOKENS).exp().clamp(0.05, 100)
    elif "temperature" in OPTIONS[which]:
        given["temperature"] = OPTIONS[which]["temperature"]
    if given.pop("bias", None):
        given["bias"] = masked_bias(targets, 2100)
    targets[3:7] = -100
    found = called(monkeypatch, kind, hidden, weight, targets, given)
    assert_within(found)
    assert found.entropy.max() < 3e-3
    assert not found.out[0][3:7].any() and not found.out[1][3:7].any()
    assert found.stats.screened_frac > 0.1 and found.stats.error_max < TOLERANCE

    up = torch.randn(TOKENS), 0.01 * torch.randn(TOKENS)

    def run(target, double, **options):
        h, w = (x.double() if double else x.to(DEVICE) for x in (hidden.detach(), weight.detach()))
        h, w = h.requires_grad_(), w.requires_grad_()
        more = {
            key: (value.double() if double else value.to(DEVICE))
            if isinstance(value, torch.Tensor)
            else value
            for key, value in given.items()
        }
        leaves = [h, w]
        if "bias" in more:
            leaves.append(more["bias"].requires_grad_())
        out = linear_logprob(h, w, target, **more, **options)
        out = [x[1:] for x in out]  # the first target may be impossible
        return [x.cpu() for x in gradients(out, leaves, [u[1:].to(h.device) for u in up])]

    true = run(targets, True, backend="reference")
    plain = run(targets.to(DEVICE), False, backend="triton")
    take_backward_stats()
    ours = run(targets.to(DEVICE), False, backend="triton", screen=kind)
    assert float(take_backward_stats().dense_row_frac) < 1
    for mine, other, exact in zip(ours, plain, true, strict=True):
        assert mine.dtype == other.dtype
        gap = (mine.double() - exact).norm() / exact.norm()
        assert gap <= 1.2 * (other.double() - exact).norm() / exact.norm() + 5e-4, gap


@pytest.mark.parametrize("unmasked", [0, 5])
def test_few_tokens_that_are_not_masked(unmasked, monkeypatch):
    hidden, weight, targets = head(50)
    targets[torch.randperm(50)[unmasked:]] = -100
    hidden[targets == -100] = math.nan  # nobody reads them
    found = called(monkeypatch, "int8", hidden.nan_to_num(), weight, targets)
    assert_within(found)
    got = linear_logprob(
        hidden.to(DEVICE), weight.to(DEVICE), targets.to(DEVICE), screen="int8", backend="triton"
    )
    for one, other in zip(got, found.out, strict=True):
        assert torch.equal(one.cpu(), other)
    assert not found.out[0][targets == -100].any()


def odd_rows(weight, targets):
    """The same weight with a few rows that fit no scale: targets, likely ids and others."""
    weight = weight.clone()
    weight[targets[2]] *= 1000
    weight[7] *= -300
    weight[VOCABULARY - 1] *= 50
    return weight


def test_large_rows_of_the_weight_and_hidden_states_that_are_not_finite(monkeypatch):
    hidden, weight, targets = head()
    weight = odd_rows(weight, targets)
    found = called(monkeypatch, "int8", hidden, weight, targets)
    assert_within(found)
    assert found.stats.screened_frac > 0
    broken = hidden.clone()
    broken[11, 5], broken[20], broken[21, :2] = math.nan, math.inf, torch.tensor([3e38, -3e38])
    inputs = (x.to(DEVICE) for x in (broken, weight, targets))
    got = linear_logprob(*inputs, screen="int8", backend="triton").logprobs.cpu()
    others = torch.ones(TOKENS, dtype=torch.bool)
    others[[11, 20, 21]] = False
    assert got[[11, 20]].isnan().all()
    torch.testing.assert_close(got[others], found.out[0][others], rtol=1e-4, atol=TOLERANCE)
    assert take_forward_stats().estimate_failed == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_of_the_weight_that_are_not_finite(value, monkeypatch):
    hidden, weight, targets = head()
    # The third token is one of those that are checked.
    weight[int(targets[2]), 4] = weight[1001, 7] = value
    inputs = [x.to(DEVICE) for x in (hidden, weight, targets)]
    plain = linear_logprob(*inputs, backend="triton")
    ours = linear_logprob(*inputs, screen="int8", backend="triton")
    assert take_forward_stats().estimate_failed == 0
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=5e-4, equal_nan=True)


def test_many_large_rows_make_the_call_exact(monkeypatch):
    hidden, weight, targets = head()
    weight[torch.randperm(VOCABULARY)[:70]] *= 300
    found = called(monkeypatch, "int8", hidden, weight, targets)
    assert found.stats.screened_frac == 0 and found.stats.estimate_max == 0
    assert found.beyond.max() <= 1e-5


def with_tile(monkeypatch, tile, programs):
    """Has the products computed by another tile, and so many programs."""
    monkeypatch.setattr(forward, "tile_of", lambda *given: tile)
    monkeypatch.setattr(forward, "ROWS", tile.rows)
    monkeypatch.setattr(forward, "_programs", lambda device: programs)


@pytest.mark.skipif(DEVICE != "cpu", reason="tiles for the interpreter")
@pytest.mark.parametrize(
    ("tile", "programs"),
    [
        pytest.param(tiles.Tile(16, 256, 32, 4, 1, 1), 1, id="3 chunks, pieces"),
        pytest.param(tiles.Tile(32, 128, 64, 1, 1, 1), 8, id="more programs than tiles"),
        pytest.param(tiles.Tile(16, 512, 64, 2, 1, 1), 5, id="blocks do not divide programs"),
    ],
)
def test_tiles_splits_and_chunks(tile, programs, monkeypatch):
    with_tile(monkeypatch, tile, programs)
    hidden, weight, targets = head(37, sharp=20.0)
    targets[[5, 20]] = -100
    found = called(monkeypatch, "int8", hidden, weight, targets, {"temperature": 0.8})
    assert_within(found)
    assert found.stats.screened_frac > 0
    assert found.stats.error_max < TOLERANCE


def test_a_split_with_more_candidates_than_places(monkeypatch):
    """And of splits that together have more: such tokens are exact."""
    with_tile(monkeypatch, tiles.Tile(16, 256, 64, 1, 1, 1), 4)
    monkeypatch.setattr(forward, "PLACES", 32)
    hidden, weight, targets = head(24, sharp=26.0)
    hidden[::3] *= 0.2
    found = called(monkeypatch, "int8", hidden, weight, targets, screen_check=False)
    assert_within(found)
    assert found.estimate[::3].isinf().all()
    assert found.stats.error_max is None


def test_a_wrong_copy_makes_the_call_exact(monkeypatch):
    genuine = forward.kept_copy

    def wrong(*given):
        copy = genuine(*given)
        return copy._replace(scale=copy.scale * 1.3)

    hidden, weight, targets = head(sharp=26.0)
    with monkeypatch.context() as patch:
        patch.setattr(stats, "_warned", False)
        patch.setattr(forward, "kept_copy", wrong)
        # So that what is wrong is believed.
        patch.setattr(forward.rule, "FARTHEST", math.inf)
        patch.setattr(forward.rule, "MOST_DEVIATION", math.inf)
        patch.setattr(forward.rule, "DEVIATIONS", 1e-6)
        with pytest.warns(UserWarning, match="exceeds its estimate"):
            found = called(patch, "int8", hidden, weight, targets)
    assert found.stats.estimate_failed == 1 and found.stats.screened_frac == 0
    assert found.stats.error_max > 1e-6
    assert found.beyond.max() <= 0


def test_ids_of_probability_0_beside_an_impossible_target(monkeypatch):
    """A split of -inf only is nothing that a bound of 0 would list, least beyond the vocabulary."""
    with_tile(monkeypatch, tiles.Tile(16, 256, 64, 1, 1, 1), 8)
    hidden, weight, targets = head(16, sharp=26.0)
    targets.clamp_(max=500)
    bias = torch.zeros(VOCABULARY)
    bias[700:] = -math.inf
    bias[targets[1::4]] = -math.inf
    seen = []
    genuine = forward._join

    def watched(tokens, index, live, screened, memory, programs, *given):
        splits = min(programs, 5)  # of one block
        number = memory[1].view(-1, 16)[:splits, : int(live)]
        seen.append(number[3:].clone())
        genuine(tokens, index, live, screened, memory, programs, *given)

    monkeypatch.setattr(forward, "_join", watched)
    found = called(monkeypatch, "int8", hidden, weight, targets, {"bias": bias})
    assert_within(found)
    assert all(not number.any() for number in seen)
    # All of it -inf: nothing is an entry, and no result is a number.
    none = torch.full((VOCABULARY,), -math.inf)
    inputs = (x.to(DEVICE) for x in (hidden, weight, targets))
    linear_logprob(*inputs, bias=none.to(DEVICE), screen="int8", backend="triton")
    assert all(not number.any() for number in seen)


def test_a_large_row_that_is_a_split_s_only_possible_id(monkeypatch):
    """Beside ids of -inf only it is a candidate still, before and after possible ones."""
    with_tile(monkeypatch, tiles.Tile(16, 256, 64, 2, 1, 1), 3)
    hidden, weight, targets = head(16, sharp=26.0)
    targets.remainder_(200).add_(300)
    weight[[7, 301, 1000]] *= 300
    weight[[7, 301, 1000]] *= (8 / (hidden @ weight[[7, 301, 1000]].t()).abs().amax(0))[:, None]
    weight[[7, 301, 1000], 1] += 500
    hidden[:, 1] = 0
    bias = torch.zeros(VOCABULARY)
    bias[:256] = bias[512:] = -math.inf
    bias[[7, 1000]] = 0
    found = called(monkeypatch, "int8", hidden, weight, targets, {"bias": bias})
    assert_within(found)
    assert found.stats.screened_frac > 0


def test_runs_repeat_bit_for_bit():
    hidden, weight, targets = (x.to(DEVICE) for x in head(sharp=26.0))
    options = {"screen": "int8", "backend": "triton", "screen_check": False}
    one, two = (linear_logprob(hidden, weight, targets, **options) for _ in range(2))
    order = torch.randperm(TOKENS, device=DEVICE)
    other = linear_logprob(hidden[order], weight, targets[order], **options)
    for a, b, c in zip(one, two, other, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a[order], c, rtol=1e-3, atol=1e-4)


def test_strides():
    hidden, weight, targets = head(sharp=26.0)
    wide = torch.randn(3 * TOKENS, 2 * WIDTH)
    wide[::3, ::2] = hidden
    inputs = (wide.to(DEVICE)[::3, ::2], weight.to(DEVICE).t().contiguous().t())
    options = {"screen": "int8", "backend": "triton"}
    strided = linear_logprob(*inputs, targets.to(DEVICE), **options)
    plain = linear_logprob(*(x.contiguous() for x in inputs), targets.to(DEVICE), **options)
    for a, b in zip(strided, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert take_forward_stats().screened_frac > 0
