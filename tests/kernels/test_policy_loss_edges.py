"""Infinities, NaN, masks, cuts and waits, for every objective."""

from __future__ import annotations

import pytest
import torch

from siri_kernels import policy_loss, varlen
from siri_kernels.policy_loss import ROLLOUT_CORRECTIONS, RolloutCorrection

from .helpers import NoHostRead
from .test_policy_loss import BACKENDS, INF, NAN, assert_same, make, with_gradients
from .test_policy_loss_objectives import OBJECTIVES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_infinities_and_missing_sampler_values_stay_finite(backend, name, ratio, level):
    logprobs = torch.tensor([-1.0, -1.0, -INF, -1.0, -1.0], requires_grad=True)
    old = torch.tensor([-1.0, -INF, -INF, INF, -1.0])
    out = policy_loss(
        logprobs,
        old,
        torch.tensor([1.0, -1.0]),
        torch.tensor([0, 3, 5], dtype=torch.int32),
        ref_logprobs=torch.tensor([-1.0, INF, -INF, -INF, -1.0]),
        kl_coef=0.1,
        rollout_logprobs=torch.tensor([-1.0, -INF, INF, -INF, NAN]),
        rollout_correction=RolloutCorrection("truncate", level),
        off_policy_threshold=1.0,
        ratio=ratio,
        backend=backend,
        **OBJECTIVES[name],
    )
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    assert out.loss.isfinite() and grad.isfinite().all()
    assert all(value.isfinite() for value in out.metrics.values())
    assert grad[2] == 0, "the policy gives the token no probability"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_nan_that_counts_shows(backend, name):
    batch = make([3, 2], torch.float32)
    del batch["mask"]
    with torch.no_grad():
        batch["logprobs"][1] = NAN
    out, (grad, _) = with_gradients(batch, backend=backend, **OBJECTIVES[name])
    assert out.loss.isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("correction", ["tis", "mis", "icepop"])
def test_what_the_mask_leaves_out_has_no_influence(backend, name, ratio, correction):
    clean = make([6, 3, 4])
    clean["mask"][0] = True
    dirty = {key: t.detach().clone() for key, t in clean.items()}
    out = ~clean["mask"]
    junk = {"logprobs": NAN, "old_logprobs": -INF, "ref_logprobs": INF, "entropy": NAN}
    for key, value in {**junk, "rollout_logprobs": INF}.items():
        dirty[key][out] = value
    for key in ("logprobs", "entropy"):
        dirty[key].requires_grad_()
    options = {
        "kl_coef": 0.1,
        "kl_estimator": "k1",
        "kl_unbiased": True,
        "entropy_coef": 0.1,
        "ratio": ratio,
        "rollout_correction": correction,
        "off_policy_threshold": 0.01,
        "backend": backend,
        **OBJECTIVES[name],
    }
    want, got = with_gradients(clean, **options), with_gradients(dirty, **options)
    assert_same(got, want, rtol=0, atol=0)
    assert all((g[out] == 0).all() for g in got[1])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_nothing_is_read_on_the_host(monkeypatch, name, ratio):
    from siri_kernels import _checks

    monkeypatch.setattr(_checks, "may_read", lambda tensor: False)  # as on a GPU
    batch = make([4, 0, 3])
    with NoHostRead():
        out = policy_loss(
            **batch,
            ratio=ratio,
            aggregation="seq-mean-token-mean",
            rollout_correction="mis",
            off_policy_threshold=0.1,
            kl_coef=0.1,
            kl_unbiased=True,
            **OBJECTIVES[name],
        )
        out.loss.backward()


def test_a_truncated_answer_stays_in_the_loss():
    """A truncated sequence's kept tokens count like any others, unless the mask says otherwise."""
    batch = make([9, 4], torch.float32)
    cut = varlen.cut(batch["logprobs"].detach(), batch["cu_seqlens"], 5)
    assert cut.truncated.tolist() == [True, False]
    part = {k: t[cut.kept] for k, t in batch.items() if len(t) == 13}
    part.update(cu_seqlens=cut.cu_seqlens, advantages=batch["advantages"])
    part["mask"] = torch.ones(9, dtype=torch.bool)
    _, (grad, _) = with_gradients(part, objective="reinforce")
    assert (grad != 0).all()
    part["mask"] = ~cut.truncated.repeat_interleave(varlen.lengths(cut.cu_seqlens))
    _, (grad, _) = with_gradients(part, objective="reinforce")
    assert (grad[:5] == 0).all() and (grad[5:] != 0).all()


def test_named_corrections():
    assert {name: (c.mode, c.level) for name, c in ROLLOUT_CORRECTIONS.items()} == {
        "tis": ("truncate", "token"),
        "mis": ("mask", "sequence"),
        "icepop": ("mask", "token"),
    }
