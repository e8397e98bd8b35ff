"""``python -m bench``: the kernels on this machine against eager PyTorch, correctness first.

Contenders take turns in one process, with the bare matrix products of the same shape in the same
rounds as the yard-stick. Results go to ``bench/results/<device>/``; ``python -m bench compare A B``
sets two of them side by side.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import compare
from bench.inputs import head_inputs
from bench.memory import peak_bytes
from bench.results_io import RESULTS, write
from siri_kernels import linear_logprob, take_backward_stats

Case = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def eager(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """What a trainer writes first: all logits, log_softmax, gather."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logits = hidden @ weight.T
    if logits.dtype != torch.float64:
        logits = logits.float()
    logp = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    logp.backward(upstream)
    return logp.detach(), hidden.grad, weight.grad


def certified(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """``siri_kernels.linear_logprob`` as it comes: backward certified to ``tail=1e-2``."""
    return ours(hidden, weight, targets, upstream, tail=1e-2)


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """The same with ``tail=0``: every row recomputed."""
    return ours(hidden, weight, targets, upstream, tail=0.0)


def ours(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor, tail: float) -> Any:
    """Log-prob and entropy, and the gradients of the log-prob."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logp = linear_logprob(hidden, weight, targets, tail=tail, backend="portable").logprobs
    logp.backward(upstream)
    return logp.detach(), hidden.grad, weight.grad


def gemms(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """The one forward and two backward matrix products that eager cannot do without."""
    logits = hidden @ weight.T
    return logits[:, 0], logits @ weight, logits.T @ hidden


def forward_gemm(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """The forward product alone: what a call cannot do without."""
    return ((hidden @ weight.T)[:, 0],) * 3


def measure(tokens: int, dim: int, vocab: int, entropy: float, rounds: int) -> dict[str, Any]:
    """One shape: errors against float64, then interleaved times, then peak memory."""
    hidden, weight, targets = head_inputs(tokens, dim, vocab, entropy)
    upstream = torch.randn(tokens, generator=torch.Generator().manual_seed(1))
    probe = min(tokens, 256)  # float64 of everything would take minutes
    small = (hidden[:probe], weight, targets[:probe], upstream[:probe])
    oracle = eager(small[0].double(), weight.double(), small[2], small[3].double())

    def error(case: Case, *inputs: Tensor) -> list[float]:
        pairs = zip(case(*inputs), oracle, strict=True)
        return [float((got - want).norm() / want.norm()) for got, want in pairs]

    errors = {
        "eager": error(eager, *small),
        "eager bfloat16": error(eager, small[0].bfloat16(), weight.bfloat16(), small[2], small[3]),
        "exact": error(exact, *small),
        "certified": error(certified, *small),
    }
    take_backward_stats()
    certified(*small)
    stats = take_backward_stats()
    for i in range(3):
        right = errors["exact"][i] <= 2 * errors["eager"][i] + 1e-7
        if not right or errors["certified"][i] > errors["eager bfloat16"][i]:
            raise SystemExit(f"bench: linear_logprob is wrong ({errors}); no time is reported")
    cases: dict[str, Case] = {
        "eager": eager,
        "certified": certified,
        "exact": exact,
        "gemms": gemms,
        "forward gemm": forward_gemm,
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    full = (hidden, weight, targets, upstream)
    for _ in range(rounds):
        for name, case in cases.items():
            started = time.perf_counter()
            case(*full)
            times[name].append(time.perf_counter() - started)
    grads = hidden.nbytes + weight.nbytes
    return {
        "tokens": tokens, "dim": dim, "vocab": vocab, "entropy": entropy, "dtype": "float32",
        "rounds": rounds,
        "seconds": {
            name: {
                "median": statistics.median(values),
                "p20": sorted(values)[len(values) // 5],
                "p80": sorted(values)[-1 - len(values) // 5],
            }
            for name, values in times.items()
        },
        "peak_mib_beyond_inputs_and_gradients": {
            name: max(0, peak_bytes(lambda c=case: c(*full)) - grads) / 2**20  # type: ignore[misc]
            for name, case in cases.items()
            if "gemm" not in name
        },
        "relative_error_logp_dhidden_dweight": errors,
        "dense_row_frac": float(stats.dense_row_frac) if stats else None,
        "entries_kept": float(stats.entries_kept) if stats else None,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table that the README quotes."""
    lines = [
        "| tokens x hidden x vocabulary, entropy | time / eager (`tail=0`) | time / forward GEMM "
        "| peak memory, eager | ours | d_hidden error, eager bf16 | eager fp32 | ours (`tail=0`) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = {name: value["median"] for name, value in row["seconds"].items()}
        memory = row["peak_mib_beyond_inputs_and_gradients"]
        error = {k: v[1] for k, v in row["relative_error_logp_dhidden_dweight"].items()}
        lines.append(
            f"| {row['tokens']} x {row['dim']} x {row['vocab']}, {row['entropy']} nats "
            f"| {seconds['certified'] / seconds['eager']:.2f} "
            f"({seconds['exact'] / seconds['eager']:.2f}) "
            f"| {seconds['certified'] / seconds['forward gemm']:.2f} "
            f"| {memory['eager']:.0f} MiB | {memory['certified']:.0f} MiB "
            f"| {error['eager bfloat16']:.1e} | {error['eager']:.1e} "
            f"| {error['certified']:.1e} ({error['exact']:.1e}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write JSON and Markdown, print the table; or ``compare A B``."""
    if sys.argv[1:2] == ["compare"]:
        compare.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")
    arguments = parser.parse_args()
    # Probabilities of a sharp softmax underflow, and products with subnormal numbers are a hundred
    # times slower on a CPU: that would only make eager PyTorch look bad. Before any thread starts.
    torch.set_flush_denormal(True)
    torch.set_num_threads(arguments.threads)
    rows = []
    for shape in ((1024, 576, 49152, 0.5), (1024, 576, 49152, 3.0), (256, 896, 151936, 0.5)):
        print(f"bench: {shape}", flush=True)
        rows.append(measure(*shape, rounds=arguments.rounds))
    measured = {"threads": arguments.threads, "rows": rows}
    write(arguments.out, "linear_logprob", measured, table(rows))


if __name__ == "__main__":
    main()
