"""The head of a model with 152 000 vocabulary entries, beside eager and TRL.

T 1024, D 896, V 151 936, float32, one thread, entropy 0.5 nats with a language model's tail, and a
uniform softmax, all contenders in turns in one process with the bare forward product. TRL comes
from ``scripts/peers.sh`` (``PYTHONPATH=.peers``).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import Wall
from bench.inputs import language_inputs, uniform_inputs
from bench.measure import in_turns
from bench.memory import peak_bytes
from bench.peers import pytorch, siri, trl
from bench.peers.base import Where
from bench.results_io import RESULTS, write
from siri_kernels import take_backward_stats

WHERE = Where(torch.device("cpu"), triton=False)


def with_gradients(make: Callable[[Where], Any]) -> Callable[..., Any]:
    """Log-probs and the gradients of both inputs through a contender's call."""
    call = make(WHERE).call

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
        hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        logp = call(hidden, weight, targets)
        return logp.detach(), *torch.autograd.grad(logp, (hidden, weight), upstream)

    return run


def forward_product(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Any:
    """The forward product alone, which every call needs.

    Args:
        hidden: [T, D].
        weight: [V, D].
        targets: not used.
        upstream: not used.
    """
    return ((hidden @ weight.T)[:, 0],) * 3


def measure(inputs: tuple[Tensor, ...], rounds: int) -> dict[str, Any]:
    """Errors against float64 on 64 tokens, then times in turns, then peak memory.

    Raises:
        SystemExit: ours is wrong; no time is reported.
    """
    hidden, weight, targets = inputs
    upstream = torch.randn(len(hidden), generator=torch.Generator().manual_seed(1))
    small = (hidden[:64], weight, targets[:64], upstream[:64])
    eager = with_gradients(pytorch.eager)
    oracle = eager(small[0].double(), weight.double(), small[2], small[3].double())
    bf16 = eager(small[0].bfloat16(), weight.bfloat16(), small[2], small[3])
    cases: dict[str, Callable[..., Any]] = {
        "eager": eager, "TRL": with_gradients(trl.with_entropy),
        "certified": with_gradients(siri.default), "exact": with_gradients(siri.exact),
        "forward gemm": forward_product,
    }  # fmt: skip

    def errors(results: Any) -> list[float]:
        pairs = zip(results, oracle, strict=True)
        return [float((got - want).norm() / want.norm()) for got, want in pairs]

    wrong = {name: errors(case(*small)) for name, case in cases.items() if "gemm" not in name}
    wrong["eager bfloat16"] = errors(bf16)
    for i in range(3):
        right = wrong["exact"][i] <= 2 * wrong["eager"][i] + 1e-7
        if not right or wrong["certified"][i] > wrong["eager bfloat16"][i]:
            raise SystemExit(f"bench: linear_logprob is wrong ({wrong}); no time is reported")
    full = (hidden, weight, targets, upstream)
    steps = {name: partial(case, *full) for name, case in cases.items()}
    turns = in_turns(steps, Wall(WHERE.device), float("inf"), rounds, rounds)
    times = {name: turn["wall"] for name, turn in turns.items()}
    grads = hidden.nbytes + weight.nbytes
    peaks = {}
    take_backward_stats()
    for name, step in steps.items():
        if "gemm" not in name:
            peaks[name] = max(0, peak_bytes(step) - grads) / 2**20
        if name == "certified":
            stats = take_backward_stats()
            assert stats is not None
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "all_seconds": times,
        "peak_mib_beyond_inputs_and_gradients": peaks,
        "relative_error_logp_dhidden_dweight": wrong,
        "dense_row_frac": float(stats.dense_row_frac),
        "entries_kept": float(stats.entries_kept),
    }


def table(rows: dict[str, Any]) -> str:
    """Ratios of the medians."""
    lines = [
        "| softmax | contender | s | / eager | / TRL | / forward GEMM | peak memory | / eager "
        "| d_hidden error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        seconds, memory = row["seconds"], row["peak_mib_beyond_inputs_and_gradients"]
        for case, value in seconds.items():
            ratios = [value / seconds[other] for other in ("eager", "TRL", "forward gemm")]
            rest = "| | |"
            if case in memory:
                wrong = row["relative_error_logp_dhidden_dweight"][case][1]
                share = memory[case] / memory["eager"]
                rest = f"| {memory[case]:.0f} MiB | {share:.3f} | {wrong:.1e} "
            text = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {name} | {case} | {value:.2f} | {text} {rest.rstrip('|')}|")
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench proof``."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench proof``: write ``proof.json`` and ``proof.md``.

    Raises:
        SystemExit: TRL is not installed, or ours is wrong.
    """
    trl.require("proof")
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    shape = (arguments.tokens, 896, 151_936)
    rows = {"0.5 nats": measure(language_inputs(*shape, 0.5), arguments.rounds)}
    rows["uniform"] = measure(uniform_inputs(*shape), max(1, arguments.rounds - 1))
    write(arguments.out, "proof", {"shape": shape, "threads": 1, "rows": rows}, table(rows))
