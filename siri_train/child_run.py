"""``python -m siri_train.child_run RECIPE FOLDER``: one run of an ablation in its own process.

It trains as ``siri-train train`` does, and ends with a checkpoint when its standard input is
closed: by the ablation that wants to stop, or because that process is gone, however it ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

WAIT = 600.0
"""Seconds that an earlier process of the same run has to write its checkpoint and end."""


def main(recipe: str, folder: Path) -> int:
    """Train.

    Args:
        recipe: the run's YAML.
        folder: of the run.

    Returns:
        The exit status of ``siri-train train``.
    """
    from siri_train.cli import main as command_line

    threading.Thread(target=_stop_with_the_parent, daemon=True).start()
    _wait_for_an_earlier_one(folder)
    return command_line(["train", recipe])


def _stop_with_the_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_an_earlier_one(folder: Path) -> None:
    """Wait while another process holds the run, as one whose ablation was killed does.

    The run itself reports what else is wrong with the folder.
    """
    from siri_train.config.base import ConfigError
    from siri_train.trainer.lock import NAME, run_lock

    until = time.monotonic() + WAIT
    told = False
    while (folder / NAME).exists() and time.monotonic() < until:
        try:
            with run_lock(folder):
                return
        except ConfigError as error:
            if not told:
                print(f"waits: {error}", flush=True)
            told = True
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
