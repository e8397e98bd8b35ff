"""``python -m bench.gpu``: the Triton kernels on a GPU, beside eager PyTorch and the bare product.

``make bench-gpu`` runs the GPU tests and then this. Rows are written to ``--out`` as they are
measured, the most important first, and a row that is there from the same commit, GPU, versions and
settings is not measured again, so a run that was cut goes on where it was. Contenders take turns.
Of the log-probs, those whose results or gradients on 64 rows are more than twice as far from
float64 as eager's are not timed. Peers are measured where they are installed, the others named.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
import triton
from torch import Tensor

from bench.inputs import language_inputs, uniform_inputs
from bench.results_io import RESULTS, environment
from siri_kernels import (
    group_advantages,
    linear_logprob,
    policy_loss,
    selective_logprob,
    take_backward_stats,
)

Step = Callable[[], Any]


def milliseconds(steps: dict[str, Step], rounds: int, flush: Tensor) -> dict[str, Any]:
    """Median, 20th and 80th percentile of each, in turns, the L2 cache flushed before each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for name in steps:
        steps[name]()  # compiles
    for _ in range(rounds):
        for name, step in steps.items():
            flush.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            stop.record()
            stop.synchronize()
            times[name].append(start.elapsed_time(stop))
    return {
        name: {
            "median": statistics.median(values),
            "p20": sorted(values)[len(values) // 5],
            "p80": sorted(values)[-1 - len(values) // 5],
        }
        for name, values in times.items()
    }


def peak_mib(step: Step) -> float:
    """Device memory above what was there, at its highest."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def launches(step: Step) -> int:
    """Kernels that one call starts."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in trace.events())


def eager_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """What a trainer writes, by chunks of rows so that the logits fit."""

    def part(h: Tensor, y: Tensor) -> Tensor:
        logits = (h @ weight.T).float()
        return logits.log_softmax(-1).gather(1, y[:, None])[:, 0]

    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat(
        [torch.utils.checkpoint.checkpoint(part, h, y, use_reentrant=False) for h, y in parts]
    )


def trl_logprob() -> tuple[Callable[..., Tensor] | None, str]:
    """TRL 1.16's chunked log-prob, or why not."""
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        outputs = ("entropy",)
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, 32768, None, 1.0, outputs
        )[0]

    return call, ""


def outcome(
    call: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor
) -> tuple[Tensor, ...]:
    """Log-probs and the gradients of ``hidden`` and ``weight``."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logprobs = call(hidden, weight, targets)
    return logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), upstream)


def head_row(tokens: int, dim: int, vocab: int, entropy: float | None, rounds: int) -> Any:
    """Forward, and forward with backward, of one shape in bfloat16."""
    make = uniform_inputs if entropy is None else language_inputs
    extra = () if entropy is None else (entropy,)
    cpu = make(tokens, dim, vocab, *extra)
    hidden, weight, targets = (x.cuda() for x in cpu)
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    upstream = torch.randn(tokens, device="cuda")
    trl, why = trl_logprob()
    calls: dict[str, Callable[..., Tensor]] = {
        "eager, chunks": lambda h, w, y: eager_logprob(h, w, y, 2048),
        "ours": lambda h, w, y: linear_logprob(h, w, y).logprobs,
        "ours tail=0": lambda h, w, y: linear_logprob(h, w, y, tail=0.0).logprobs,
        "portable": lambda h, w, y: linear_logprob(h, w, y, backend="portable").logprobs,
    }
    if trl is not None:
        calls["TRL"] = trl
    missing = {"TRL": why} if why else {}
    some = slice(0, 64)
    exact_inputs = [x[some].double() for x in (hidden, upstream)]
    exact = outcome(
        lambda h, w, y: linear_logprob(h, w, y, backend="reference").logprobs,
        exact_inputs[0], weight.double(), targets[some], exact_inputs[1],
    )  # fmt: skip
    errors = {}
    for name, call in list(calls.items()):
        got = outcome(call, hidden[some], weight, targets[some], upstream[some])
        errors[name] = [
            float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)
        ]
        allowed = errors["eager, chunks"]  # the first
        wrong = any(mine > 2 * theirs for mine, theirs in zip(errors[name], allowed, strict=True))
        if wrong:
            missing[name] = f"wrong, so no time is reported: errors {errors[name]}"
            del calls[name]
    bound = {name: partial(call, hidden, weight, targets) for name, call in calls.items()}

    def both(call: Callable[[], Tensor]) -> Step:
        return lambda: torch.autograd.grad(call(), (hidden, weight), upstream)

    def product() -> Tensor:  # the whole vocabulary, by chunks that fit
        with torch.no_grad():
            for h in hidden.split(8192):
                last = h @ weight.T
        return last

    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    steps: dict[str, Step] = {"product": product}
    for name, call in bound.items():
        steps[f"{name} forward"] = torch.no_grad()(call)
        steps[f"{name} both"] = both(call)
    take_backward_stats()
    if "ours" in bound:
        both(bound["ours"])()
    stats = take_backward_stats()
    grads = (hidden.nbytes + weight.nbytes) / 2**20
    return {
        "ms": milliseconds(steps, rounds, flush),
        "peak_mib_beyond_inputs_and_gradients": {
            name: peak_mib(step) - grads for name, step in steps.items() if "both" in name
        },
        "relative_error_logp_dhidden_dweight": errors,
        "dense_row_frac": float(stats.dense_row_frac) if stats else None,
        "entries_kept": float(stats.entries_kept) if stats else None,
        "missing": missing,
    }


def copy_rate(flush: Tensor) -> float:
    """GB/s read and written by a copy of 1 GiB."""
    a = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    ms = milliseconds({"copy": lambda: b.copy_(a)}, 10, flush)["copy"]["median"]
    return 2 * a.numel() / ms / 1e6


def elementwise_row(name: str, tokens: int, rounds: int) -> Any:
    """policy_loss, group_advantages or selective_logprob: time, launches and share of copying."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    if name == "policy_loss":
        logprobs = (-torch.rand(tokens, device="cuda")).requires_grad_()
        old = logprobs.detach() + 0.1 * torch.randn(tokens, device="cuda")
        lengths = torch.arange(0, tokens + 1, 1024, device="cuda", dtype=torch.int32)
        advantages = torch.randn(len(lengths) - 1, device="cuda")

        def ours() -> Any:
            loss = policy_loss(logprobs, old, advantages, lengths).loss
            return torch.autograd.grad(loss, logprobs)

        def eager() -> Any:
            ratio = (logprobs - old).exp()
            a = advantages.repeat_interleave(1024)
            loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a).mean()
            return torch.autograd.grad(loss, logprobs)

        bytes_moved = 4 * tokens * 4  # log-probs, old ones, gradient written and read again
    elif name == "group_advantages":
        rewards = torch.randn(tokens, device="cuda")

        def ours() -> Any:
            return group_advantages(rewards, 16)

        def eager() -> Any:
            r = rewards.view(-1, 16)
            return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-6)

        bytes_moved = 2 * tokens * 4
    else:
        logits = torch.randn(tokens, 151_936, device="cuda").bfloat16().requires_grad_()
        targets = torch.randint(151_936, (tokens,), device="cuda")

        def ours() -> Any:
            return torch.autograd.grad(selective_logprob(logits, targets).logprobs.sum(), logits)

        def eager() -> Any:
            logp = logits.float().log_softmax(-1).gather(1, targets[:, None])
            return torch.autograd.grad(logp.sum(), logits)

        bytes_moved = 3 * logits.nbytes
    steps = {"ours": ours, "eager": eager}
    rate = copy_rate(flush)
    measured = milliseconds(steps, rounds, flush)
    ours_rate = bytes_moved / measured["ours"]["median"] / 1e6
    return {
        "ms": measured,
        "launches": {key: launches(step) for key, step in steps.items()},
        "copy_gb_s": rate,
        "ours_gb_s": ours_rate,
        "times_copy": rate / ours_rate,
    }


def rows(rounds: int) -> dict[str, Callable[[], Any]]:
    """All rows by name, the most important first."""
    found: dict[str, Callable[[], Any]] = {}
    shapes = [(16384, 1536, 151_936, 0.5), (16384, 3584, 151_936, 0.5)]
    shapes += [(16384, 1536, 151_936, None), (16384, 1536, 151_936, 1.0)]
    shapes += [
        (16384, 3584, 151_936, None),
        (4096, 4096, 128_256, 0.5),
        (65536, 1536, 151_936, 0.5),
    ]
    shapes += [(16384, 896, 151_936, 3.0), (1024, 1536, 151_936, 0.5), (4096, 576, 49_152, 0.5)]
    for shape in shapes:
        found[f"linear_logprob {shape}"] = lambda s=shape: head_row(*s, rounds=rounds)  # type: ignore[misc]
    for tokens in (2**15, 2**18, 2**20):
        for name in ("policy_loss", "group_advantages"):
            found[f"{name} {tokens}"] = lambda n=name, t=tokens: elementwise_row(n, t, rounds)  # type: ignore[misc]
    found["selective_logprob 4096"] = lambda: elementwise_row("selective_logprob", 4096, rounds)
    return found


def table(measured: dict[str, Any]) -> str:
    """Medians as ratios to the bare product, or to eager PyTorch."""
    lines = ["| row | contender | ms | / product | / eager |", "|---|---|---|---|---|"]
    for row, result in measured.items():
        times = {name: value["median"] for name, value in result["ms"].items()}
        if "failed" in result:
            lines.append(f"| {row} | {result['failed']} | | | |")
        for name, time in times.items():
            kind = name.rsplit(" ", 1)[-1]
            eager = times.get("eager", times.get(f"eager, chunks {kind}"))
            product = f"{time / times['product']:.2f}" if "product" in times else ""
            ratio = f"{time / eager:.2f}" if eager else ""
            lines.append(f"| {row} | {name} | {time:.3f} | {product} | {ratio} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is not there yet, and write after each row."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="default: bench/results/<name of the GPU>")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench.gpu: needs a GPU; python -m bench measures on a CPU")
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    folder = arguments.out or RESULTS / device
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kernels.json"
    done = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    settings = {**environment(), "triton": triton.__version__, "rounds": arguments.rounds}
    for name, row in rows(arguments.rounds).items():
        # A row of another commit, GPU or version is measured again.
        if done.get(name, {}).get("settings") == settings or arguments.only not in name:
            continue
        print(f"bench: {name}", flush=True)
        try:
            done[name] = {**row(), "settings": settings}
        except torch.cuda.OutOfMemoryError as error:
            done[name] = {"ms": {}, "failed": str(error).splitlines()[0], "settings": settings}
        torch.cuda.empty_cache()
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"rows": done}, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
        (folder / "kernels.md").write_text(table(done), encoding="utf-8")
    print(table(done))


if __name__ == "__main__":
    main()
