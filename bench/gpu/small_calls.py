"""``python -m bench.gpu.small_calls cuda|cpu``: every operation once at small, odd sizes.

For ``compute-sanitizer``, which slows a kernel down a hundred times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from siri_kernels import group_advantages, linear_logprob, policy_loss, selective_logprob


def _head(device: torch.device, tail: float, dtype: torch.dtype) -> None:
    """Forward and backward with an odd vocabulary, an odd width and masked tokens."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    tokens, dim, vocabulary = 133, 97, 9001
    hidden = (3 * normal(tokens, dim)).to(dtype).requires_grad_()
    weight = (normal(vocabulary, dim) / dim**0.5).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    targets[:3] = torch.tensor([0, vocabulary - 1, -100], device=device)
    out = linear_logprob(hidden, weight, targets, tail=tail)
    (out.logprobs.sum() + 0.1 * out.entropy.sum()).backward()


def _selective(device: torch.device) -> None:
    """Log-probs of given logits."""
    logits = torch.randn(37, 1001, device=device, requires_grad=True)
    out = selective_logprob(logits, torch.randint(1001, (37,), device=device))
    (out.logprobs.sum() + out.entropy.sum()).backward()


def _loss(device: torch.device) -> None:
    """Ragged responses, one of them empty."""
    ends = torch.tensor([0, 5, 5, 700, 1001], dtype=torch.int32, device=device)
    logprobs = torch.randn(1001, device=device, requires_grad=True)
    old, advantages = torch.randn(1001, device=device), torch.randn(4, device=device)
    for ratio in ("token", "sequence"):
        value, _ = policy_loss(logprobs, old, advantages, ends, ratio=ratio)
        value.backward()


def _advantages(device: torch.device) -> None:
    """Equal groups, and ragged ones in any order."""
    rewards = torch.randn(96, device=device)
    group_advantages(rewards, 8)
    group_advantages(rewards, torch.randint(7, (96,), device=device))


def main() -> None:
    """All calls; errors of a GPU are raised at the end of each."""
    device = torch.device(sys.argv[1])
    calls: dict[str, Callable[[], None]] = {
        "head, lists": lambda: _head(device, 1e-2, torch.bfloat16),
        "head, dense": lambda: _head(device, 0.0, torch.float16),
        "selective": lambda: _selective(device),
        "loss": lambda: _loss(device),
        "advantages": lambda: _advantages(device),
    }
    for name, call in calls.items():
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(f"ran {name}", flush=True)


if __name__ == "__main__":
    main()
