"""``python -m bench``: the kernels on this machine against eager PyTorch, correctness first.

Contenders take turns in one process, with the bare matrix products of the same shape in the same
rounds as the yard-stick. Results go to ``bench/results/<device>/``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.inputs import head_inputs
from bench.memory import peak_bytes
from bench.results_io import RESULTS, write
from siri_kernels import linear_logprob

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


def portable(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """``siri_kernels.linear_logprob(backend="portable")``, log-prob and entropy."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logp = linear_logprob(hidden, weight, targets, backend="portable").logprobs
    logp.backward(upstream)
    return logp.detach(), hidden.grad, weight.grad


def gemms(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """The one forward and two backward matrix products that eager cannot do without."""
    logits = hidden @ weight.T
    return logits[:, 0], logits @ weight, logits.T @ hidden


def measure(tokens: int, dim: int, vocab: int, entropy: float, rounds: int) -> dict[str, Any]:
    """One shape: errors against float64, then interleaved times, then peak memory."""
    hidden, weight, targets = head_inputs(tokens, dim, vocab, entropy)
    upstream = torch.randn(tokens, generator=torch.Generator().manual_seed(1))
    probe = min(tokens, 256)  # float64 of everything would take minutes
    small = (hidden[:probe], weight, targets[:probe], upstream[:probe])
    exact = eager(small[0].double(), weight.double(), small[2], small[3].double())
    errors = {
        name: [float((a - b).norm() / b.norm()) for a, b in zip(case(*small), exact, strict=True)]
        for name, case in (("eager", eager), ("portable", portable))
    }
    for mine, theirs in zip(errors["portable"], errors["eager"], strict=True):
        if mine > 2 * theirs + 1e-7:
            raise SystemExit(f"bench: portable is wrong ({errors}); no time is reported")
    cases: dict[str, Case] = {"eager": eager, "portable": portable, "gemms": gemms}
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
            if name != "gemms"
        },
        "relative_error_logp_dhidden_dweight": errors,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table that the README quotes."""
    lines = [
        "| tokens x hidden x vocabulary | entropy | time / eager | time / bare GEMMs "
        "| peak memory, eager | peak memory, ours | error d_hidden, eager | ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = {name: value["median"] for name, value in row["seconds"].items()}
        memory = row["peak_mib_beyond_inputs_and_gradients"]
        errors = row["relative_error_logp_dhidden_dweight"]
        lines.append(
            f"| {row['tokens']} x {row['dim']} x {row['vocab']} | {row['entropy']} "
            f"| {seconds['portable'] / seconds['eager']:.2f} "
            f"| {seconds['portable'] / seconds['gemms']:.2f} "
            f"| {memory['eager']:.0f} MiB | {memory['portable']:.0f} MiB "
            f"| {errors['eager'][1]:.1e} | {errors['portable'][1]:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write JSON and Markdown, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for shape in ((1024, 576, 49152, 0.5), (1024, 576, 49152, 3.0), (256, 896, 151936, 0.5)):
        print(f"bench: {shape}", flush=True)
        rows.append(measure(*shape, rounds=arguments.rounds))
    measured = {"threads": arguments.threads, "rows": rows}
    write(arguments.out, "linear_logprob", measured, table(rows))


if __name__ == "__main__":
    main()
