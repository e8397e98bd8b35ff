"""The screened head on a CPU: times at V 151 936, and errors on a real model's states.

Times: T 1024, D 896, float32, one thread, made-up heads from 0.1 nats to a uniform softmax, all
contenders in turns in one process with the bare forward product (PyTorch's own, MKL's). The
weight's 8-bit copy is there already but for the column "making the copy". TRL comes from
``scripts/peers.sh`` (``PYTHONPATH=.peers``).

Errors: hidden states of SmolLM2-135M-Instruct at the tokens that it samples, against float64; and
how far the trainer's log-probs are from those of a sampler in float32, or with bfloat16 logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import Wall
from bench.inputs import language_inputs, uniform_inputs
from bench.measure import in_turns
from bench.peers import pytorch, siri, trl
from bench.real import real_inputs
from bench.results_io import RESULTS, write
from bench.workloads.proof import WHERE, forward_product, with_gradients
from siri_kernels import linear_logprob, release_screens, take_backward_stats, take_forward_stats
from siri_kernels.linear_logprob.screen.quantise import screened_weight

PROBE = 64  # tokens compared with float64
SOFTMAXES = (0.1, 0.3, 0.5, 1.0, 3.0, "uniform")
TEMPERATURES = (0.6, 0.7, 0.8, 1.0, 1.2)


def _forward(make: Callable[[Any], Any]) -> Callable[..., Tensor]:
    """Log-probs alone, without autograd."""
    call = make(WHERE).call

    def run(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = call(hidden, weight, targets)
        return out

    return run


def times(inputs: tuple[Tensor, ...], rounds: int) -> dict[str, Any]:
    """Times of all contenders in turns, and what the screen did.

    Args:
        inputs: hidden states, weight and targets.
        rounds: of all contenders.

    Raises:
        SystemExit: a screened log-prob is off by more than the tolerance; no time is reported.
    """
    hidden, weight, targets = inputs
    upstream = torch.randn(len(hidden), generator=torch.Generator().manual_seed(1))
    full = (hidden, weight, targets, upstream)
    cases: dict[str, Callable[..., Any]] = {
        "eager": with_gradients(pytorch.eager),
        "TRL": with_gradients(trl.with_entropy),
        "ours": with_gradients(siri.default),
        "ours, screened": with_gradients(siri.screened),
        "ours, forward": _forward(siri.default),
        "ours, screened, forward": _forward(siri.screened),
        "forward product": forward_product,
    }
    take_forward_stats()
    got = cases["ours, screened, forward"](*full)
    stats = take_forward_stats()
    assert stats is not None
    logits = hidden[:PROBE].double() @ weight.double().t()
    exact = logits.log_softmax(1).gather(1, targets[:PROBE, None])[:, 0]
    del logits
    gap = got[:PROBE] - exact
    if not gap.abs().max() <= 1.5e-4:
        raise SystemExit(f"bench: a screened log-prob is {gap.abs().max():.1e} from float64")
    steps = {name: partial(case, *full) for name, case in cases.items()}
    turns = in_turns(steps, Wall(WHERE.device), float("inf"), rounds, rounds)
    walls = {name: turn["wall"] for name, turn in turns.items()}
    started = time.perf_counter()
    screened_weight(weight, torch.float32)
    copying = time.perf_counter() - started
    release_screens()
    return {
        "seconds": {name: statistics.median(values) for name, values in walls.items()},
        "all_seconds": walls,
        "seconds_to_make_the_copy": copying,
        "screened": stats._asdict(),
        "logprob_error": {"rms": _rms(gap), "max": float(gap.abs().max())},
    }


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def real_errors(tokens: int, temperature: float, file: str | None) -> dict[str, Any]:
    """Errors against float64 of log-probs, entropy and gradients, screened and not.

    Args:
        tokens: T.
        temperature: of the hidden states.
        file: of ``python -m bench states``; None: the model samples now.

    Raises:
        Missing: the model is not installed, and ``file`` is not given.
    """
    hidden, weight, targets = real_inputs(tokens, temperature, file)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(tokens, generator=generator, dtype=torch.float64)

    def run(dtype: torch.dtype, **options: Any) -> list[Tensor]:
        h, w = (x.to(dtype).requires_grad_() for x in (hidden, weight))
        out = linear_logprob(h, w, targets, **options)
        grads = torch.autograd.grad(out.logprobs, (h, w), upstream.to(out.logprobs.dtype))
        return [out.logprobs.detach(), out.entropy.detach(), *grads]

    exact = run(torch.float64, tail=0.0)
    samplers = {
        str(dtype).removeprefix("torch."): _sampler(hidden, weight, targets, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    result: dict[str, Any] = {"temperature": temperature, "entropy": float(exact[1].mean())}
    forms = {
        "not screened": (torch.float32, {}),
        "screened": (torch.float32, {"screen": "int8"}),
        "bfloat16, not screened": (torch.bfloat16, {}),
    }
    for name, (dtype, options) in forms.items():
        take_forward_stats()
        take_backward_stats()
        got = run(dtype, **options)
        forward, backward = take_forward_stats(), take_backward_stats()
        gaps = [x.double() - want for x, want in zip(got, exact, strict=True)]
        result[name] = {
            "logprob_rms": _rms(gaps[0]), "logprob_max": float(gaps[0].abs().max()),
            "entropy_rms": _rms(gaps[1]), "entropy_max": float(gaps[1].abs().max()),
            "d_hidden": float(gaps[2].norm() / exact[2].norm()),
            "d_weight": float(gaps[3].norm() / exact[3].norm()),
            "screened": None if forward is None else forward._asdict(),
            "recomputed": None if backward is None else float(backward.dense_row_frac),
            "mismatch": {
                sampler: _mismatch(got[0].double() - theirs) for sampler, theirs in samplers.items()
            },
        }  # fmt: skip
    return result


def _sampler(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Log-probs as a sampler returns them: logits of its dtype, their softmax in float32."""
    found = []
    for rows, ids in zip(hidden.split(256), targets.split(256), strict=True):
        logits = (rows.to(dtype) @ weight.to(dtype).t()).float()
        found.append(logits.log_softmax(1).gather(1, ids[:, None])[:, 0])
    return torch.cat(found).double()


def _mismatch(difference: Tensor) -> dict[str, float]:
    """The rollout KL (k3) of trainer and sampler, and the ratio that is farthest from 1."""
    ratio = difference.exp()
    return {
        "kl": float((ratio - 1 - difference).mean()),
        "ratio": float((ratio - 1).abs().max()),
    }


def times_table(rows: dict[str, Any]) -> str:
    """Ratios of the medians; the share of screened tokens."""
    lines = ["| softmax | contender | s | / forward product | / eager | / TRL | / ours |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for softmax, row in rows.items():
        seconds = row["seconds"]
        for name, value in sorted(seconds.items(), key=lambda item: item[1]):
            plain = "ours, forward" if name.endswith("forward") else "ours"
            others = ["forward product", "eager", "TRL", plain]
            ratios = [f"{value / seconds[other]:.2f}" for other in others]
            if name.endswith(("forward", "product")):
                ratios[1:3] = ["", ""]
            if name == "forward product":
                ratios[-1] = ""
            lines.append(f"| {softmax} | {name} | {value:.2f} | {' | '.join(ratios)} |")
    lines += ["", "| softmax | screened tokens | largest estimate | largest error of checked "
              "tokens | error rms, max of 64 tokens | making the copy / forward product |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for softmax, row in rows.items():
        s, error = row["screened"], row["logprob_error"]
        checked = "" if s["error_max"] is None else f"{s['error_max']:.1e}"
        copying = row["seconds_to_make_the_copy"] / row["seconds"]["forward product"]
        share, most = f"{s['screened_frac']:.1%}", f"{s['estimate_max']:.1e}"
        gaps = f"{error['rms']:.1e}, {error['max']:.1e}"
        cells = [softmax, share, most, checked, gaps, f"{copying:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def errors_table(rows: list[dict[str, Any]]) -> str:
    """A line for each temperature and form."""
    lines = ["| temperature | entropy | form | screened tokens | log-prob rms, max "
             "| entropy rms, max | d_hidden | d_weight | recomputed in backward |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        for name in ("not screened", "screened", "bfloat16, not screened"):
            e = row[name]
            share = "" if e["screened"] is None else f"{e['screened']['screened_frac']:.1%}"
            lines.append(
                f"| {row['temperature']} | {row['entropy']:.2f} | {name} | {share} "
                f"| {e['logprob_rms']:.1e}, {e['logprob_max']:.1e} "
                f"| {e['entropy_rms']:.1e}, {e['entropy_max']:.1e} "
                f"| {e['d_hidden']:.1e} | {e['d_weight']:.1e} | {e['recomputed']:.1%} |"
            )
    return "\n".join(lines) + "\n"


def mismatch_table(rows: list[dict[str, Any]]) -> str:
    """A line for each temperature and dtype of the sampler."""
    lines = ["| temperature | sampler | rollout KL, not screened | screened "
             "| largest distance of a ratio from 1, not screened | screened |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        plain, ours = (row[form]["mismatch"] for form in ("not screened", "screened"))
        for sampler in plain:
            cells = [f"{of[sampler][key]:.1e}" for key in ("kl", "ratio") for of in (plain, ours)]
            lines.append(f"| {row['temperature']} | {sampler} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench screen``."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=["times", "errors", "both"], default="both")
    parser.add_argument("--real", help="hidden states written by python -m bench states")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench screen``: write ``screen.*`` (times) and ``screen_errors.*``.

    Raises:
        SystemExit: TRL is not installed, or a screened log-prob is wrong.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(arguments.threads)
    if arguments.part != "errors":
        _run_times(arguments)
    if arguments.part != "times":
        rows = [real_errors(arguments.tokens, t, arguments.real) for t in TEMPERATURES]
        result = {"tokens": arguments.tokens, "threads": arguments.threads, "real": rows}
        text = errors_table(rows) + "\n" + mismatch_table(rows)
        write(arguments.out, "screen_errors", result, text)


def _run_times(arguments: argparse.Namespace) -> None:
    trl.require("screen")
    shape = (arguments.tokens, 896, 151_936)
    rows = {}
    for softmax in SOFTMAXES:
        inputs = (
            language_inputs(*shape, softmax)
            if isinstance(softmax, float)
            else uniform_inputs(*shape)
        )
        rows[str(softmax)] = times(inputs, arguments.rounds)
        print(times_table({str(softmax): rows[str(softmax)]}), flush=True)
    result = {"shape": shape, "threads": arguments.threads, "rows": rows}
    write(arguments.out, "screen", result, times_table(rows))
