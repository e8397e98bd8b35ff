"""Drawn heads for the screen, ordinary and adversarial."""

from __future__ import annotations

import math

import torch

from siri_kernels.linear_logprob.screen import forward, options

KINDS = (
    *("language", "noise", "outlier features", "equal logits", "all -200", "1e5", "collapse"),
    *("ties", "flat", "one huge row", "uneven rows", "heavy tails", "masked ids", "softcap"),
    *("cold", "hot", "temperature of each token", "zero rows", "sparse", "aligned", "bfloat16"),
)


def small_calls_too(monkeypatch):
    """Has calls of few tokens and ids screened."""
    monkeypatch.setattr(options, "LEAST_VOCABULARY", 256)
    monkeypatch.setattr(options, "LEAST_TOKENS", 16)
    monkeypatch.setattr(forward, "_FIXED_TOKENS", 0)


def screen_all(monkeypatch):
    """Has every batch screened, whether it pays or not."""
    monkeypatch.setattr(forward, "_mostly_fits", lambda *given: True)
    monkeypatch.setattr(forward, "_LEAST_SHARE", 0.0)


def language_head(tokens, width, vocabulary, sharp, generator):
    """A Zipf tail, and a wish of each token for its target."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    exponent = 0.5 + float(torch.rand(1, generator=generator))
    popular = -torch.arange(1, vocabulary + 1).float().log() * exponent
    weight = normal(vocabulary, width) / math.sqrt(width)
    weight[:, 0] = popular
    targets = torch.multinomial(popular.softmax(0), tokens, True, generator=generator)
    wish = weight[targets].clone()
    wish[:, 0] = 0
    wish /= wish.norm(dim=1, keepdim=True).clamp_min(1e-9)
    hidden = normal(tokens, width) * float(torch.rand(1, generator=generator)) * 2
    hidden[:, 0] = 1 + torch.rand(tokens, generator=generator)
    hidden += sharp * wish * torch.rand(tokens, 1, generator=generator)
    return hidden, weight, targets, wish


def drawn(kind, seed):
    """Hidden states, weight, targets and options of ``linear_logprob``."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    def uniform(*shape):
        return torch.rand(*shape, generator=g)

    def one_of(*values):
        return values[int(torch.randint(len(values), (1,), generator=g))]

    tokens = int(torch.randint(32, 96, (1,), generator=g))
    width = one_of(16, 33, 48, 64, 96, 127, 160)
    vocabulary = one_of(700, 1024, 2048, 3000, 4096)
    h, w, y, wish = language_head(tokens, width, vocabulary, float(uniform(1)) * 12, g)
    given = {}
    if kind == "noise":
        h, w = normal(tokens, width) * 3, normal(vocabulary, width) / math.sqrt(width)
    elif kind == "outlier features":
        columns = torch.randint(1, width, (3,), generator=g)
        h[:, columns] *= 100
        w[:, columns] *= 0.05
    elif kind == "equal logits":
        w = normal(1, width).expand(vocabulary, width)
    elif kind == "all -200":
        given["bias"] = torch.full((vocabulary,), -200.0)
    elif kind == "1e5":
        h *= 1e5 / (h @ w.t()).abs().max()
    elif kind == "collapse":
        h = h * 0.1 + 60 * wish
    elif kind == "ties":
        w = w[torch.randint(vocabulary // 8, (vocabulary,), generator=g)]
    elif kind == "flat":
        h *= 1e-3
    elif kind == "one huge row":
        w[int(torch.randint(vocabulary, (1,), generator=g))] *= 10 ** (float(uniform(1)) * 4)
    elif kind == "uneven rows":
        w *= normal(vocabulary, 1).exp()
    elif kind == "heavy tails":
        w = normal(vocabulary, width) / normal(vocabulary, width).abs().clamp_min(0.05)
        w *= 0.3 / math.sqrt(width)
    elif kind == "masked ids":
        bias = normal(vocabulary)
        given["bias"] = bias.masked_fill(uniform(vocabulary) < 0.5, -math.inf)
    elif kind == "softcap":
        given["softcap"] = float(uniform(1)) * 30 + 1
        h *= 3
    elif kind == "cold":
        given["temperature"] = 0.05 + float(uniform(1)) * 0.3
    elif kind == "hot":
        given["temperature"] = 10 ** (float(uniform(1)) * 2)
    elif kind == "temperature of each token":
        given["temperature"] = normal(tokens).exp().clamp(0.05, 100)
    elif kind == "zero rows":
        w[::3] = 0
        h[::5] = 0
    elif kind == "sparse":
        h = h * (uniform(tokens, width) < 0.1)
    elif kind == "aligned":
        h = h + w[0] * 5 * normal(tokens, 1)
    elif kind == "bfloat16":
        h, w = h.bfloat16(), w.bfloat16()
    return h, w, y, given
