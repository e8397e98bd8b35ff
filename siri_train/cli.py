"""The command line: ``siri-train COMMAND``. Each command is one function; the work is elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siri_train import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``siri-train``.

    Returns:
        0; 1 on an error that the user can mend; 130 after Ctrl-C and 143 after SIGTERM.
    """
    # Half of the log lines of a download-free run would be about the hub.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)
    # argparse takes positional arguments in one run only; overrides may stand after an option too.
    wrong = [m for m in more if m.startswith("-") or "=" not in m]
    if wrong or (more and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(wrong or more)}")
    if more:
        arguments.overrides += more
    from siri_train.config import ConfigError
    from siri_train.files import WriteError
    from siri_train.rollout import EngineError
    from siri_train.run import AlarmHalt
    from siri_train.stop import Stopped

    try:
        return arguments.run(arguments) or 0
    except (ConfigError, AlarmHalt, EngineError, WriteError) as error:
        print(f"siri-train {arguments.command}: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"siri-train: {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("\nsiri-train: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        sub.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a value")

    sub = command(
        "demo", _demo, "the whole method on a CPU in minutes; ends with a table and a page"
    )
    sub.add_argument("--out", default="runs/demo", help="folder of the run (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("sft", _sft, "the supervised stage before RL; run again to continue")
    recipe(sub)
    sub.add_argument(
        "--resume", choices=("auto", "never"), default="auto", help="default: %(default)s"
    )

    sub = command("train", _train, "train with SIRI; run again to continue")
    recipe(sub)
    sub.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH", help="default: %(default)s"
    )
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="only show the resolved configuration, memory per rank, tokens a step, expected hours",
    )
    planned = sub.add_argument_group("what --dry-run plans for")
    planned.add_argument("--ranks", type=_positive, help="processes; default: torchrun's, else 1")
    planned.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="of one GPU; default: this machine's"
    )
    planned.add_argument(
        "--rates", metavar="FOLDER", help="a run whose measured rates to use; default: this one"
    )

    sub = command("verl", _verl, "a recipe as the whole command of verl 0.9.1; prints or starts it")
    recipe(sub)
    sub.add_argument("--launch", action="store_true", help="start it, too")
    sub.add_argument("--gpus", type=_positive, default=8, help="per node (default: %(default)s)")
    sub.add_argument("--nodes", type=_positive, default=1, help="default: %(default)s")
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
    sub.add_argument("checkpoint", help="a folder that from_pretrained loads")
    sub.add_argument("overrides", nargs="*", metavar="a.b=c")
    sub.add_argument("--recipe", help="default: the config.yaml of the checkpoint's run")

    sub = command("report", _report, "write a run's report.html")
    sub.add_argument("folder", help="the run's folder")

    sub = command("schedule", _schedule, "the cap over the steps, in the terminal and as SVG")
    sub.add_argument(
        "recipe", nargs="?", default="siri-1.5b.yaml", help="default: the paper's run, %(default)s"
    )
    sub.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a value")
    sub.add_argument("--svg", metavar="FILE", help="default: schedule.svg beside the run")

    sub = command("export", _export, "copy a checkpoint out of a run, without trainer state")
    sub.add_argument("folder", help="the run's folder")
    sub.add_argument(
        "--which",
        type=_which,
        required=True,
        metavar="low|high|low-lagged|high-lagged|best|STEP",
        help="an end of the last cycle, the best evaluated, or a number of steps",
    )
    sub.add_argument("--out", help="default: RUN/export/NAME")

    sub = command("convert", _convert, "turn a GGUF file into a folder that from_pretrained loads")
    sub.add_argument("source", help="PACKAGE:FILE.gguf, or the path of a GGUF file")
    sub.add_argument("out", help="the folder to write")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")

    command(
        "doctor", _doctor, "what is installed, which backends and engines work here, and why not"
    )
    return parser


def _which(text: str) -> str:
    if text in ("low", "high", "low-lagged", "high-lagged"):
        return f"siri-{text}"
    if text == "best" or text.isdigit():
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r}: takes low, high, low-lagged, high-lagged, best or a number of steps"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _demo(arguments: argparse.Namespace) -> int:
    from siri_train.demo import demo

    demo(Path(arguments.out), arguments.seed)
    return 0


def _sft(arguments: argparse.Namespace) -> int:
    from siri_train.recipe import load_config
    from siri_train.sft import supervise

    supervise(load_config(arguments.recipe, arguments.overrides), arguments.resume)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from siri_train.recipe import load_config

    config = load_config(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        from siri_train.dry_run import dry_run

        print(
            dry_run(
                config,
                ranks=arguments.ranks,
                memory_gb=arguments.gpu_memory,
                rates_from=arguments.rates,
            )
        )
        return 0
    from siri_train.loop import train

    train(config, arguments.resume)
    return 0


def _verl(arguments: argparse.Namespace) -> int:
    import importlib.util

    from siri_train.config import ConfigError
    from siri_train.recipe import load_config

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
    from siri_train.grade import grade_checkpoint

    row = grade_checkpoint(Path(arguments.checkpoint), arguments.recipe, arguments.overrides)
    print(json.dumps(row, indent=2))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from siri_train.config import ConfigError
    from siri_train.report import write_report

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise ConfigError(f"report: {arguments.folder!r} is not a folder")
    names = ("config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json")
    if not any(path for name in names for path in (*folder.glob(name), *folder.glob(f"*/{name}"))):
        raise ConfigError(
            f"report: {arguments.folder!r} holds no run ({', '.join(names)} are missing); give the "
            "folder of a run or of a demo"
        )
    print(write_report(folder))
    return 0


def _schedule(arguments: argparse.Namespace) -> int:
    from siri_train.recipe import load_config
    from siri_train.report.schedule_plot import plot_svg, plot_text

    config = load_config(arguments.recipe, arguments.overrides)
    schedule, steps = config.schedule.build(), config.train.steps
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    print(plot_text(schedule, steps, width, 16))
    eighths = range(0, min(steps, schedule.cycle) + 1, max(1, schedule.cycle // 8))
    print("step  " + "".join(f"{t:>8}" for t in eighths))
    print("cap   " + "".join(f"{schedule(t):>8}" for t in eighths))
    path = Path(arguments.svg) if arguments.svg else config.run_dir / "schedule.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plot_svg(schedule, steps), encoding="utf-8")
    print(f"plot: {path}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from siri_train.checkpoint import export

    print(export(Path(arguments.folder), arguments.which, arguments.out))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from siri_train.config import ConfigError
    from siri_train.convert import ConversionError, convert_gguf

    try:
        print(convert_gguf(arguments.source, arguments.out, dtype=arguments.dtype).message)
    except ConversionError as error:
        raise ConfigError(str(error)) from error
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from siri_train.doctor import doctor

    print(doctor())
    return 0


if __name__ == "__main__":
    sys.exit(main())
