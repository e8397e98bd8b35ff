"""The command line: ``siri-train COMMAND``. Each command is one function; the work is elsewhere.

Commands import what they need when they run, so that help, errors and completion come at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from siri_train.commands.output import claim_descriptors, encodable, tolerant_output
from siri_train.commands.parser import parse
from siri_train.trainer.interrupts import interrupting


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``siri-train``.

    Returns:
        0; 1 on an error that the user can correct; 128 + N after a signal N that asked to end: 130
        after Ctrl-C, 143 after SIGTERM.

    Raises:
        SystemExit: with 2 on arguments that the command does not take, with 0 after ``--help``.
    """
    claim_descriptors()
    with tolerant_output():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    # Otherwise half of the log lines of a run without downloads would be about the hub.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "_ARGCOMPLETE" in os.environ:  # the shell wants completions; this call does not return
        from siri_train.commands.completion import complete

        return complete()
    given = sys.argv[1:] if argv is None else list(argv)
    missing = _missing(given)
    if missing:
        print(
            f"siri-train: the trainer needs packages that are not installed: {', '.join(missing)}; "
            "pip install 'siri-kernels[train]' brings them",
            file=sys.stderr,
        )
        return 1
    arguments = parse(given)
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


def _missing(given: Sequence[str]) -> list[str]:
    """Packages that the commands need and that are not installed; help does not look for them."""
    if {"-h", "--help", "--version"} & set(given):
        return []
    from siri_train.commands.requirements import missing_packages

    return missing_packages()


def _errors_told(arguments: argparse.Namespace) -> int:
    """Run the command; an error that the user can correct is printed as one line."""
    try:
        return _RUN[arguments.command](arguments)
    except Exception as error:
        told = _told(error, arguments.command)
        if told is None:
            raise
        text, status = told
        print(text, file=sys.stderr)
        return status


def _told(error: Exception, command: str) -> tuple[str, int] | None:
    """The line for the user and the exit status; None where the error is a fault of the code."""
    from siri_train.config.base import ConfigError
    from siri_train.config.masked import masked
    from siri_train.files import WriteError, explained, printable

    if isinstance(error, OSError):
        return f"siri-train {command}: {masked(explained(error))}", 1
    if not isinstance(error, (ConfigError, WriteError)):
        from siri_train.rollout import EngineError  # torch comes with these
        from siri_train.trainer.alarmed import AlarmHalt
        from siri_train.trainer.signals import Stopped

        if isinstance(error, Stopped):
            return f"siri-train: {error}", 128 + error.signum
        if not isinstance(error, (AlarmHalt, EngineError)):
            return None
    # A library's message may have several lines.
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    # Names of files and tensors may hold characters that control the terminal.
    text = printable(text)
    return f"siri-train {command}: {masked(text)}", 1


def _demo(arguments: argparse.Namespace) -> int:
    from siri_train.commands.demo import demo, full
    from siri_train.config.paths import user_path

    out = user_path(arguments.out, "--out")
    if arguments.full:
        return full(out / "full", arguments.seed)
    demo(out, arguments.seed)
    return 0


def _sft(arguments: argparse.Namespace) -> int:
    from siri_train.commands.sft import supervise
    from siri_train.config.recipe import load_config

    supervise(load_config(arguments.recipe, arguments.overrides), arguments.resume)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from siri_train.config.recipe import load_config

    config = load_config(arguments.recipe, arguments.overrides)
    if arguments.halt_on:
        from siri_train.commands.halt_on import halting

        config = halting(config, arguments.halt_on)
    if arguments.dry_run:
        from siri_train.commands.dry_run import dry_run, options

        print(dry_run(config, **options(arguments)))
        return 0
    from siri_train.commands.arguments import refuse_without_dry_run

    refuse_without_dry_run(arguments)
    from siri_train.train import train

    train(config, arguments.resume)
    return 0


def _ablate(arguments: argparse.Namespace) -> int:
    from siri_train.ablate.plan import Asked
    from siri_train.commands.ablate import ablate
    from siri_train.config.paths import user_path
    from siri_train.config.recipe import find_recipe

    out = arguments.out or f"runs/ablate-{find_recipe(arguments.recipe).stem}"
    asked = Asked(
        recipe=arguments.recipe,
        out=user_path(out, "--out"),
        overrides=arguments.overrides,
        vary=arguments.vary,
        methods=[name for names in arguments.method for name in names],
        seeds=arguments.seeds,
        match=arguments.match,
        tokens=arguments.tokens,
        caps=arguments.caps,
    )
    return ablate(
        asked,
        jobs=arguments.jobs,
        at=arguments.at,
        against=arguments.against,
        named=arguments.set,
        show=arguments.show,
        dry_run=arguments.dry_run,
    )


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
    import json

    from siri_train.commands.eval import grade_checkpoint
    from siri_train.config.paths import check_file, user_path
    from siri_train.report.eval_table import evaluation_table
    from siri_train.terminal.lines import terminal_width

    checkpoint = user_path(arguments.checkpoint, "eval")
    if (checkpoint / "config.json").is_file():
        for name in ("eval.json", "eval_questions.jsonl"):
            check_file(checkpoint / name, "eval")
    row = grade_checkpoint(checkpoint, arguments.recipe, arguments.overrides)
    print(encodable(evaluation_table(row, terminal_width(sys.stderr)), sys.stderr), file=sys.stderr)
    print(json.dumps(row, indent=2), flush=True)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from siri_train.config.base import ConfigError
    from siri_train.config.paths import check_file, user_path
    from siri_train.report import write_report

    if arguments.text or arguments.json:
        from siri_train.commands.verdict import told

        print(encodable(told(user_path(arguments.folder, "report"), arguments.json)))
        return 0
    folder = user_path(arguments.folder, "report")
    if arguments.port is not None and not arguments.serve:
        raise ConfigError("--port is of --serve; give --serve too")
    if arguments.serve:
        from siri_train.commands.serve import serve

        return serve(folder, arguments.port)
    if not folder.is_dir():
        raise ConfigError(f"{arguments.folder!r} is not a folder; takes a run's folder")
    from siri_train.commands.serve import RUN_FILES, holds_run

    if not holds_run(folder):
        raise ConfigError(
            f"{arguments.folder!r} holds no run ({', '.join(RUN_FILES)} are missing); give "
            "the folder of a run or of a demo"
        )
    check_file(folder / "report.html", "report")
    print(write_report(folder))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    import json

    from siri_train.commands.compare import as_json, compare
    from siri_train.commands.compare_text import comparison_text
    from siri_train.config.paths import user_path
    from siri_train.terminal.lines import terminal_width

    folders = [user_path(run, "compare") for run in arguments.runs]
    if arguments.page is not None:
        from siri_train.commands.compare_page import write_comparison
        from siri_train.config.paths import check_file

        page = check_file(user_path(arguments.page, "--page"), "--page")
        note = write_comparison(folders, arguments.set, page, arguments.start)
        if note:
            print(f"siri-train compare: {note}", file=sys.stderr)
        print(page)
        return 0
    found = compare(folders, arguments.set, arguments.start)
    if arguments.json:
        print(json.dumps(as_json(found), indent=2))
    else:
        print(encodable(comparison_text(found, terminal_width())))
    return 0


def _tokens(arguments: argparse.Namespace) -> int:
    import json

    from siri_train.commands.tokens import tables
    from siri_train.commands.tokens_text import as_json, tokens_text
    from siri_train.config.paths import user_path
    from siri_train.terminal.lines import terminal_width

    folders = [user_path(run, "tokens") for run in arguments.runs]
    found, lacking = tables(folders, arguments.words)
    for line in lacking:
        print(f"siri-train tokens: left out: {line}", file=sys.stderr)
    written = json.dumps(as_json(found), indent=2) if arguments.json else ""
    print(written or encodable(tokens_text(found, terminal_width())))
    return 0


def _schedule(arguments: argparse.Namespace) -> int:
    from siri_train.commands.schedule import show_schedule

    show_schedule(arguments.recipe, arguments.overrides, arguments.svg)
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from siri_train.commands.data import get, listing

    if arguments.action == "list":
        print(encodable(listing(arguments.to, arguments.json)))
        return 0
    for line in get(arguments):
        print(encodable(line))
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
    from siri_train.terminal.lines import broken, terminal_width

    print(encodable(broken(doctor(), terminal_width())))
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    from siri_train.commands.completion import script

    print(script(arguments.shell), end="")
    return 0


_RUN = {
    "demo": _demo,
    "doctor": _doctor,
    "sft": _sft,
    "train": _train,
    "ablate": _ablate,
    "verl": _verl,
    "schedule": _schedule,
    "report": _report,
    "eval": _eval,
    "compare": _compare,
    "tokens": _tokens,
    "data": _data,
    "export": _export,
    "convert": _convert,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
