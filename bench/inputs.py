"""Benchmark inputs: a head and hidden states whose softmax has a chosen entropy and a long tail."""

from __future__ import annotations

import torch
from torch import Tensor


def head_inputs(
    tokens: int, dim: int, vocab: int, entropy: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [T, D], weight [V, D] (float32) and targets [T] sampled from the softmax.

    Rows of the weight fall in length as the rank's logarithm, like token frequencies, and the
    hidden states are scaled until 64 rows have the wanted mean ``entropy`` in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = torch.arange(1, vocab + 1, dtype=torch.float32)
    weight = torch.randn(vocab, dim, generator=generator) / dim**0.5
    weight[:, 0] = -rank.log() / 4  # a Zipf tail, carried by one direction of the hidden states
    hidden = torch.randn(tokens, dim, generator=generator)
    hidden[:, 0] = 1.0
    low, high = 0.0, 400.0
    for _ in range(40):
        scale = (low + high) / 2
        logits = (hidden[:64] * scale) @ weight.T
        logp = logits.log_softmax(-1)
        if -(logp.exp() * logp).sum(-1).mean() > entropy:
            low = scale
        else:
            high = scale
    hidden *= high
    targets = torch.empty(tokens, dtype=torch.long)
    for start in range(0, tokens, 256):
        probs = (hidden[start : start + 256] @ weight.T).softmax(-1)
        targets[start : start + 256] = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return hidden, weight, targets


def language_inputs(
    tokens: int, dim: int, vocab: int, entropy: float, seed: int = 0, exponent: float = 2.1
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`head_inputs`, with as many small probabilities as a language model has.

    Each row has a token it prefers over a Zipf tail ``rank ** -exponent``. The ranks follow the
    ids, as in a tokenizer, but not closely: they are drawn 16 times, and a row has one of the
    draws, so that rows list different ids. At 0.5 nats about 60 entries a row have probability 1e-5
    or more, as many as SmolLM2-135M has on its own answers at that entropy.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = torch.arange(1, vocab + 1, dtype=torch.float32)
    weight = torch.randn(vocab, dim, generator=generator) / dim**0.5
    draws = 16
    for draw in range(draws):
        noise = -torch.rand(vocab, generator=generator).clamp(min=1e-9).log().neg().log()
        order = (rank.log() - 1.5 * noise).argsort()
        weight[order, draw] = -rank.log()
    preferred = torch.multinomial(1 / rank, tokens, replacement=True, generator=generator)
    wish = weight[preferred].clone()
    wish[:, :draws] = 0
    tail = torch.zeros(tokens, dim)
    tail[torch.arange(tokens), torch.randint(draws, (tokens,), generator=generator)] = exponent
    low, high = 0.0, 100.0
    for _ in range(40):
        scale = (low + high) / 2
        logp = ((scale * wish + tail)[:64] @ weight.T).log_softmax(-1)
        if -(logp.exp() * logp).sum(-1).mean() > entropy:
            low = scale
        else:
            high = scale
    hidden = high * wish + tail
    targets = torch.empty(tokens, dtype=torch.long)
    for start in range(0, tokens, 256):
        probs = (hidden[start : start + 256] @ weight.T).softmax(-1)
        targets[start : start + 256] = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return hidden, weight, targets


def uniform_inputs(tokens: int, dim: int, vocab: int, seed: int = 0) -> tuple[Tensor, ...]:
    """As :func:`head_inputs`, with logits near 0: the case that no list helps."""
    generator = torch.Generator().manual_seed(seed)
    hidden = 1e-2 * torch.randn(tokens, dim, generator=generator)
    weight = torch.randn(vocab, dim, generator=generator) / dim**0.5
    return hidden, weight, torch.randint(vocab, (tokens,), generator=generator)
