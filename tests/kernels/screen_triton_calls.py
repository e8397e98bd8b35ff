"""Screened calls of the Triton backend, small enough for the interpreter, beside exact ones."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

from siri_kernels import linear_logprob, release_screens, take_forward_stats
from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.screen import options
from siri_kernels.linear_logprob.screen_triton import forward

from .interpreter import DEVICE

TOLERANCE = 1e-4


class Found(NamedTuple):
    """What a screened call gave.

    Attributes:
        out: log-probs and entropy.
        stats: of :func:`siri_kernels.take_forward_stats`.
        estimate: [T] estimated errors, infinity where a token was not screened.
        error: [T] true errors of the log-probs.
        beyond: [T] the same, less what fp32 rounds.
        entropy: [T] true errors of the entropy.
        signed: [T] log-probs less the true ones.
    """

    out: tuple[torch.Tensor, torch.Tensor]
    stats: object
    estimate: torch.Tensor
    error: torch.Tensor
    beyond: torch.Tensor
    entropy: torch.Tensor
    signed: torch.Tensor


def small_calls_too(monkeypatch, everything=True):
    """Has calls of few tokens and ids screened, and save top entries; all, or where it pays."""
    monkeypatch.setattr(options, "LEAST_VOCABULARY", 256)
    monkeypatch.setattr(options, "LEAST_TOKENS", 1)
    monkeypatch.setattr(top_entries, "LEAST_VOCABULARY", 1024)
    if everything:
        monkeypatch.setattr(forward, "_LEAST_SHARE", 0.0)


@contextlib.contextmanager
def estimates(monkeypatch):
    """Collects the estimates of all tokens that are screened inside."""
    genuine, seen = forward._screen, []

    def watched(tokens, *given):
        launched = forward._launch_screen

        def kept(*arguments):
            launched(*arguments)
            if not seen or seen[-1] is not arguments[-2]:
                seen.append(arguments[-2])

        with monkeypatch.context() as patch:
            patch.setattr(forward, "_launch_screen", kept)
            genuine(tokens, *given)

    with monkeypatch.context() as patch:
        patch.setattr(forward, "_screen", watched)
        yield seen


def float64(value):
    """A number or tensor of the reference."""
    return value.double() if isinstance(value, torch.Tensor) else value


def moved(value):
    """A number, or a tensor on the device."""
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def reference(hidden, weight, targets, given):
    """Log-probs and entropy in float64, on the CPU."""
    exact = {key: float64(value) for key, value in given.items()}
    return linear_logprob(hidden.double(), weight.double(), targets, backend="reference", **exact)


def rounding_of(hidden, weight, given):
    """[T] what fp32 rounds of log-probs: of a logit as large as those that finite rows have."""
    h = hidden.double()
    w = weight.double()[weight.isfinite().all(1)]
    size = h.norm(dim=1) * w.norm(dim=1).square().mean().sqrt()
    size = size + (h @ w.t()).abs().amax(1)
    if "bias" in given:
        size = size + given["bias"].masked_fill(given["bias"].isinf(), 0).abs().max()
    temperature = torch.as_tensor(given.get("temperature", 1.0)).double().view(-1)
    return 16 * 2.0**-24 * (1 + size / temperature)


def called(monkeypatch, kind, hidden, weight, targets, given=None, **options):
    """Calls with a screen, and compares with float64.

    Args:
        monkeypatch: of the test.
        kind: "int8" or "fp8".
        hidden: on the CPU, as all tensors.
        weight: the same.
        targets: the same.
        given: options of both calls.
        options: of the screened one.
    """
    given = given or {}
    want = reference(hidden, weight, targets, given)
    release_screens()
    take_forward_stats()
    inputs = [moved(x) for x in (hidden, weight, targets)]
    more = {key: moved(value) for key, value in given.items()}
    with estimates(monkeypatch) as seen:
        out = linear_logprob(*inputs, screen=kind, backend="triton", **more, **options)
    out = tuple(x.detach().cpu() for x in out)
    estimate = torch.cat(seen).cpu() if seen else torch.full((len(hidden),), float("inf"))
    error, entropy = (
        (got - true).abs().masked_fill(got == true, 0) for got, true in zip(out, want, strict=True)
    )
    beyond = error - rounding_of(hidden, weight, given)
    return Found(out, take_forward_stats(), estimate, error, beyond, entropy, out[0] - want[0])


def assert_within(found, tolerance=TOLERANCE):
    """No token is off by more than the tolerance, none that is screened by more than estimated."""
    assert not found.error.isnan().any()
    assert found.beyond.max() <= tolerance, f"{found.beyond.max():.1e}"
    screened = found.estimate <= tolerance
    assert (found.beyond <= found.estimate)[screened].all()
    assert found.stats.estimate_failed == 0
    assert found.stats.estimate_max <= tolerance
