"""``siri-train report RUN --serve``: the run's page at an address of this machine."""

from __future__ import annotations

import signal
from pathlib import Path

from siri_train.config.base import ConfigError
from siri_train.report.data import read_run_folder
from siri_train.report.page import build_page
from siri_train.report.serve import HOST, PORT, PortTaken, server

RUN_FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json")


def holds_run(folder: Path) -> bool:
    """Whether a folder, or one in it, has a file of a run.

    Args:
        folder: that exists.
    """
    patterns = (f"{deep}{name}" for name in RUN_FILES for deep in ("", "*/", "*/*/", "*/*/*/"))
    return any(path for pattern in patterns for path in folder.glob(pattern))


def serve(folder: Path, port: int | None) -> int:
    """Show a run's page until Ctrl-C; the folder need not exist yet.

    Args:
        folder: of the run.
        port: to listen on; 0 takes a free one, None the usual one.

    Returns:
        0 after Ctrl-C, which is how it ends.

    Raises:
        ConfigError: the folder is a file, or the port cannot be had.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder; takes a run's folder")

    def build(state: str, every: float) -> str:
        if not folder.is_dir():
            raise ValueError("the folder does not exist yet")
        if not holds_run(folder):
            raise ValueError(f"it holds none of {', '.join(RUN_FILES)} yet")
        return build_page(read_run_folder(folder), state, every)

    try:
        listening = server(folder, PORT if port is None else port, build)
    except PortTaken as error:
        raise ConfigError(str(error)) from error
    with listening:
        print(f"http://{HOST}:{listening.server_address[1]}/   (Ctrl-C ends it)", flush=True)
        try:
            listening.serve_forever()
        except KeyboardInterrupt as error:
            if getattr(error, "signum", signal.SIGINT) != signal.SIGINT:
                raise
    return 0
