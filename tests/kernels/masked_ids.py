"""Ids masked by a bias of -inf, under a softcap: what the backends are compared with."""

from __future__ import annotations

import torch

from siri_kernels import linear_logprob

from .helpers import leaves, make_linear
from .interpreter import DEVICE


def check(seed, vocabulary, softcap, shift, backend, tail=0.0, per_row=False, tokens=5):
    """Against float64 over the ids that are not masked; masked ones get no gradient."""
    torch.manual_seed(seed)
    hidden, weight, targets = make_linear(tokens, 16, vocabulary, torch.float32, peak=4.0)
    masked = torch.rand(vocabulary) < 0.4
    masked[vocabulary - 1] = True  # the padding of a last shard
    masked[targets] = False
    bias = (torch.randn(vocabulary) + shift).masked_fill(masked, float("-inf"))
    temperature = torch.rand(tokens) + 0.5 if per_row else 0.8
    up = torch.randn(2, tokens)

    exact = leaves(hidden.double(), weight.double(), bias.double())
    z = (exact[0] @ exact[1].t() + exact[2])[:, ~masked]
    z = softcap * torch.tanh(z / softcap)
    z = z / (temperature.double()[:, None] if per_row else temperature)
    log_p = z.log_softmax(1)
    place = (~masked).cumsum(0) - 1
    logprobs = log_p.gather(1, place[targets][:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(1)
    want = torch.autograd.grad((logprobs * up[0] + entropy * up[1]).sum(), exact)

    given = leaves(hidden.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE))
    out = linear_logprob(
        given[0],
        given[1],
        targets.to(DEVICE),
        bias=given[2],
        temperature=temperature.to(DEVICE) if per_row else temperature,
        softcap=softcap,
        tail=tail,
        backend=backend,
    )
    up = up.to(DEVICE)
    got = torch.autograd.grad((out.logprobs * up[0] + out.entropy * up[1]).sum(), given)
    torch.testing.assert_close(out.logprobs.cpu().double(), logprobs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.entropy.cpu().double(), entropy, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(got, want, strict=True):
        gap = (ours.cpu().double() - theirs).norm()
        assert gap <= (tail + 1e-4) * theirs.norm() + 1e-6
    assert (got[1][masked] == 0).all() and (got[2][masked] == 0).all()


def check_all_but_one(backend, softcap):
    """One id left is sure, a masked target impossible, and no gradient NaN."""
    hidden, weight = torch.randn(3, 8), torch.randn(40, 8)
    bias = torch.full((40,), float("-inf"))
    bias[7] = 0.5
    inputs = leaves(hidden.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE))
    targets = torch.tensor([7, 3, 7]).to(DEVICE)
    out = linear_logprob(*inputs[:2], targets, bias=inputs[2], softcap=softcap, backend=backend)
    assert out.logprobs.tolist() == [0, float("-inf"), 0]
    assert (out.entropy.abs() < 1e-30).all()
    grads = torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    if softcap is not None:
        masked = torch.arange(40) != 7
        assert (grads[1][masked] == 0).all() and (grads[2][masked] == 0).all()
