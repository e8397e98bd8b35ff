"""The commands of ``siri-train``: their arguments, their help and its examples.

Standard library only: ``--help`` and completion by TAB must be quick.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

from siri_train import __version__
from siri_train.commands import arguments as kinds

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


class _Command(NamedTuple):
    """A line of the first screen, and the examples at the end of the command's own help.

    Args:
        text: one line, for both.
        examples: (command line, what it does) each.
    """

    text: str
    examples: tuple[tuple[str, str], ...]


_GROUPS: dict[str, dict[str, _Command]] = {
    "start here": {
        "demo": _Command(
            "the whole method on a CPU in minutes; ends with a table and a page",
            (("siri-train demo --out runs/demo", "the folder gets report.html"),),
        ),
        "doctor": _Command(
            "what is installed, what works here, and why the rest does not",
            (("siri-train doctor", "a table; changes nothing"),),
        ),
    },
    "train": {
        "sft": _Command(
            "the supervised stage before RL; run again to continue",
            (
                ("siri-train sft smollm2-135m", "as the recipe has it"),
                (
                    "siri-train sft smollm2-135m sft.steps=20 output=runs/try",
                    "a short try in another folder",
                ),
            ),
        ),
        "train": _Command(
            "train with SIRI; run again to continue",
            (
                (
                    "siri-train train siri-1.5b --dry-run --ranks 8 --gpu-memory 80",
                    "plan: memory and hours on 8 GPUs of 80 GB",
                ),
                ("siri-train train smollm2-135m train.steps=3", "three steps on a CPU"),
            ),
        ),
        "verl": _Command(
            "a recipe as the whole command of verl 0.9.1; prints or starts it",
            (
                ("siri-train verl siri-1.5b --gpus 8", "print it"),
                (
                    "siri-train verl siri-1.5b --nodes 2 --launch",
                    "print it and start it, on two nodes",
                ),
            ),
        ),
    },
    "look at a run": {
        "schedule": _Command(
            "the cap over the steps, in the terminal and as SVG",
            (
                ("siri-train schedule", "of the paper's run"),
                (
                    "siri-train schedule siri-1.5b schedule.shape=stair --svg cap.svg",
                    "another shape, drawn into a file",
                ),
            ),
        ),
        "report": _Command(
            "write a run's report.html",
            (("siri-train report runs/demo", "writes runs/demo/report.html"),),
        ),
        "eval": _Command(
            "accuracy of a checkpoint at every budget from one generation pass",
            (
                (
                    "siri-train eval runs/siri-1.5b/checkpoints/step_000640",
                    "with the questions of the run",
                ),
                (
                    "siri-train eval my-model --recipe siri-1.5b eval.samples=4",
                    "any model, with the questions of a recipe",
                ),
            ),
        ),
    },
    "models": {
        "export": _Command(
            "copy a checkpoint out of a run, without trainer state",
            (
                (
                    "siri-train export runs/siri-1.5b --which high",
                    "siri-high, into runs/siri-1.5b/export",
                ),
            ),
        ),
        "convert": _Command(
            "turn a GGUF file into a folder that from_pretrained loads",
            (("siri-train convert model.gguf my-model --dtype bfloat16", "in half the memory"),),
        ),
    },
    "shell": {
        "completion": _Command(
            "print the script that lets your shell complete by TAB",
            (
                (
                    'eval "$(siri-train completion bash)"',
                    "in ~/.bashrc; for zsh in ~/.zshrc, with zsh as the last word",
                ),
                (
                    "siri-train completion fish > ~/.config/fish/completions/siri-train.fish",
                    "once, for fish",
                ),
            ),
        ),
    },
}
COMMANDS = {name: command for group in _GROUPS.values() for name, command in group.items()}
"""All commands by name, in the order of the first screen."""


class _TopParser(kinds.Parser):
    """The parser of ``siri-train`` itself, whose help shows the commands in groups."""

    def format_help(self) -> str:
        """The first screen."""
        lines = [f"usage: {_PROG} COMMAND ...", "", _ABOUT]
        for title, commands in _GROUPS.items():
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


def _completed(action: argparse.Action, kind: str) -> None:
    """Mark what completes an argument: a name in ``siri_train.commands.completion``."""
    action.completed_by = kind  # type: ignore[attr-defined]


def _recipe(sub: argparse.ArgumentParser) -> None:
    action = sub.add_argument("recipe", help="a YAML file, or the name of a packaged recipe")
    _completed(action, "recipe")
    _overrides(sub)


def _overrides(sub: argparse.ArgumentParser) -> None:
    action = sub.add_argument(
        "overrides",
        nargs="*",
        metavar="a.b=c",
        help="override a value: text as it stands, or YAML where the key takes no text",
    )
    _completed(action, "override")


def _demo(sub: argparse.ArgumentParser) -> None:
    out = sub.add_argument(
        "--out",
        type=kinds.path,
        default="runs/demo",
        help="folder of the run (default: %(default)s)",
    )
    _completed(out, "folder")
    sub.add_argument(
        "--seed",
        type=kinds.seed,
        default=0,
        help="of sampling and the order of questions (default: %(default)s)",
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
    _completed(resume, "resume")
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="only show the resolved configuration, memory per rank, tokens a step, expected hours",
    )
    planned = sub.add_argument_group("what --dry-run plans for")
    planned.add_argument(
        "--ranks", type=kinds.positive, help="processes; default: torchrun's, else 1"
    )
    planned.add_argument(
        "--gpu-memory",
        type=kinds.gigabytes,
        metavar="GB",
        help="of one GPU; default: this machine's",
    )
    rates = planned.add_argument(
        "--rates",
        type=kinds.path,
        metavar="FOLDER",
        help="a run whose measured rates to use; default: this one",
    )
    _completed(rates, "run")


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
    _completed(checkpoint, "folder")
    _overrides(sub)
    recipe = sub.add_argument(
        "--recipe", type=kinds.path, help="default: the config.yaml of the checkpoint's run"
    )
    _completed(recipe, "recipe")


def _run_folder(sub: argparse.ArgumentParser) -> None:
    _completed(sub.add_argument("folder", type=kinds.path, help="the run's folder"), "run")


def _schedule(sub: argparse.ArgumentParser) -> None:
    recipe = sub.add_argument(
        "recipe", nargs="?", default="siri-1.5b.yaml", help="default: the paper's run, %(default)s"
    )
    _completed(recipe, "recipe")
    _overrides(sub)
    sub.add_argument(
        "--svg", type=kinds.path, metavar="FILE", help="default: schedule.svg beside the run"
    )


def _export(sub: argparse.ArgumentParser) -> None:
    _run_folder(sub)
    which = sub.add_argument(
        "--which",
        type=kinds.which,
        required=True,
        metavar="NAME|STEP",
        help=f"{', '.join(kinds.ENDS)} of the last cycle, best, or a number of steps",
    )
    _completed(which, "which")
    out = sub.add_argument("--out", type=kinds.path, help="default: RUN/export/NAME")
    _completed(out, "folder")


def _convert(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "source", type=kinds.path, help="PACKAGE:FILE.gguf, or the path of a GGUF file"
    )
    out = sub.add_argument("out", type=kinds.path, help="the folder to write")
    _completed(out, "folder")
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
    "verl": _verl,
    "schedule": _schedule,
    "report": _run_folder,
    "eval": _eval,
    "export": _export,
    "convert": _convert,
    "completion": _completion,
}
