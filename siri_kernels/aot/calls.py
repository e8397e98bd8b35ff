"""The calls whose kernels are compiled: every option that makes another variant, at real sizes.

Where a table of options is too large to go through whole, every pair of settings occurs together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch

from siri_kernels.aot.record import FakeGPU

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Size(NamedTuple):
    """Tokens, vocabulary and width of a call."""

    tokens: int
    vocabulary: int
    width: int


QWEN = Size(16384, 151936, 1536)  # of a 1.5B model
ALIGNED = Size(4096, 32768, 1536)  # the same variants from fewer tiles
ODD = Size(1003, 50257, 1001)  # nothing divides by 16
SHORT = Size(4096, 4096, 1536)  # a vocabulary without top entries


class Call(NamedTuple):
    """A call of the library.

    Attributes:
        name: with its options.
        make: makes it, on the fake GPU that is active.
        parts: names of the GPU generations whose kernels it launches; None: it asks for nothing
            that tells them apart.
    """

    name: str
    make: Callable[[FakeGPU], None]
    parts: tuple[str, ...] | None = None


def tensor(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    """A tensor on the fake GPU.

    Args:
        shape: its sizes.
        dtype: of its elements.
        grad: whether it requires a gradient.
    """
    return torch.empty(shape, dtype=dtype, device="cuda").requires_grad_(grad)


def pairwise(options: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Few settings in which every pair of two options' values occurs together (greedy)."""
    names = list(options)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(range(len(names)), 2)
        for x in range(len(options[names[a]]))
        for y in range(len(options[names[b]]))
    }
    rows = []
    while missing:
        row: dict[int, int] = {}
        for pair in sorted(missing):  # as many missing pairs as fit into one row
            if all(row.get(place, value) == value for place, value in pair):
                row.update(pair)
        whole = [row.get(i, 0) for i in range(len(names))]
        missing -= set(itertools.combinations(enumerate(whole), 2))
        rows.append({name: options[name][i] for name, i in zip(names, whole, strict=True)})
    return rows


def named(what: str, options: dict[str, Any]) -> str:
    """The name of a call.

    Args:
        what: the function that is called.
        options: of the call.
    """
    words = [f"{k}={str(v).removeprefix('torch.')}" for k, v in options.items()]
    return f"{what}({', '.join(words)})"


def linear_logprob_calls() -> Iterator[Call]:
    """Forward and backward of ``linear_logprob``."""
    from siri_kernels import linear_logprob

    def call(options: dict[str, Any]) -> Call:
        def make(gpu: FakeGPU) -> None:
            size, dtype = options["size"], options["dtype"]
            hidden = tensor(size.tokens, size.width, dtype=dtype, grad=True)
            shape = (size.vocabulary, size.width)
            weight = tensor(*shape, dtype=dtype, grad=True)
            if options.get("columns"):
                weight = tensor(*reversed(shape), dtype=dtype).t().requires_grad_()
            bias = None
            if options["bias"]:
                bias = tensor(size.vocabulary, dtype=options.get("bias_dtype", dtype), grad=True)
            targets = tensor(size.tokens, dtype=torch.int64)
            temperature = tensor(size.tokens) if options["per_row"] else 0.7
            # Some tokens are recomputed, or none, or all of them.
            dense, entries = options["backward"]
            gpu.counts = [min(dense, size.tokens), entries]
            linear_logprob(
                hidden,
                weight,
                targets,
                bias=bias,
                temperature=temperature,
                softcap=30.0 if options["softcap"] else None,
                tail=options["tail"],
            )
            gpu.backward(lambda output: options["entropy"] or output == 0)

        return Call(named("linear_logprob", options), make)

    flag = (False, True)
    table: dict[str, tuple[Any, ...]] = {
        "size": (ALIGNED, ODD, SHORT),
        "dtype": DTYPES,
        "bias": flag,
        "per_row": flag,
        "softcap": flag,
        "tail": (1e-2, 0.0),
        "entropy": (True, False),
        "backward": ((0, 65536), (100, 70001), (1 << 30, 0)),
    }
    for options in pairwise(table):
        yield call(options)
    # All combinations of the options that most runs use.
    plain = {"bias": False, "softcap": False, "tail": 1e-2}
    for dtype, per_row, backward in itertools.product(DTYPES, flag, table["backward"]):
        size = QWEN if dtype == torch.bfloat16 else ALIGNED
        usual = {"dtype": dtype, "per_row": per_row, "entropy": per_row, "backward": backward}
        yield call({"size": size, **plain, **usual})
    # A weight that is stored by columns, and a bias in another dtype.
    for size in (ALIGNED, ODD):
        rare = {"bias": True, "softcap": False, "tail": 1e-2, "per_row": False, "entropy": True}
        for backward in table["backward"][:2]:
            yield call({"size": size, **rare, "dtype": torch.bfloat16, "backward": backward,
                        "columns": True, "bias_dtype": torch.float32})  # fmt: skip


def fused_join_calls() -> Iterator[Call]:
    """The join that follows the fused kernel of :mod:`siri_kernels.linear_logprob.triton.fused`."""
    from siri_kernels.linear_logprob.call import HeadCall
    from siri_kernels.linear_logprob.top_entries import TopEntries
    from siri_kernels.linear_logprob.triton import fused
    from siri_kernels.linear_logprob.types import LogitRule

    class NotLaunched:
        """In the place of the fused kernel, which is compiled in another way."""

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *_, **__: None

    def make(size: Size, entries: int, bias: bool, per_row: bool) -> None:
        hidden = tensor(size.tokens, size.width, dtype=torch.bfloat16)
        weight = tensor(size.vocabulary, size.width, dtype=torch.bfloat16)
        targets = tensor(size.tokens, dtype=torch.int64)
        added = tensor(size.vocabulary, dtype=torch.bfloat16) if bias else None
        rule = LogitRule(tensor(size.tokens) if per_row else 0.7)
        call = HeadCall(
            hidden, weight, targets, added, rule, -100, torch.bfloat16, 1e-2, entries, True
        )
        top = TopEntries.empty(size.tokens, entries, hidden, torch.float32) if entries else None
        with (
            mock.patch.object(fused, "operands", lambda *_: (NotLaunched(), (), {})),
            mock.patch.object(fused, "multiprocessors", lambda _: 132),
            mock.patch.object(fused, "programs_together", lambda _: 1),
        ):
            fused.online_softmax(call, top, tensor(size.tokens) if entries else None)

    flag = (False, True)
    for size, entries, bias, per_row in itertools.product((QWEN, SHORT), (1024, 0), flag, flag):
        options = {"size": size, "entries": entries, "bias": bias, "per_row": per_row}
        yield Call(
            named("fused join", options),
            lambda gpu, options=options: make(**options),  # type: ignore[misc]
        )


def selective_logprob_calls() -> Iterator[Call]:
    """Forward and backward of ``selective_logprob``."""
    from siri_kernels import selective_logprob

    def call(size: Size, dtype: torch.dtype, per_row: bool, entropy: bool) -> Call:
        def make(gpu: FakeGPU) -> None:
            logits = tensor(size.tokens, size.vocabulary, dtype=dtype, grad=True)
            temperature = tensor(size.tokens) if per_row else 0.7
            targets = tensor(size.tokens, dtype=torch.int64)
            selective_logprob(logits, targets, temperature=temperature)
            gpu.backward(lambda output: entropy or output == 0)

        options = {"size": size, "dtype": dtype, "per_row": per_row, "entropy": entropy}
        return Call(named("selective_logprob", options), make)

    for options in itertools.product((QWEN, ODD), DTYPES, (False, True), (False, True)):
        yield call(*options)


def group_advantages_calls() -> Iterator[Call]:
    """``group_advantages`` of equal groups, of few ids and of many."""
    from siri_kernels import group_advantages

    def call(options: dict[str, Any]) -> Call:
        def make(gpu: FakeGPU) -> None:
            size = options["size"]
            total = 8192 if options["how"].startswith("few") else 65536
            total = total // size * size
            rewards = tensor(total).to(options["dtype"])
            groups: Any = size
            chosen = {k: options[k] for k in ("baseline", "scale", "singleton")}
            if options["how"] != "equal":
                groups = tensor(total, dtype=torch.int64)
                if options["how"] == "few ids, their number unknown":
                    gpu.counts = [total // size, 0]
                else:
                    chosen["num_groups"] = total // size
            group_advantages(rewards, groups, **chosen)

        return Call(named("group_advantages", options), make)

    table: dict[str, tuple[Any, ...]] = {
        "how": ("equal", "few ids", "few ids, their number unknown", "many ids"),
        "size": (8, 16, 7, 5000),
        "dtype": (torch.float32, torch.float64, torch.bool, torch.bfloat16),
        "baseline": ("mean", "leave_one_out", "none"),
        "scale": ("group_std", "batch_std", "none"),
        "singleton": ("zero", "verl"),
    }
    for options in pairwise(table):
        yield call(options)
    usual = {"dtype": torch.float32, "baseline": "mean", "singleton": "zero"}
    for how, scale in itertools.product(table["how"], table["scale"]):
        yield call({"how": how, "size": 8, "scale": scale, **usual})


def policy_loss_calls() -> Iterator[Call]:
    """``policy_loss`` with every objective, correction, estimator and aggregation."""
    from siri_kernels.policy_loss import RolloutCorrection, policy_loss

    def call(options: dict[str, Any]) -> Call:
        def make(gpu: FakeGPU) -> None:
            total, sequences, dtype = 262144, 128, options["dtype"]
            given: dict[str, Any] = {"dual_clip": 3.0 if options["ceiling"] else None}
            given |= {k: options[k] for k in ("objective", "ratio", "aggregation")}
            given["denominator"] = {
                "number": 1000.0,
                "tensor": tensor(),
                "unmasked": 1000.0 if options["aggregation"] == "token-sum-norm" else None,
            }[options["denominator"]]
            if options["mask"]:
                given["mask"] = tensor(total, dtype=torch.bool)
            if options["rollout"] is not None:
                given["rollout_logprobs"] = tensor(total, dtype=dtype)
                if options["rollout"] != "none":
                    correction = RolloutCorrection(options["rollout"], options["level"])
                    given["rollout_correction"] = correction
            if options["reference"] is not None:
                given |= {"ref_logprobs": tensor(total, dtype=dtype), "kl_coef": 0.1}
                given |= {"kl_estimator": options["reference"]}
            given |= {"kl_unbiased": options["kl_unbiased"]}
            given |= {"kl_limit": 10.0 if options["kl_limit"] else None}
            given |= {"off_policy_threshold": 0.1 if options["off_policy"] else None}
            if options["entropy"] != "none":
                given["entropy"] = tensor(total, dtype=dtype, grad=True)
                given["entropy_coef"] = 0.01 if options["entropy"] == "bonus" else 0.0
            policy_loss(
                tensor(total, dtype=dtype, grad=True),
                tensor(total, dtype=dtype),
                tensor(total if options["per_token"] else sequences),
                tensor(sequences + 1, dtype=torch.int32),
                **given,
            )
            gpu.backward()

        return Call(named("policy_loss", options), make)

    flag = (False, True)
    table: dict[str, tuple[Any, ...]] = {
        "objective": ("clip", "cispo", "sapo", "gmpo", "reinforce"),
        "rollout": (None, "none", "truncate", "mask", "reject"),
        "level": ("token", "sequence", "geometric"),
        "aggregation": (
            "token-mean",
            "seq-mean-token-mean",
            "seq-mean-token-sum",
            "token-sum-norm",
        ),
        "reference": (None, "k1", "k2", "k3"),
        "denominator": ("unmasked", "number", "tensor"),
        "entropy": ("none", "metric", "bonus"),
        "dtype": (torch.float32, torch.bfloat16),
        "ratio": ("token", "sequence"),
        "ceiling": flag,
        "mask": flag,
        "per_token": flag,
        "kl_unbiased": flag,
        "kl_limit": flag,
        "off_policy": flag,
    }
    for options in pairwise(table):
        yield call(options)
    plain = {name: values[0] for name, values in table.items()}
    for objective in table["objective"]:
        yield call(plain | {"objective": objective, "mask": True})
