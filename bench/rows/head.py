"""Cases of the head: hidden states and weight to log-probs, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bench.device import Device
from bench.inputs import Inputs, language_inputs, uniform_inputs
from bench.measure import Errors, Work, distance
from bench.peers import entries, found
from bench.peers.base import Contender, Entry, Where
from bench.peers.pytorch import logprobs as eager
from bench.real import real_inputs
from siri_kernels import take_backward_stats, take_forward_stats

PROBE = 64  # tokens that are compared with float64


@dataclass(frozen=True)
class HeadCase:
    """A case of the head.

    Args:
        tokens: T.
        dim: D.
        vocab: V.
        softmax: mean entropy in nats of a made-up one, "uniform", or "real T" for SmolLM2's hidden
            states at temperature T.
        mode: "both": forward, and backward with a fixed gradient for each token; "forward": without
            backward; "frozen": backward to the hidden states alone.
        masked: share of the tokens that are masked.
        group: "head", "scalar" (the sum of the log-probs) or "growth".
        priority: cases with a smaller one run earlier.
        among: contenders of a "head" case: "all", "few" or "sweep"
            (:class:`bench.peers.base.Entry`).
        labels: the contenders themselves, in place of ``among``.
    """

    tokens: int
    dim: int
    vocab: int
    softmax: float | str = 0.5
    mode: str = "both"
    masked: float = 0.0
    group: str = "head"
    priority: int = 0
    among: str = "few"
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Unique, and what tables print."""
        softmax = f"{self.softmax} nats" if isinstance(self.softmax, float) else self.softmax
        mask = f", {self.masked:.0%} masked" if self.masked else ""
        shape = f"{self.tokens} x {self.dim} x {self.vocab}"
        return f"{self.group}: {shape}, {softmax}, {self.mode}{mask}"

    def contenders(self) -> dict[str, Entry]:
        """All that take part by label, installed or not."""
        scalar = self.group == "scalar"
        case = "growth" if self.group == "growth" else self.among
        if scalar or self.labels:
            case = "all"
        chosen = entries("scalar" if scalar else "head", case)
        return {n: e for n, e in chosen.items() if not self.labels or n in self.labels}

    def build(self, where: Where, device: Device, real: str | None) -> Work:
        """Inputs on the device, and the contenders' calls on them.

        Args:
            where: for the contenders.
            device: its dtype is that of hidden states and weight.
            real: file of SmolLM2's hidden states, see :func:`bench.real.real_inputs`.
        """
        shape = (self.tokens, self.dim, self.vocab, self.softmax)
        inputs = tuple(x.to(device.dtype) if x.is_floating_point() else x
                       for x in _inputs(*shape, where.device.type, real))  # fmt: skip
        here, missing = found(self.contenders(), where)
        return _Row(self, inputs, here).work(missing)


@lru_cache(maxsize=1)
def _inputs(
    tokens: int, dim: int, vocab: int, softmax: float | str, device: str, real: str | None
) -> Inputs:
    if isinstance(softmax, float):
        return language_inputs(tokens, dim, vocab, softmax, device=device)
    if softmax == "uniform":
        return uniform_inputs(tokens, dim, vocab, device=device)
    return real_inputs(tokens, float(softmax.split()[1]), real, device)


class _Row:
    """The inputs of a case and the calls on them."""

    def __init__(self, case: HeadCase, inputs: Any, contenders: dict[str, Contender]) -> None:
        self.case, self.contenders = case, contenders
        hidden, self.weight, self.targets = inputs
        self.hidden = hidden.requires_grad_()
        self.weight.requires_grad_(case.mode != "frozen")
        generator = torch.Generator(hidden.device).manual_seed(1)
        drawn = torch.rand(len(hidden), generator=generator, device=hidden.device)
        self.unmasked = drawn >= case.masked
        self.upstream = torch.randn(len(hidden), generator=generator, device=hidden.device)
        self.upstream *= self.unmasked
        if case.group == "scalar":
            self.upstream = torch.ones((), device=hidden.device)

    def logprobs(
        self, contender: Contender, hidden: Tensor, weight: Tensor, unmasked: Tensor, kept: Tensor
    ) -> Tensor:
        """Through the contender's call, which gets the unmasked tokens alone or the mask."""
        targets = self.targets[: len(hidden)]
        if not self.case.masked:
            return contender.call(hidden, weight, targets)
        if contender.masks:
            return contender.call(hidden, weight, targets.where(unmasked, -100))
        values = contender.call(hidden[kept], weight, targets[kept])
        return values.new_zeros(len(hidden)).index_copy(0, kept, values)

    def bound(self, contender: Contender, tokens: int | None = None, dtype: Any = None) -> Any:
        """A call without arguments on the first ``tokens``: log-probs and gradients."""
        case, part = self.case, slice(0, tokens)
        hidden, weight = self.hidden, self.weight
        if tokens is not None:
            hidden = hidden[part].detach().to(dtype or hidden.dtype).requires_grad_()
            weight = weight.detach().to(dtype or weight.dtype).requires_grad_(case.mode != "frozen")
        unmasked, upstream = self.unmasked[part], self.upstream
        if case.group != "scalar":
            upstream = upstream[part]
        kept = unmasked.nonzero()[:, 0]
        leaves = (hidden,) if case.mode == "frozen" else (hidden, weight)

        def run() -> tuple[Tensor, ...]:
            if case.mode == "forward":
                with torch.no_grad():
                    return (self.logprobs(contender, hidden, weight, unmasked, kept),)
            out = self.logprobs(contender, hidden, weight, unmasked, kept)
            if case.group == "scalar":
                out = out.sum()
            return out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))

        return run

    def checks(
        self,
    ) -> tuple[Callable[[str], tuple[Errors, str | None]], Callable[[str, Any], str | None]]:
        """Two checks against float64: of a call on a few tokens, and of these in a call on all.

        The errors of eager in the same dtype and in bfloat16 are the measure.
        """
        few = min(PROBE, len(self.hidden))
        plain = Contender(eager, "")
        exact = [t.double() for t in self.bound(plain, few, torch.float64)()]
        parts = ("logprobs", "d_hidden", "d_weight")

        def errors(results: Any) -> Errors:
            pairs = zip(parts, results, exact, strict=False)
            return {part: distance(got, want) for part, got, want in pairs}

        eagers = {
            "same": errors(self.bound(plain, few)()),
            "bfloat16": errors(self.bound(plain, few, torch.bfloat16)()),
        }
        self.eager_errors = eagers

        def too_far(name: str, got: Errors, slack: float = 1.0) -> str | None:
            times, dtype = self.contenders[name].gate
            for part, numbers in got.items():
                allowed = slack * times * eagers[dtype][part]["relative"] + 1e-6
                if not numbers["relative"] <= allowed:  # NaN is wrong too
                    reason = f"{part} is {numbers['relative']:.1e} from float64"
                    return f"{reason}, allowed are {allowed:.1e}"
            return None

        def on_few_tokens(name: str) -> tuple[Errors, str | None]:
            got = errors(self.bound(self.contenders[name], few)())
            return got, too_far(name, got)

        def at_full_size(name: str, results: Any) -> str | None:
            if self.case.group == "scalar":
                return None  # a sum over other tokens
            # The same numbers token by token, but for the error bound, which depends on all tokens.
            why = too_far(name, errors([x[:few] for x in results[:2]]), slack=2.0)
            return why and f"at full size {why}"

        return on_few_tokens, at_full_size

    def screened_facts(self) -> dict[str, float | None]:
        """The statistics of a call with a screen, and the error of its first log-probs."""
        take_forward_stats()
        got = self.bound(self.contenders["ours, screened"])()[0]
        stats = take_forward_stats()
        assert stats is not None
        few = min(PROBE, len(self.hidden))
        want = self.bound(Contender(eager, ""), few, torch.float64)()[0]
        gap = got[:few].double() - want
        return {
            **stats._asdict(),
            "logprob_rms": float(gap.square().mean().sqrt()),
            "logprob_max": float(gap.abs().max()),
        }

    def work(self, missing: dict[str, str]) -> Work:
        """For :func:`bench.measure.measure`."""
        case, (n, d, v) = self.case, (len(self.hidden), self.case.dim, self.case.vocab)
        check, check_result = self.checks()
        unmasked = int(self.unmasked.sum())
        size, products = self.hidden.element_size(), {"forward": 1, "frozen": 2, "both": 3}
        returned = 0 if case.mode == "forward" else self.hidden.nbytes
        returned += self.weight.nbytes if case.mode == "both" else 0
        kept = self.hidden.detach()[self.unmasked]

        def product() -> Tensor:  # by tokens that fit, the whole vocabulary
            with torch.no_grad():
                for part in kept.split(8192):
                    last = part @ self.weight.T
            return last

        facts = {
            "case": {"tokens": n, "dim": d, "vocab": v, "softmax": case.softmax, "mode": case.mode,
                     "masked": case.masked, "group": case.group, "dtype": str(self.hidden.dtype)},
            "errors_eager": self.eager_errors,
        }  # fmt: skip
        if "ours" in self.contenders and case.mode != "forward":
            take_backward_stats()
            self.bound(self.contenders["ours"])()
            stats = take_backward_stats()
            if stats is not None:
                facts |= {
                    "dense_row_frac": float(stats.dense_row_frac),
                    "entries_kept": float(stats.entries_kept),
                }
        if "ours, screened" in self.contenders:
            facts["screened"] = self.screened_facts()
        return Work(
            steps={name: self.bound(item) for name, item in self.contenders.items()},
            check=check,
            check_result=check_result,
            yardsticks={"product": product},
            flops=2.0 * products[case.mode] * unmasked * d * v,
            bytes=float(size * (unmasked * d + v * d) + returned),
            returned=returned,
            missing=missing,
            settings={name: item.settings for name, item in self.contenders.items()},
            facts=facts,
        )


def cpu_cases() -> list[HeadCase]:
    """The cases for minutes on two cores: SmolLM2's head, one of 152 000 ids, wide ones.

    With ``--threads 2`` the same cases run on two cores.
    """
    small, sweep = (256, 576, 49_152), "sweep"
    cases = [HeadCase(512, 576, 49_152, among="all")]
    cases += [HeadCase(*small, softmax="real 0.8"), HeadCase(128, 896, 151_936, among=sweep)]
    cases += [HeadCase(*small, mode=m, among=sweep, priority=1) for m in ("forward", "frozen")]
    cases += [HeadCase(*small, masked=share, among=sweep, priority=1) for share in (0.3, 0.6)]
    softmaxes = ("real 0.6", "real 1.2", 0.1, 1.0, 3.0, "uniform")
    cases += [HeadCase(*small, softmax=s, among=sweep, priority=2) for s in softmaxes]
    cases += [HeadCase(*small, group="scalar", priority=2)]
    cases += [HeadCase(n, 256, 49_152, group="growth", priority=3) for n in (64, 128, 256, 512)]
    wide = ((32, 1536, 128_256), (64, 1536, 128_256), (128, 1536, 128_256), (64, 3584, 49_152))
    cases += [HeadCase(*shape, among=sweep, priority=4) for shape in wide]
    dense = ((256, 1536, 49_152), (1024, 576, 49_152))
    return cases + [HeadCase(*shape, softmax="uniform", among=sweep, priority=5) for shape in dense]


def gpu_cases() -> list[HeadCase]:
    """Everything, the most important first; the grid's largest cases last."""
    main = (16_384, 1536, 151_936)
    cases = [HeadCase(*main, among="all"), HeadCase(16_384, 3584, 151_936)]
    cases += [HeadCase(*main, mode=mode, priority=1) for mode in ("forward", "frozen")]
    cases += [HeadCase(*main, softmax=s, priority=1) for s in ("uniform", 1.0)]
    cases += [
        HeadCase(16_384, 576, 49_152, softmax=s, priority=1) for s in ("real 0.8", "real 0.6")
    ]
    cases += [HeadCase(*main, masked=share, priority=1) for share in (0.3, 0.6)]
    cases += [HeadCase(*main, group="scalar", priority=2)]
    cases += [HeadCase(*main, softmax=s, priority=3) for s in (0.1, 0.3, 3.0)]
    grid = [
        HeadCase(n, d, v, priority=4)
        for n in (4096, 1024, 16_384, 65_536)
        for d in (3584, 1536, 4096, 896)
        for v in (151_936, 128_256, 49_152)
    ]
    cases += [case for case in grid if case.name not in {c.name for c in cases}]
    cases += [
        HeadCase(2**k, 1536, 151_936, group="growth", priority=3) for k in (10, 12, 13, 14, 15, 16)
    ]
    return cases


def tiny_cases() -> list[HeadCase]:
    """The GPU's kinds of case at sizes for Triton's interpreter."""
    small = (20, 32, 300)
    cases = [HeadCase(*small, among="all"), HeadCase(*small, mode="forward")]
    cases += [HeadCase(*small, mode="frozen"), HeadCase(*small, softmax="uniform")]
    cases += [HeadCase(*small, masked=0.3), HeadCase(*small, group="scalar")]
    return cases + [HeadCase(n, 32, 300, group="growth") for n in (10, 20)]
