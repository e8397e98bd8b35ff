"""Rows of the policy loss and of the group advantages, which move bytes and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.device import Device
from bench.measure import Errors, Work, distance
from bench.peers import found
from bench.peers.advantages import ADVANTAGES
from bench.peers.base import Make, Where
from bench.peers.losses import LOSSES, LossBatch, eager_loss, spread
from siri_kernels import varlen

Makes = dict[str, Make]
FLOAT32 = 1e-4  # relative error that a float32 result may have; TRL's eps alone is 1e-4 of std


@dataclass(frozen=True)
class LossCase:
    """The clipped loss of ``tokens`` tokens, forward and backward.

    ``ragged``: answers of log-normal length, which padded layouts fill up to the longest; else all
    have 1024 tokens (or as many as there are), the padded layouts' best case.
    """

    tokens: int
    ragged: bool = False
    priority: int = 0
    group: str = "loss"

    @property
    def name(self) -> str:
        """Unique, and what tables print."""
        return f"loss: {self.tokens} tokens, {'ragged' if self.ragged else 'equal'} lengths"

    @property
    def contenders(self) -> list[str]:
        """All that take part, installed or not."""
        return list(LOSSES)

    def lengths(self) -> Tensor:
        """[B], in sum ``tokens``."""
        mean = min(1024, self.tokens)
        if not self.ragged:
            return torch.full((self.tokens // mean,), mean)
        drawn = torch.randn(4 * self.tokens // mean + 8, generator=torch.Generator().manual_seed(0))
        lengths = (mean * (0.8 * drawn - 0.32).exp()).long().clamp(1, 8 * mean)
        ends = lengths.cumsum(0)
        count = int((ends < self.tokens).sum())
        last = self.tokens - (int(ends[count - 1]) if count else 0)
        return torch.cat([lengths[:count], torch.tensor([last])])

    def build(self, where: Where, device: Device, real: str | None, makes: Makes = LOSSES) -> Work:
        """Inputs on the device, and what is measured on them; ``makes``: who takes part."""
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
        here, missing = found(makes, where)
        exact = batch.to(torch.float64)
        loss = eager_loss(exact.logprobs, exact.old, spread(exact))
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
            return errors, None if worst <= FLOAT32 else f"gradient {worst:.1e} from float64"

        return Work(
            steps={name: lambda c=item: c.call(batch) for name, item in here.items()},
            check=check,
            yardsticks={"copy": copy_of(batch.old)},
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


class Ids(NamedTuple):
    """The group of each sample in both forms."""

    tensor: Tensor
    numpy: Any


@dataclass(frozen=True)
class AdvantageCase:
    """Advantages of ``groups`` groups of ``size`` rewards."""

    groups: int
    size: int = 16
    priority: int = 0
    group: str = "advantages"

    @property
    def name(self) -> str:
        """Unique, and what tables print."""
        return f"advantages: {self.groups} groups of {self.size}"

    @property
    def contenders(self) -> list[str]:
        """All that take part, installed or not."""
        return list(ADVANTAGES)

    def build(
        self, where: Where, device: Device, real: str | None, makes: Makes = ADVANTAGES
    ) -> Work:
        """Inputs on the device, and what is measured on them; ``makes``: who takes part."""
        generator = torch.Generator(where.device).manual_seed(0)
        count = self.groups * self.size
        rewards = torch.randn(count, generator=generator, device=where.device)
        numbers = torch.arange(count, device=where.device) // self.size
        ids = Ids(numbers, numbers.cpu().numpy())
        here, missing = found(makes, where)
        if count > 2**15:  # their loops would take minutes
            for name in ("verl", "NeMo"):
                if here.pop(name, None) is not None:
                    missing[name] = "a Python loop over samples: measured up to 32 768 of them"
        rows = rewards.double().view(-1, self.size)
        scale = rows.std(1, keepdim=True) + 1e-6
        want = ((rows - rows.mean(1, keepdim=True)) / scale).flatten()

        def called(name: str) -> Any:
            takes_numpy = name in ("verl", "verl, vectorised", "NeMo")
            return lambda: here[name].call(rewards, self.size, ids if takes_numpy else numbers)

        def check(name: str) -> tuple[Errors, str | None]:
            errors = {"advantages": distance(called(name)(), want)}
            worst = errors["advantages"]["relative"]
            allowed = 1e-3 if name.startswith("TRL") else FLOAT32  # its eps is another one
            return errors, None if worst <= allowed else f"{worst:.1e} from float64"

        return Work(
            steps={name: called(name) for name in here},
            check=check,
            yardsticks={"copy": copy_of(rewards)},
            flops=0.0,
            bytes=float(2 * rewards.nbytes),
            returned=rewards.nbytes,
            missing=missing,
            settings={name: item.settings for name, item in here.items()},
            facts={"case": {"groups": self.groups, "size": self.size, "group": self.group,
                            "dtype": "torch.float32"}},
            count_launches=True,
        )  # fmt: skip


def copy_of(values: Tensor) -> Any:
    """A copy of as many bytes, the yard-stick of work that moves bytes."""
    target = torch.empty_like(values)
    return lambda: target.copy_(values)


def cpu_cases() -> list[LossCase | AdvantageCase]:
    """32 K to 1 M tokens; 1024 groups of 16 is verl's usual batch."""
    losses = [LossCase(2**k) for k in (20, 18, 15)] + [LossCase(2**18, ragged=True)]
    return [*losses, AdvantageCase(1024), AdvantageCase(65_536), AdvantageCase(2**14, 64)]


def gpu_cases() -> list[LossCase | AdvantageCase]:
    """The same."""
    return [*cpu_cases(), LossCase(2**20, ragged=True), AdvantageCase(2048)]


def tiny_cases() -> list[LossCase | AdvantageCase]:
    """For Triton's interpreter."""
    return [LossCase(2048), LossCase(1500, ragged=True), AdvantageCase(16, 8)]
