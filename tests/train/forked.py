"""Stands for ``subprocess.Popen`` where an ablation starts its runs: a fork saves the imports."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

from siri_train import child_run


class Forked:
    """The parts of ``Popen`` that ``siri_train.ablate.runs`` uses."""

    writers: ClassVar[list[int]] = []

    def __init__(self, words: list[str], *, stdout: IO[bytes], **_: Any) -> None:
        self.returncode: int | None = None
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                # An exec closes these: while one is open, its process does not see the end.
                for one in (writer, *self.writers):
                    os.close(one)
                os.setsid()
                os.dup2(reader, 0)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
                sys.stdout = open(1, "w", closefd=False)
                sys.stderr = open(2, "w", closefd=False)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                torch.set_num_threads(1)  # threads of the parent do not live here
                status = child_run.main(words[-2], Path(words[-1]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.close(reader)
        self.writers.append(writer)
        self.stdin = _Writer(writer, self.writers)

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        if self.returncode is None:
            self._take(os.waitpid(self.pid, os.WNOHANG))
        return self.returncode

    def wait(self) -> int | None:
        """The exit status, after its end."""
        if self.returncode is None:
            self._take(os.waitpid(self.pid, 0))
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def _take(self, ended: tuple[int, int]) -> None:
        if ended[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])


class _Writer:
    def __init__(self, descriptor: int, writers: list[int]) -> None:
        self.descriptor, self.writers, self.closed = descriptor, writers, False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.writers.remove(self.descriptor)
            os.close(self.descriptor)
