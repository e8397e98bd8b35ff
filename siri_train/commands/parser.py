"""The commands of ``siri-train``: their arguments and their help.

Standard library only: ``--help`` and completion by TAB must be quick.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from siri_train import __version__
from siri_train.commands import arguments as kinds
from siri_train.commands import run_arguments as runs
from siri_train.commands.data_arguments import data
from siri_train.commands.screen import COMMANDS, GROUPS

_PROG = "siri-train"
_ABOUT = """\
Train reasoning models with SIRI (arXiv 2509.25176): reinforcement learning in
which the limit on the response length shrinks and grows in cycles. Answers get
shorter and better."""
_MORE = """\
a first session:
  siri-train doctor                      is all here that training needs?
  siri-train demo                        train a small model on a CPU
  siri-train train siri-1.5b --dry-run   what the paper's run takes

siri-train COMMAND --help shows the arguments of a command and examples.
Read on: docs/training.md, docs/configuration.md (every key of a recipe)."""


class _TopParser(kinds.Parser):
    """The parser of ``siri-train`` itself, whose help shows the commands in groups."""

    def format_help(self) -> str:
        """The first screen."""
        lines = [f"usage: {_PROG} COMMAND ...", "", _ABOUT]
        for title, commands in GROUPS.items():
            lines += ["", f"{title}:"]
            lines += [f"  {name:<11}{command.text}" for name, command in commands.items()]
        lines += [
            "",
            "options:",
            "  -h, --help  show this screen",
            "  --version   show the version",
        ]
        return "\n".join([*lines, "", _MORE, ""])


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Args:
        given: what stands after ``siri-train``.

    Returns:
        The arguments, the command's name as ``command``.

    Raises:
        SystemExit: 2 after one line on stderr where they cannot be read; 0 after ``--help`` and
            ``--version``.
    """
    parser = build_parser()
    for text in given:
        if re.fullmatch(r"--[a-z-]+=--", text):  # argparse takes this -- for the end of options
            parser.error(f"argument {text[:-3]}: got '--'")
    arguments, more = parser.parse_known_args(given)
    # argparse takes positional arguments in one run only; overrides may stand after an option too.
    wrong = [m for m in more if m.startswith("-") or "=" not in m]
    if wrong or (more and not hasattr(arguments, "overrides")):
        parser.prog = f"{parser.prog} {arguments.command}"
        parser.error(f"unrecognized arguments: {' '.join(wrong or more)}")
    if more:
        arguments.overrides += more
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``completed_by`` of an action names what completes it."""
    parser = _TopParser(prog=_PROG)
    parser.add_argument("--version", action="version", version=f"{_PROG} {__version__}")
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=kinds.Parser
    )
    for name, command in COMMANDS.items():
        shown = [f"  # {about}\n  {line}" for line, about in command.examples]
        sub = subparsers.add_parser(
            name,
            help=command.text,
            description=command.text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="\n".join([f"example{'s' if len(shown) > 1 else ''}:", *shown]),
        )
        _ARGUMENTS[name](sub)
    return parser


def _recipe(sub: argparse.ArgumentParser) -> None:
    action = sub.add_argument("recipe", help="a YAML file, or the name of a packaged recipe")
    kinds.completed(action, "recipe")
    _overrides(sub)


def _overrides(sub: argparse.ArgumentParser) -> None:
    action = sub.add_argument(
        "overrides",
        nargs="*",
        metavar="a.b=c",
        help="override a value: text as it stands, or YAML where the key takes no text",
    )
    kinds.completed(action, "override")


def _demo(sub: argparse.ArgumentParser) -> None:
    out = sub.add_argument(
        "--out",
        type=kinds.path,
        default="runs/demo",
        help="folder of the run (default: %(default)s)",
    )
    kinds.completed(out, "folder")
    sub.add_argument(
        "--seed",
        type=kinds.seed,
        default=0,
        help="of sampling and the order of questions (default: %(default)s)",
    )
    sub.add_argument(
        "--full",
        action="store_true",
        help="every method of `siri-train ablate` with five seeds, about an hour, in OUT/full",
    )


def _sft(sub: argparse.ArgumentParser) -> None:
    _recipe(sub)
    sub.add_argument(
        "--resume", choices=("auto", "never"), default="auto", help="default: %(default)s"
    )


def _train(sub: argparse.ArgumentParser) -> None:
    _recipe(sub)
    resume = sub.add_argument(
        "--resume",
        type=kinds.path,
        default="auto",
        metavar="auto|never|PATH",
        help="default: %(default)s",
    )
    kinds.completed(resume, "resume")
    halt = sub.add_argument(
        "--halt-on",
        action="append",
        default=[],
        metavar="NAME",
        help="stop at this alarm, see docs/alarms.md; may be given several times",
    )
    kinds.completed(halt, "alarm")
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="only show the plan: resolved configuration, memory per rank, hours, money; no data, "
        "weights, GPU or network needed",
    )
    planned = sub.add_argument_group("what --dry-run plans for")
    planned.add_argument(
        "--ranks", type=kinds.positive, help="processes; default: torchrun's, else 1"
    )
    planned.add_argument(
        "--gpu", metavar="NAME", help="as h100, h200, a100-80, 4090; default: this machine's"
    )
    planned.add_argument(
        "--gpu-memory",
        type=kinds.gigabytes,
        metavar="GB",
        help="of one GPU; default: as --gpu has it",
    )
    planned.add_argument(
        "--gpus-per-node", type=kinds.positive, default=8, metavar="N", help="default: %(default)s"
    )
    planned.add_argument(
        "--price",
        type=kinds.price,
        metavar="MONEY",
        help="of a GPU hour; default: monitor.price_per_gpu_hour",
    )
    planned.add_argument(
        "--mean-length",
        metavar="SHARE|TOKENS",
        help="mean response, as 50%% of the cap or 8000 tokens at the largest; default: assumed",
    )
    rates = planned.add_argument(
        "--rates",
        type=kinds.path,
        metavar="FOLDER",
        help="a run whose measured rates to use; default: this one",
    )
    kinds.completed(rates, "run")


def _ablate(sub: argparse.ArgumentParser) -> None:
    _recipe(sub)
    vary = sub.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="a key and its values; several make a grid. []{} and quotes hold commas",
    )
    kinds.completed(vary, "override")
    method = sub.add_argument(
        "--method",
        action="append",
        type=kinds.names,
        default=[],
        metavar="NAME,NAME",
        help="methods by name, see docs/ablations.md; default: the recipe's own",
    )
    kinds.completed(method, "method")
    sub.add_argument(
        "--seeds",
        default="1",
        metavar="N|A,B",
        help="how many, or which (default: the recipe's own)",
    )
    sub.add_argument(
        "--match",
        choices=("steps", "tokens"),
        default="steps",
        help="what all runs have in common (default: %(default)s)",
    )
    sub.add_argument(
        "--tokens",
        type=kinds.tokens,
        metavar="N",
        help="with --match tokens; default: those of the first arm's run, by seed",
    )
    sub.add_argument(
        "--caps",
        type=kinds.caps,
        default=(),
        metavar="N,N",
        help="that constant-best tries; default: five from min_len to max_len",
    )
    at = sub.add_argument(
        "--at",
        type=kinds.checkpoints,
        default=(),
        metavar="NAME,NAME",
        help="checkpoints to compare: last, siri-low, siri-high, the same with -lagged or "
        "-measured, best, "
        "start; default: siri-low and siri-high where a run has them, else last",
    )
    kinds.completed(at, "at")
    sub.add_argument(
        "--against",
        metavar="ARM[@NAME]",
        help="compare with this arm (and its checkpoint); default: the first",
    )
    sub.add_argument(
        "--set",
        metavar="NAME",
        help="of data.eval, the set to compare on; default: the first but eval.select",
    )
    sub.add_argument(
        "--jobs", type=kinds.positive, default=1, help="runs at a time (default: %(default)s)"
    )
    out = sub.add_argument("--out", type=kinds.path, help="default: runs/ablate-RECIPE")
    kinds.completed(out, "folder")
    only = sub.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="only show the plan")
    only.add_argument(
        "--show", action="store_true", help="only show the table of the runs that have finished"
    )


def _verl(sub: argparse.ArgumentParser) -> None:
    _recipe(sub)
    sub.add_argument("--launch", action="store_true", help="start it, too")
    sub.add_argument(
        "--gpus", type=kinds.positive, default=8, help="per node (default: %(default)s)"
    )
    sub.add_argument("--nodes", type=kinds.positive, default=1, help="default: %(default)s")
    sub.add_argument(
        "--engine",
        choices=("vllm", "sglang", "trtllm"),
        default="vllm",
        help="default: %(default)s",
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of verl's; repeatable",
    )


def _eval(sub: argparse.ArgumentParser) -> None:
    checkpoint = sub.add_argument(
        "checkpoint", type=kinds.path, help="a folder that from_pretrained loads"
    )
    kinds.completed(checkpoint, "folder")
    _overrides(sub)
    recipe = sub.add_argument(
        "--recipe", type=kinds.path, help="default: the config.yaml of the checkpoint's run"
    )
    kinds.completed(recipe, "recipe")


def _schedule(sub: argparse.ArgumentParser) -> None:
    recipe = sub.add_argument(
        "recipe", nargs="?", default="siri-1.5b.yaml", help="default: the paper's run, %(default)s"
    )
    kinds.completed(recipe, "recipe")
    _overrides(sub)
    sub.add_argument(
        "--svg", type=kinds.path, metavar="FILE", help="default: schedule.svg beside the run"
    )


def _convert(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "source", type=kinds.path, help="PACKAGE:FILE.gguf, or the path of a GGUF file"
    )
    out = sub.add_argument("out", type=kinds.path, help="the folder to write")
    kinds.completed(out, "folder")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )


def _completion(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that you use")


def _nothing(sub: argparse.ArgumentParser) -> None:
    """The command takes no arguments."""


_ARGUMENTS = {
    "demo": _demo,
    "doctor": _nothing,
    "sft": _sft,
    "train": _train,
    "ablate": _ablate,
    "verl": _verl,
    "schedule": _schedule,
    "report": runs.report,
    "eval": _eval,
    "compare": runs.compare,
    "tokens": runs.tokens,
    "data": data,
    "export": runs.export,
    "convert": _convert,
    "completion": _completion,
}
