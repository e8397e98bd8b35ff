"""Cases of the policy loss and of the group advantages, which move bytes and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.device import Device
from bench.inputs import GroupIds, LossBatch
from bench.measure import Errors, Work, distance
from bench.peers import entries, found
from bench.peers.base import Contender, Entry, Where
from bench.peers.pytorch import clipped_loss
from siri_kernels import varlen

Entries = dict[str, Entry]


@dataclass(frozen=True)
class LossCase:
    """The clipped loss, forward and backward.

    Args:
        tokens: in sum.
        ragged: responses of log-normal length, which padded layouts fill up to the longest; else
            all have ``mean`` tokens (or all there are), the padded layouts' best case.
        mean: tokens of a response.
        priority: cases with a smaller one run earlier.
        group: of the tables.
    """

    tokens: int
    ragged: bool = False
    mean: int = 1024
    priority: int = 0
    group: str = "loss"

    @property
    def name(self) -> str:
        """Unique, and what tables print."""
        mean = "" if self.mean == 1024 else f" of {self.mean}"
        return f"loss: {self.tokens} tokens, {'ragged' if self.ragged else 'equal'} lengths{mean}"

    def lengths(self) -> Tensor:
        """[B], in sum ``tokens``."""
        mean = min(self.mean, self.tokens)
        if not self.ragged:
            return torch.full((self.tokens // mean,), mean)
        drawn = torch.randn(4 * self.tokens // mean + 8, generator=torch.Generator().manual_seed(0))
        lengths = (mean * (0.8 * drawn - 0.32).exp()).long().clamp(1, 8 * mean)
        ends = lengths.cumsum(0)
        count = int((ends < self.tokens).sum())
        last = self.tokens - (int(ends[count - 1]) if count else 0)
        return torch.cat([lengths[:count], torch.tensor([last])])

    def build(
        self, where: Where, device: Device, real: str | None, given: Entries | None = None
    ) -> Work:
        """Inputs on the device, and the contenders' calls on them.

        Args:
            where: for the contenders.
            device: not used: everything is float32.
            real: not used, as the inputs are made up.
            given: who takes part; None: all of the grid.
        """
        given = entries(self.group) if given is None else given
        lengths = self.lengths().to(where.device)
        width = int(lengths.max())
        mask = torch.arange(width, device=where.device) < lengths[:, None]
        generator = torch.Generator(where.device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=where.device)

        old = -normal(*mask.shape).abs()
        logprobs = old + 0.2 * normal(*mask.shape)
        batch = LossBatch(
            logprobs=varlen.pack(logprobs, lengths).values.requires_grad_(),
            old=varlen.pack(old, lengths).values,
            advantages=normal(len(lengths)),
            cu_seqlens=varlen.cu_seqlens_from(lengths),
            padded_logprobs=logprobs.requires_grad_(),
            padded_old=old,
            mask=mask,
        )
        here, missing = found(given, where)
        exact = batch.to(torch.float64)
        loss = clipped_loss(exact.logprobs, exact.old, exact.advantage_per_token())
        want = loss.detach(), torch.autograd.grad(loss, exact.logprobs)[0]

        def check(name: str) -> tuple[Errors, str | None]:
            loss, grad = here[name].call(batch)
            grad = grad if grad.dim() == 1 else grad[mask]
            errors = {
                "loss": distance(loss, want[0]),
                "d_logprobs": distance(grad, want[1]),
            }
            # A sum of a million terms that nearly cancel: the gradient has to be right.
            worst = errors["d_logprobs"]["relative"]
            right = worst <= given[name].tolerance
            return errors, None if right else f"gradient {worst:.1e} from float64"

        return Work(
            steps={name: lambda c=item: c.call(batch) for name, item in here.items()},
            check=check,
            yardsticks={"copy": _copy_of(batch.old)},
            flops=0.0,
            bytes=float(3 * batch.old.nbytes + batch.advantages.nbytes),
            returned=batch.old.nbytes,
            missing=missing,
            settings={name: item.settings for name, item in here.items()},
            facts={"case": {"tokens": self.tokens, "ragged": self.ragged, "group": self.group,
                            "sequences": len(lengths), "padded": mask.numel(),
                            "dtype": "torch.float32"}},
            count_launches=True,
        )  # fmt: skip


@dataclass(frozen=True)
class AdvantageCase:
    """Group advantages.

    Args:
        groups: how many.
        size: rewards of a group.
        calls: that are timed together, where one alone is shorter than what a clock can tell and
            its time is that of the caches which the contender before it left.
        priority: cases with a smaller one run earlier.
        group: of the tables.
    """

    groups: int
    size: int = 16
    calls: int = 1
    priority: int = 0
    group: str = "advantages"

    @property
    def name(self) -> str:
        """Unique, and what tables print."""
        calls = f", {self.calls} calls" if self.calls > 1 else ""
        return f"advantages: {self.groups} groups of {self.size}{calls}"

    def build(
        self, where: Where, device: Device, real: str | None, given: Entries | None = None
    ) -> Work:
        """Inputs on the device, and the contenders' calls on them.

        Args:
            where: for the contenders.
            device: not used: everything is float32.
            real: not used, as the inputs are made up.
            given: who takes part; None: all of the grid.
        """
        given = entries(self.group) if given is None else given
        generator = torch.Generator(where.device).manual_seed(0)
        count = self.groups * self.size
        rewards = torch.randn(count, generator=generator, device=where.device)
        numbers = torch.arange(count, device=where.device) // self.size
        ids = GroupIds(numbers, numbers.cpu().numpy())
        here, missing = found(given, where)
        for name, entry in given.items():
            most = entry.most
            if most is not None and count > most and here.pop(name, None) is not None:
                some = f"{most:,}".replace(",", " ")
                missing[name] = f"a Python loop over samples: measured up to {some} of them"
        groups = rewards.double().view(-1, self.size)
        scale = groups.std(1, keepdim=True) + 1e-6
        want = ((groups - groups.mean(1, keepdim=True)) / scale).flatten()

        def called(contender: Contender) -> Any:
            return lambda: contender.call(rewards, self.size, ids)

        def check(name: str) -> tuple[Errors, str | None]:
            errors = {"advantages": distance(called(here[name])(), want)}
            worst = errors["advantages"]["relative"]
            right = worst <= given[name].tolerance
            return errors, None if right else f"{worst:.1e} from float64"

        return Work(
            steps={name: _repeated(called(item), self.calls) for name, item in here.items()},
            check=check,
            yardsticks={"copy": _repeated(_copy_of(rewards), self.calls)},
            flops=0.0,
            bytes=float(2 * rewards.nbytes * self.calls),
            returned=rewards.nbytes,
            missing=missing,
            settings={name: item.settings for name, item in here.items()},
            facts={"case": {"groups": self.groups, "size": self.size, "calls": self.calls,
                            "group": self.group, "dtype": "torch.float32"}},
            count_launches=True,
        )  # fmt: skip


def _repeated(step: Any, calls: int) -> Any:
    """The step so many times; the last result."""
    if calls == 1:
        return step

    def steps() -> Any:
        for _ in range(calls - 1):
            step()
        return step()

    return steps


def _copy_of(values: Tensor) -> Any:
    """A copy of as many bytes, the yardstick of work that moves bytes."""
    target = torch.empty_like(values)
    return lambda: target.copy_(values)


def cpu_cases() -> list[LossCase | AdvantageCase]:
    """128 to 1 M tokens; 8 questions of 4 answers, and verl's usual batch of 1024 of 16."""
    losses = [LossCase(2**k) for k in (20, 18, 15, 7)]
    losses += [LossCase(2**18, ragged=True), LossCase(2**12, mean=64)]
    losses += [LossCase(2**19, ragged=True, mean=8)]  # many tiny responses
    sizes = [(8, 4, 100), (1024, 16), (4096, 64), (65_536, 16), (2**14, 64)]
    return [*losses, *(AdvantageCase(*each) for each in sizes)]


def gpu_cases() -> list[LossCase | AdvantageCase]:
    """The same."""
    return [*cpu_cases(), LossCase(2**20, ragged=True), AdvantageCase(2048)]


def tiny_cases() -> list[LossCase | AdvantageCase]:
    """For Triton's interpreter."""
    return [LossCase(2048), LossCase(1500, ragged=True), AdvantageCase(16, 8)]
