"""Benchmark inputs: a head and hidden states whose softmax has a chosen entropy and a long tail."""

from __future__ import annotations

import torch
from torch import Tensor

Inputs = tuple[Tensor, Tensor, Tensor]


def head_inputs(
    tokens: int, dim: int, vocab: int, entropy: float, seed: int = 0, device: str = "cpu"
) -> Inputs:
    """Hidden states [T, D], weight [V, D] (float32) and targets [T] sampled from the softmax.

    Rows of the weight fall in length as the rank's logarithm, like token frequencies, and the
    hidden states are scaled until 64 rows have the wanted mean ``entropy`` in nats.
    """
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(vocab, dim, generator=generator, device=device) / dim**0.5
    weight[:, 0] = -ranks(vocab, device).log() / 4  # a Zipf tail, carried by one direction
    hidden = torch.randn(tokens, dim, generator=generator, device=device)
    hidden[:, 0] = 1.0
    hidden *= scale_for(entropy, hidden[:64] @ weight.T, torch.zeros(()), 400.0)
    return hidden, weight, sampled(hidden, weight, generator)


def language_inputs(
    tokens: int,
    dim: int,
    vocab: int,
    entropy: float,
    seed: int = 0,
    exponent: float | None = None,
    device: str = "cpu",
) -> Inputs:
    """As :func:`head_inputs`, with as many small probabilities as a language model has.

    Each row has a token it prefers over a Zipf tail ``rank ** -exponent``. The ranks follow the
    ids, as in a tokenizer, but not closely: they are drawn 16 times, and a row has one of the
    draws, so that rows list different ids. At 0.5 nats about 60 entries a row have probability 1e-5
    or more, as many as SmolLM2-135M has on its own answers at that entropy. The tail alone has
    1.5 nats at the default exponent of 2.1, so more than 1 nat takes 1.4.
    """
    exponent = (2.1 if entropy <= 1 else 1.4) if exponent is None else exponent
    generator = torch.Generator(device).manual_seed(seed)
    rank = ranks(vocab, device)
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
    scale = scale_for(entropy, wish[:64] @ weight.T, tail[:64] @ weight.T, 100.0)
    hidden = scale * wish + tail
    return hidden, weight, sampled(hidden, weight, generator)


def uniform_inputs(tokens: int, dim: int, vocab: int, seed: int = 0, device: str = "cpu") -> Inputs:
    """As :func:`head_inputs`, with logits near 0: the case that no list helps."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden = 1e-2 * torch.randn(tokens, dim, generator=generator, device=device)
    weight = torch.randn(vocab, dim, generator=generator, device=device) / dim**0.5
    return hidden, weight, torch.randint(vocab, (tokens,), generator=generator, device=device)


def ranks(vocab: int, device: str) -> Tensor:
    """1, 2, ... [V]."""
    return torch.arange(1, vocab + 1, dtype=torch.float32, device=device)


def scale_for(entropy: float, logits: Tensor, more: Tensor, high: float) -> float:
    """The scale at which rows of ``scale * logits + more`` have this mean entropy, by bisection."""
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
    """Targets [T] drawn from the softmax of each row."""
    targets = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    for start in range(0, len(hidden), 256):
        probs = (hidden[start : start + 256] @ weight.T).softmax(-1)
        targets[start : start + 256] = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return targets
