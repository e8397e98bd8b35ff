"""The command line: ``siri-train COMMAND``. Each command is one function; the work is elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

from siri_train import __version__
from siri_train.commands import arguments as kinds
from siri_train.commands.output import claim_descriptors, encodable, tolerant_output
from siri_train.commands.requirements import missing_packages
from siri_train.trainer.interrupts import interrupting


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``siri-train``.

    Returns:
        0; 1 on an error that the user can mend; 128 + N after a signal N that asked to end: 130
        after Ctrl-C, 143 after SIGTERM.

    Raises:
        SystemExit: with 2 on arguments that the command does not take, with 0 after ``--help``.
    """
    claim_descriptors()
    with tolerant_output():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    # Half of the log lines of a download-free run would be about the hub.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = _parser()
    given = sys.argv[1:] if argv is None else list(argv)
    missing = missing_packages()
    if missing and not {"-h", "--help", "--version"} & set(given):
        print(
            f"siri-train: the trainer needs packages that are not installed: {', '.join(missing)}; "
            "pip install 'siri-kernels[train]' brings them",
            file=sys.stderr,
        )
        return 1
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
    try:
        with interrupting():
            return _errors_told(arguments)
    except KeyboardInterrupt as error:
        number = getattr(error, "signum", signal.SIGINT)
        if sys.stderr.isatty():
            print(file=sys.stderr)  # behind the ^C
        print(
            f"siri-train {arguments.command}: ended by {signal.Signals(number).name}; no file is "
            "half written; run the same command again",
            file=sys.stderr,
        )
        return 128 + number


def _errors_told(arguments: argparse.Namespace) -> int:
    """Run the command; what the user can mend is told in one line."""
    from siri_train.config.base import ConfigError
    from siri_train.config.masked import masked
    from siri_train.files import WriteError, explained
    from siri_train.rollout import EngineError
    from siri_train.trainer.run import AlarmHalt
    from siri_train.trainer.signals import Stopped

    try:
        return arguments.run(arguments) or 0
    except (ConfigError, AlarmHalt, EngineError, WriteError) as error:
        # The words of a library inside may have several lines.
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        # Names of files and tensors may hold what a terminal obeys.
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        print(f"siri-train {arguments.command}: {masked(text)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"siri-train {arguments.command}: {masked(explained(error))}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"siri-train: {stopped}", file=sys.stderr)
        return 128 + stopped.signum


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="siri-train",
        description="Train reasoning models with SIRI: the response-length cap swings, answers get "
        "shorter and better (arXiv 2509.25176).",
    )
    parser.add_argument("--version", action="version", version=f"siri-train {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def recipe(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("recipe", help="a YAML file, or the name of a packaged recipe")
        sub.add_argument(
            "overrides",
            nargs="*",
            metavar="a.b=c",
            help="override a value: text as it stands, or YAML where the key takes no text",
        )

    sub = command(
        "demo", _demo, "the whole method on a CPU in minutes; ends with a table and a page"
    )
    sub.add_argument(
        "--out",
        type=kinds.path,
        default="runs/demo",
        help="folder of the run (default: %(default)s)",
    )
    sub.add_argument("--seed", type=kinds.seed, default=0)

    sub = command("sft", _sft, "the supervised stage before RL; run again to continue")
    recipe(sub)
    sub.add_argument(
        "--resume", choices=("auto", "never"), default="auto", help="default: %(default)s"
    )

    sub = command("train", _train, "train with SIRI; run again to continue")
    recipe(sub)
    sub.add_argument(
        "--resume",
        type=kinds.path,
        default="auto",
        metavar="auto|never|PATH",
        help="default: %(default)s",
    )
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
    planned.add_argument(
        "--rates",
        type=kinds.path,
        metavar="FOLDER",
        help="a run whose measured rates to use; default: this one",
    )

    sub = command("verl", _verl, "a recipe as the whole command of verl 0.9.1; prints or starts it")
    recipe(sub)
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

    sub = command(
        "eval", _eval, "accuracy of a checkpoint at every budget from one generation pass"
    )
    sub.add_argument("checkpoint", type=kinds.path, help="a folder that from_pretrained loads")
    sub.add_argument("overrides", nargs="*", metavar="a.b=c")
    sub.add_argument(
        "--recipe", type=kinds.path, help="default: the config.yaml of the checkpoint's run"
    )

    sub = command("report", _report, "write a run's report.html")
    sub.add_argument("folder", type=kinds.path, help="the run's folder")

    sub = command("schedule", _schedule, "the cap over the steps, in the terminal and as SVG")
    sub.add_argument(
        "recipe", nargs="?", default="siri-1.5b.yaml", help="default: the paper's run, %(default)s"
    )
    sub.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a value")
    sub.add_argument(
        "--svg", type=kinds.path, metavar="FILE", help="default: schedule.svg beside the run"
    )

    sub = command("export", _export, "copy a checkpoint out of a run, without trainer state")
    sub.add_argument("folder", type=kinds.path, help="the run's folder")
    sub.add_argument(
        "--which",
        type=kinds.which,
        required=True,
        metavar="low|high|low-lagged|high-lagged|best|STEP",
        help="an end of the last cycle, the best evaluated, or a number of steps",
    )
    sub.add_argument("--out", type=kinds.path, help="default: RUN/export/NAME")

    sub = command("convert", _convert, "turn a GGUF file into a folder that from_pretrained loads")
    sub.add_argument(
        "source", type=kinds.path, help="PACKAGE:FILE.gguf, or the path of a GGUF file"
    )
    sub.add_argument("out", type=kinds.path, help="the folder to write")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")

    command(
        "doctor", _doctor, "what is installed, which backends and engines work here, and why not"
    )
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from siri_train.commands.demo import demo
    from siri_train.config.paths import user_path

    demo(user_path(arguments.out, "--out"), arguments.seed)
    return 0


def _sft(arguments: argparse.Namespace) -> int:
    from siri_train.commands.sft import supervise
    from siri_train.config.recipe import load_config

    supervise(load_config(arguments.recipe, arguments.overrides), arguments.resume)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from siri_train.config.recipe import load_config

    config = load_config(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        from siri_train.commands.dry_run import dry_run

        print(
            dry_run(
                config,
                ranks=arguments.ranks,
                memory_gb=arguments.gpu_memory,
                rates_from=arguments.rates,
            )
        )
        return 0
    from siri_train.train import train

    train(config, arguments.resume)
    return 0


def _verl(arguments: argparse.Namespace) -> int:
    import importlib.util

    from siri_train.config.base import ConfigError
    from siri_train.config.recipe import load_config

    config = load_config(arguments.recipe, arguments.overrides)
    if importlib.util.find_spec("verl") is None:
        raise ConfigError(
            "verl is not installed here; this needs verl 0.9.1 with its own transformers (5.5 to "
            "5.10), and siri-kernels beside it by pip install --no-deps"
        )
    from siri_train.integrations.verl import command
    from siri_train.integrations.verl.options import Machines

    machines = Machines(arguments.gpus, arguments.nodes, arguments.engine)
    prepared = command.prepare(config, machines, arguments.set)
    for note in prepared.notes:
        print(f"siri-train verl: {note}", file=sys.stderr)
    print(command.as_script(prepared.command), end="", flush=True)
    if arguments.launch:
        command.launch(prepared.command)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from siri_train.commands.eval import grade_checkpoint
    from siri_train.config.paths import check_file, user_path

    checkpoint = user_path(arguments.checkpoint, "eval")
    if (checkpoint / "config.json").is_file():
        check_file(checkpoint / "eval.json", "eval")
    row = grade_checkpoint(checkpoint, arguments.recipe, arguments.overrides)
    print(json.dumps(row, indent=2))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from siri_train.config.base import ConfigError
    from siri_train.config.paths import check_file, user_path
    from siri_train.report import write_report

    folder = user_path(arguments.folder, "report")
    if not folder.is_dir():
        raise ConfigError(f"report: {arguments.folder!r} is not a folder; takes a run's folder")
    names = ("config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json")
    if not any(path for name in names for path in (*folder.glob(name), *folder.glob(f"*/{name}"))):
        raise ConfigError(
            f"report: {arguments.folder!r} holds no run ({', '.join(names)} are missing); give the "
            "folder of a run or of a demo"
        )
    check_file(folder / "report.html", "report")
    print(write_report(folder))
    return 0


def _schedule(arguments: argparse.Namespace) -> int:
    from siri_train.config.paths import check_file, user_path
    from siri_train.config.recipe import load_config
    from siri_train.files import replace_text
    from siri_train.report.schedule_plot import plot_svg, plot_text

    config = load_config(arguments.recipe, arguments.overrides)
    if arguments.svg is not None:
        path = check_file(user_path(arguments.svg, "--svg"), "--svg")
    else:
        path = check_file(user_path(config.run_dir, "output") / "schedule.svg", "output")
    schedule, steps = config.schedule.build(), config.train.steps
    width = max(24, min(100, shutil.get_terminal_size((100, 24)).columns))  # the plot's least
    print(encodable(plot_text(schedule, steps, width, 16)))
    eighths = range(0, min(steps, schedule.cycle) + 1, max(1, schedule.cycle // 8))
    print("step  " + "".join(f"{t:>8}" for t in eighths))
    print("cap   " + "".join(f"{schedule(t):>8}" for t in eighths))
    replace_text(path.resolve(), plot_svg(schedule, steps))  # a link stays one
    print(f"plot: {path}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from siri_train.checkpoint.manifest import export
    from siri_train.config.paths import folder_made, user_path

    folder = user_path(arguments.folder, "export")
    out = None if arguments.out is None else user_path(arguments.out, "--out")
    if out is not None and not out.exists() and folder.is_dir():
        with folder_made(out, "--out"):
            pass
    print(export(folder, arguments.which, None if out is None else str(out)))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from siri_train.config.base import ConfigError
    from siri_train.config.paths import user_path
    from siri_train.model.gguf import ConversionError, convert_gguf

    out = user_path(arguments.out, "convert")
    try:
        print(convert_gguf(arguments.source, str(out), dtype=arguments.dtype).message)
    except ConversionError as error:
        raise ConfigError(str(error)) from error
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from siri_train.commands.doctor import doctor

    print(doctor())
    return 0


if __name__ == "__main__":
    sys.exit(main())
