"""The Triton kernels of the policy loss: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import policy_loss, varlen
from siri_kernels.policy_loss import RolloutCorrection

from .helpers import gpu_work
from .interpreter import DEVICE, direct
from .test_policy_loss import AGGREGATIONS, INF, NAN, make, with_gradients
from .test_policy_loss_objectives import OBJECTIVES, aggregated, corrections

pytestmark = direct


def on_device(batch):
    return {
        name: t.detach().to(DEVICE).requires_grad_(t.requires_grad) for name, t in batch.items()
    }


def assert_right(batch, dtype=torch.float32, **options):
    """Within float32's rounding of the float64 reference on the same numbers."""
    batch = {k: t.detach() for k, t in batch.items()}
    low = {k: t.to(dtype) if t.is_floating_point() else t for k, t in batch.items()}
    exact = {k: t.double() if t.is_floating_point() else t for k, t in low.items()}
    for inputs in (low, exact):
        for name in ("logprobs", "entropy"):
            inputs[name].requires_grad_()
    got, got_grads = with_gradients(on_device(low), backend="triton", **options)
    if isinstance(options.get("denominator"), torch.Tensor):  # the reference runs on the CPU
        options["denominator"] = options["denominator"].cpu()
    want, want_grads = with_gradients(exact, backend="reference", **options)
    rough = 1e-5 if dtype == torch.float32 else 8e-3

    def close(a, b, rtol):
        b = b.float()
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.float().cpu(), b, rtol=rtol, atol=rtol * scale / 10)

    close(got.loss, want.loss, 1e-4)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert a.dtype == dtype
        close(a, b, 10 * rough)
    assert set(got.metrics) == set(want.metrics)
    for name in want.metrics:
        close(got.metrics[name], want.metrics[name], 1e-4)
    return got, got_grads


@pytest.fixture
def small_slots():
    """Slots of 16 tokens, so that small cases have sequences of several."""
    from siri_kernels.policy_loss import triton_kernels as kernels

    before, kernels.BLOCK = kernels.BLOCK, 16
    yield
    kernels.BLOCK = before


@pytest.mark.draw(8)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_objectives(small_slots, name, ratio):
    batch = make([20, 0, 33, 1], torch.float32)
    assert_right(batch, ratio=ratio, **OBJECTIVES[name])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("masked", [True, False])
def test_aggregations(small_slots, aggregation, masked):
    batch = make([20, 0, 16], torch.float32)
    if not masked:
        del batch["mask"]
    assert_right(batch, **aggregated(aggregation))


@pytest.mark.parametrize("examples", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_everything_at_once(small_slots, examples):
    @settings(max_examples=examples, deadline=None)
    @given(
        name=st.sampled_from(sorted(OBJECTIVES)),
        sizes=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 40]), min_size=1, max_size=4),
        aggregation=st.sampled_from(AGGREGATIONS),
        ratio=st.sampled_from(["token", "sequence"]),
        rollout_correction=corrections,
        off_policy_threshold=st.sampled_from([None, 0.05]),
        kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
        kl_coef=st.sampled_from([0.0, 0.2]),
        kl_unbiased=st.booleans(),
        kl_limit=st.sampled_from([None, 0.05]),
        entropy_coef=st.sampled_from([0.0, 0.05]),
        spread=st.sampled_from([0.0, 0.3, 3.0]),
        per_token=st.booleans(),
        masked=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def run(name, sizes, aggregation, per_token, masked, spread, seed, **options):
        torch.manual_seed(seed)
        batch = make(sizes, torch.float32, spread=spread, per_token=per_token)
        if not masked:
            del batch["mask"]
        if spread > 1:  # sums of large numbers of both signs, in float32
            options["kl_unbiased"] = False
        assert_right(batch, **options, **aggregated(aggregation), **OBJECTIVES[name])

    run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs(small_slots, dtype):
    assert_right(make([20, 33], torch.float32), dtype, kl_coef=0.1)


@pytest.mark.parametrize("kind", ["number", "tensor", "float64", "integer"])
def test_denominators(small_slots, kind):
    batch = make([5, 20], torch.float32)
    value = {
        "number": 7.0,
        "tensor": torch.tensor(7.0),
        "float64": torch.tensor(7.0).double().to(DEVICE),
        "integer": torch.tensor(7).to(DEVICE),
    }[kind]
    for aggregation in AGGREGATIONS:
        assert_right(batch, aggregation=aggregation, denominator=value)


def test_a_pointer_denominator(small_slots, monkeypatch):
    """As a 0-d tensor on a GPU, which is not read on the host."""
    from siri_kernels.policy_loss import triton as launch

    monkeypatch.setattr(launch, "_denominator", lambda options: (options.denominator, "pointer"))
    batch = make([5, 20], torch.float32)
    for value in (torch.tensor(7.0), torch.tensor(7).int()):
        assert_right(batch, denominator=value.to(DEVICE))


def test_long_sequences_among_short_ones():
    """At the slots' own size: one of several thousand tokens, next to single ones."""
    batch = make([1, 2500, 1, 0, 1024, 7], torch.float32)
    options = {"ratio": "sequence", "aggregation": "seq-mean-token-mean"}
    assert_right(batch, rollout_correction="mis", **options)


def test_edges(small_slots):
    options = {"kl_coef": 0.1, "entropy_coef": 0.1, "backend": "triton"}
    for sizes in ([0, 0], [], [3, 2]):
        batch = make(sizes, torch.float32)
        batch["mask"] = torch.zeros(sum(sizes), dtype=torch.bool)
        out, grads = with_gradients(on_device(batch), **options)
        assert out.loss.item() == 0 and all((g == 0).all() for g in grads)
        assert all(value.item() == 0 for value in out.metrics.values())
    # Float64 always runs on the portable path.
    double = on_device(make([4, 2]))
    assert with_gradients(double, **options)[0].loss.dtype == torch.float64


@pytest.mark.draw(4)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_masked_junk_and_infinities(small_slots, name):
    clean = make([20, 3, 1], torch.float32)
    clean["mask"][0] = True
    dirty = {key: t.detach().clone() for key, t in clean.items()}
    junk = {"logprobs": NAN, "old_logprobs": -INF, "ref_logprobs": INF, "entropy": NAN}
    for key, value in {**junk, "rollout_logprobs": INF}.items():
        dirty[key][~clean["mask"]] = value
    for key in ("logprobs", "entropy"):
        dirty[key].requires_grad_()
    options = {
        "kl_coef": 0.1,
        "entropy_coef": 0.1,
        "rollout_correction": RolloutCorrection("truncate", "geometric"),
        "off_policy_threshold": 0.01,
        "ratio": "sequence" if name in ("clip", "sapo") else "token",
        "backend": "triton",
        **OBJECTIVES[name],
    }
    want, want_grads = with_gradients(on_device(clean), **options)
    got, got_grads = with_gradients(on_device(dirty), **options)
    assert torch.equal(got.loss, want.loss)
    assert all(torch.equal(a, b) for a, b in zip(got_grads, want_grads, strict=True))
    with torch.no_grad():
        clean["old_logprobs"][:4] = torch.tensor([INF, -INF, INF, -INF])
        clean["logprobs"][0] = -INF
        clean["rollout_logprobs"][2:6] = torch.tensor([INF, -INF, NAN, NAN])
    want, want_grads = with_gradients(clean, **{**options, "backend": "portable"})
    got, got_grads = with_gradients(on_device(clean), **options)
    torch.testing.assert_close(got.loss.cpu(), want.loss, rtol=1e-4, atol=1e-4)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        clean["logprobs"][0] = NAN
    assert with_gradients(on_device(clean), **options)[0].loss.isnan()


def test_runs_repeat_bit_for_bit(small_slots):
    batch = on_device(make([40, 0, 7], torch.float32))
    options = {"ratio": "sequence", "entropy_coef": 0.1, "backend": "triton"}
    first, first_grads = with_gradients(batch, **options)
    for _ in range(3):
        again, grads = with_gradients(batch, **options)
        assert torch.equal(again.loss, first.loss)
        assert all(torch.equal(a, b) for a, b in zip(grads, first_grads, strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("ratio, launches", [("token", 2), ("sequence", 3)])
def test_launches_and_waits_on_a_gpu(ratio, launches):
    from siri_kernels.policy_loss import triton_kernels as kernels

    def compiled():
        return sum(len(cache[0]) for cache in kernels.loss_kernel.device_caches.values())

    batch = on_device(make([131072, 1, 5000], torch.float32))
    policy_loss(**batch, ratio=ratio, backend="triton")
    before = compiled()
    options = {"ratio": ratio, "clip_low": 0.1, "clip_high": 0.3, "backend": "triton"}
    names = gpu_work(lambda: policy_loss(**batch, **options))
    assert before == compiled(), "another bound must not compile"
    assert len(names) == launches, names


def test_noncontiguous_inputs(small_slots):
    batch = on_device(make([20, 5], torch.float32))
    doubled = {k: t.detach().repeat_interleave(2)[::2] for k, t in batch.items()}
    doubled["cu_seqlens"] = varlen.cu_seqlens_from(torch.tensor([20, 5])).to(DEVICE)
    want = policy_loss(**batch, kl_coef=0.1, backend="triton")
    got = policy_loss(**doubled, kl_coef=0.1, backend="triton")
    assert torch.equal(got.loss, want.loss)
