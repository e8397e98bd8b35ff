"""``python -m bench COMMAND``: measures the kernels beside eager PyTorch and every peer.

Correctness is checked first. Results are kept as they are measured: a command that was interrupted,
or whose budget was spent, continues when it is run again. ``python -m bench COMMAND --help`` shows
the options of a command and an example.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple


class Command(NamedTuple):
    """A command.

    Args:
        module: has ``add_arguments`` and ``run``.
        summary: for the help.
        example: arguments that work.
    """

    module: str
    summary: str
    example: str


COMMANDS = {
    "kernels": Command("bench.kernels", "log-probs, losses and advantages beside all peers",
                       "--device cuda --only 'head: 16384 x 1536' --budget 480"),
    "proof": Command("bench.workloads.proof", "the head with V 151 936 on a CPU, beside TRL",
                     "--rounds 3"),
    "screen": Command("bench.workloads.screen", "the screened head on a CPU: times and errors",
                      "--rounds 3 --real states.safetensors"),
    "step": Command("bench.workloads.training_step", "a training step on a CPU beside TRL's",
                    "--model tiny --rounds 7"),
    "step-gpu": Command("bench.workloads.training_step_gpu",
                        "a training step on a GPU: tokens/s, MFU, peak memory",
                        "--context 8192 --limit 480"),
    "step-trl": Command("bench.workloads.trl_step", "a step of TRL's GRPO, without and with ours",
                        "--device cuda --dtype bfloat16"),
    "rollout": Command("bench.workloads.rollout", "sampling on a CPU beside padded generate",
                       "--rows 8 --name rollout_8"),
    "cluster": Command("bench.workloads.cluster", "ranks simulated: waiting by cap and phase",
                       "--seeds 6"),
    "demo": Command("bench.workloads.demo", "siri-train demo over several seeds", "--seeds 0 1 2"),
    "recheck": Command("bench.workloads.recheck", "does wait fall and return with the cap",
                       "--seeds 0 1 2"),
    "evidence": Command("bench.workloads.evidence", "ablations of the method, by name",
                        "controls shapes --jobs 2"),
    "curves": Command("bench.curves.command", "runs of training beside the first of them",
                      "runs/exact runs/screened runs/seed1 --recipe recipes/smollm2-135m.yaml"),
    "states": Command("bench.real", "write hidden states of SmolLM2, for kernels --real",
                      "states.safetensors"),
    "gpu": Command("bench.gpu.command", "all parts of a GPU run within minutes; see also "
                   "scripts/gpu_run.sh", "first OUT --rehearse"),
    "report": Command("bench.gpu.report", "tables and predictions of what gpu wrote", "OUT OUT2"),
    "tables": Command("bench.reports.write", "tables and plots of a kernels.json again",
                      "bench/results/cpu"),
    "compare": Command("bench.reports.compare", "two results side by side",
                       "A.json B.json --at-least 1.05"),
    "readme": Command("bench.reports.readme", "put measured tables into README and docs", ""),
}  # fmt: skip


def parser_for(name: str | None) -> argparse.ArgumentParser:
    """The command line; only the named command's module is imported, for what it needs."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for key, command in COMMANDS.items():
        given = commands.add_parser(
            key, help=command.summary, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"example:\n  python -m bench {key} {command.example}".rstrip(),
        )  # fmt: skip
        if key == name:
            module = _imported(key, command.module)
            given.description = module.__doc__
            module.add_arguments(given)
            given.set_defaults(run=module.run)
    return parser


def _imported(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("bench", "siri_kernels"):
            raise
        raise SystemExit(
            f"bench {name} needs {error.name}, which is not installed: pip install -e '.[bench]' "
            "brings what the bench needs, sh scripts/peers.sh .peers the peers"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--dry-run" in words:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
    given = parser_for(words[0] if words else None).parse_args(words)
    return int(given.run(given) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
