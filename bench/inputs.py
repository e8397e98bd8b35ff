"""Benchmark inputs: a head whose softmax has a chosen entropy, batches of a loss, ids of groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Inputs = tuple[Tensor, Tensor, Tensor]
CLIP_LOW, CLIP_HIGH = 0.2, 0.28  # of the clipped loss, in all contenders


@dataclass
class LossBatch:
    """Packed tokens [T] of B responses, and the same padded [B, L].

    Args:
        logprobs: [T], with a gradient.
        old: [T], log-probs of the policy that sampled.
        advantages: [B].
        cu_seqlens: [B+1] int32.
        padded_logprobs: [B, L], with a gradient.
        padded_old: [B, L].
        mask: [B, L] bool, True for the tokens of a response.
    """

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    cu_seqlens: Tensor
    padded_logprobs: Tensor
    padded_old: Tensor
    mask: Tensor

    def to(self, dtype: torch.dtype) -> LossBatch:
        """The same in another dtype."""
        return LossBatch(
            **{
                name: value.detach().to(dtype).requires_grad_(value.requires_grad)
                if value.is_floating_point()
                else value
                for name, value in vars(self).items()
            }
        )

    def advantage_per_token(self) -> Tensor:
        """[T]: the advantage of each token's response."""
        return self.advantages.repeat_interleave(
            self.cu_seqlens.diff(), output_size=len(self.logprobs)
        )


class GroupIds(NamedTuple):
    """The group of each sample [B], as a tensor on the device and as a numpy array."""

    tensor: Tensor
    numpy: Any


def gradient(loss: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and its gradient."""
    return loss.detach(), torch.autograd.grad(loss, by)[0]


def language_inputs(
    tokens: int,
    dim: int,
    vocab: int,
    entropy: float,
    seed: int = 0,
    exponent: float | None = None,
    device: str = "cpu",
) -> Inputs:
    """A head with as many small probabilities as a language model has.

    Each token's softmax prefers one vocabulary entry over a Zipf tail ``rank ** -exponent``. The
    ranks follow the ids only roughly: they are drawn 16 times and each token has one of the draws,
    so that tokens have different top entries. At 0.5 nats about 60 entries of a softmax have
    probability 1e-5 or more, as many as SmolLM2-135M's on its own responses at that entropy. The
    tail alone has 1.5 nats at the default exponent of 2.1, so more than 1 nat takes 1.4.

    Args:
        tokens: T.
        dim: D.
        vocab: V.
        entropy: mean entropy of the first 64 tokens' softmax in nats; the hidden states are scaled
            until they have it.
        seed: of all draws.
        exponent: of the tail; None: 2.1 up to 1 nat, then 1.4.
        device: of the results.

    Returns:
        Hidden states [T, D] and weight [V, D] in float32, and targets [T] int64 sampled from the
        softmax.
    """
    exponent = (2.1 if entropy <= 1 else 1.4) if exponent is None else exponent
    generator = torch.Generator(device).manual_seed(seed)
    rank = torch.arange(1, vocab + 1, dtype=torch.float32, device=device)
    weight = torch.randn(vocab, dim, generator=generator, device=device) / dim**0.5
    draws = 16
    for draw in range(draws):
        uniform = torch.rand(vocab, generator=generator, device=device).clamp(min=1e-9)
        order = (rank.log() + 1.5 * uniform.log().neg().log()).argsort()
        weight[order, draw] = -rank.log()
    preferred = torch.multinomial(1 / rank, tokens, replacement=True, generator=generator)
    wish = weight[preferred].clone()
    wish[:, :draws] = 0
    tail = torch.zeros(tokens, dim, device=device)
    drawn = torch.randint(draws, (tokens,), generator=generator, device=device)
    tail[torch.arange(tokens, device=device), drawn] = exponent
    scale = _scale_for(entropy, wish[:64] @ weight.T, tail[:64] @ weight.T, 100.0)
    hidden = scale * wish + tail
    return hidden, weight, sampled(hidden, weight, generator)


def uniform_inputs(tokens: int, dim: int, vocab: int, seed: int = 0, device: str = "cpu") -> Inputs:
    """The same with logits near 0, so that every vocabulary entry matters.

    Args:
        tokens: T.
        dim: D.
        vocab: V.
        seed: of all draws.
        device: of the results.

    Returns:
        Hidden states [T, D] and weight [V, D] in float32, and targets [T] int64.
    """
    generator = torch.Generator(device).manual_seed(seed)
    hidden = 1e-2 * torch.randn(tokens, dim, generator=generator, device=device)
    weight = torch.randn(vocab, dim, generator=generator, device=device) / dim**0.5
    return hidden, weight, torch.randint(vocab, (tokens,), generator=generator, device=device)


def _scale_for(entropy: float, logits: Tensor, more: Tensor, high: float) -> float:
    """The scale at which ``scale * logits + more`` has this mean entropy, by bisection."""
    low = 0.0
    for _ in range(40):
        scale = (low + high) / 2
        logp = torch.add(more, logits, alpha=scale).log_softmax(-1)
        if -(logp.exp() * logp).sum(-1).mean() > entropy:
            low = scale
        else:
            high = scale
    return high


def sampled(hidden: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Targets [T] drawn from the softmax of each token.

    Args:
        hidden: [T, D].
        weight: [V, D].
        generator: on their device.
    """
    targets = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    for start in range(0, len(hidden), 256):
        probs = (hidden[start : start + 256] @ weight.T).softmax(-1)
        targets[start : start + 256] = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return targets
