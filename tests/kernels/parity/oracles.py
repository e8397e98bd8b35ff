"""The peers' formulas restated, padded and eager, for machines where the peers are not installed.

Written from TRL 1.16's ``GRPOTrainer._compute_loss`` and verl 0.9.1's ``core_algos``; no code of
``siri_kernels`` is used, so that they are oracles of it.
"""

from __future__ import annotations

import torch


def trl(
    batch,
    loss_type,
    *,
    level="token",
    low=0.2,
    high=0.28,
    delta=None,
    beta=0.0,
    corrected=False,
    threshold=None,
    weights=None,
    tau=(1.0, 1.05),
    items=77.0,
    cap=40,
):
    m, a = batch.float_mask, batch.advantages[:, None]
    x = batch.logprobs - batch.old
    if level == "sequence":
        x = ((x * m).sum(-1) / m.sum(-1).clamp(min=1))[:, None]
    r = x.exp()
    if loss_type == "cispo":
        loss = -r.clamp(max=high).detach() * a * batch.logprobs
    elif loss_type == "sapo":
        t = torch.full_like(a, tau[1]).masked_fill(a > 0, tau[0])
        loss = -a * torch.sigmoid(t * (r - 1)) * 4 / t
    else:
        free = r if delta is None else r.clamp(max=delta)
        loss = -torch.min(free * a, r.clamp(1 - low, 1 + high) * a)
    if threshold is not None:
        drift = ((batch.old - batch.logprobs.detach()) * m).sum(1) / m.sum(1).clamp(min=1)
        loss = loss * ((a >= 0) | (drift <= threshold)[:, None])
    if weights is not None:
        loss = loss * weights
    if beta:
        d = batch.ref - batch.logprobs
        kl = d.exp() - d - 1
        loss = loss + beta * (kl * r if corrected else kl)
    total = (loss * m).sum(-1)
    if loss_type in ("grpo", "sapo"):
        return (total / m.sum(-1).clamp(min=1)).mean()
    if loss_type == "luspo":
        return total.mean()
    divisor = {"bnpo": m.sum(), "dr_grpo": len(m) * cap}.get(loss_type, items)
    return total.sum() / divisor


def rollout_weights(batch, mode, level, low, high):
    """TRL's, which are verl's but for verl's clamp of the log-ratio to +-20."""
    gap = ((batch.old - batch.rollout) * batch.float_mask).nan_to_num(nan=0.0)
    if level == "sequence":
        gap = gap.sum(-1, keepdim=True)
    w = gap.exp()
    if mode == "truncate":
        return w.clamp(low, high)
    return w.masked_fill((w < low) | (w > high), 0.0)


def verl(batch, name, mode="token-mean", *, low=0.2, high=0.28, c=3.0, tau=(1.0, 1.05), factor=50):
    m, a = batch.float_mask, batch.advantages[:, None].expand_as(batch.old)
    x = batch.logprobs - batch.old
    if name == "geo_mean":
        sign = a.sign()
        x = sign * torch.min(sign * x, sign * x.clamp(-low, high))
        n = m.sum(-1) + 1e-8
        return (-(a * m).sum(-1) / n * ((x * m).sum(-1) / n).exp()).mean()
    if name == "gspo":
        mean = ((x * m).sum(-1) / m.sum(-1).clamp(min=1)).detach()[:, None]
        r = (batch.logprobs - batch.logprobs.detach() + mean).clamp(max=10).exp()
    else:
        r = x.clamp(-20, 20).exp()
    if name == "cispo":
        loss = -r.clamp(1 - low, 1 + high).detach() * a * batch.logprobs
    elif name == "sapo":
        t = torch.full_like(a, tau[1]).masked_fill(a > 0, tau[0])
        loss = -a * torch.sigmoid(t * (r - 1)) * 4 / t
    else:
        loss = torch.maximum(-a * r, -a * r.clamp(1 - low, 1 + high))
        if name == "vanilla":
            loss = torch.where(a < 0, torch.min(-a * c, loss), loss)
    rows = (m.sum(-1) > 0).sum()
    if mode == "token-mean":
        return (loss * m).sum() / m.sum()
    if mode == "seq-mean-token-mean":
        return ((loss * m).sum(-1) / (m.sum(-1) + 1e-8)).sum() / rows
    total = (loss * m).sum() / rows
    return total if mode == "seq-mean-token-sum" else total / factor


def verl_k3(batch):
    d = (batch.ref - batch.logprobs).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)
