"""A vLLM server of the trainer's own: it is started, kept running, and ended with the trainer."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from siri_train.config.base import ConfigError
from siri_train.config.explain import masked_value
from siri_train.files import printable, shown
from siri_train.rollout.engine import EngineError
from siri_train.rollout.vllm import supervisor, versions
from siri_train.rollout.vllm.http_client import Faulty, JsonClient, Refused, Unreachable, free_port

HOW_TO_CONTINUE = (
    "nothing of this step has been trained on; run the same command again to continue from the "
    "newest checkpoint"
)
"""The end of every error of a server: what is lost, and how to continue."""
# The prefix of each line of vLLM's processes: which process; in log lines level, time and place.
_PREFIX = re.compile(r"^(?:\([\w-]+ pid=\d+\) ?)*(?:[A-Z]+ [\d-]+ [\d:.]+ \[[^\]]*\] ?)?")
# The last line of a traceback, an error of argparse ("PROGRAM: error: ..."), or one of a library.
_ERROR = re.compile(
    r"(?:[\w.]*(?:Error|Exception|Exit|Interrupt|Failure)|(?:\S+: )?(?:error|fatal)(?: error)?)"
    r"\b: *\S|.*(?i:segmentation fault|out of memory|cannot allocate|core dumped)"
)
_ELSEWHERE = re.compile(r"(?i)root cause|see (?:the )?(?:stack ?trace|logs?|error)s? above")
# Seconds that a server may take to answer a health check.
_HEALTH = 20.0
# torchrun's description of the trainer's ranks, and the variables of a vLLM in this process.
_NOT_INHERITED = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *versions.NOT_FOR_SERVERS,
}


def python_version_of_vllm(python: str) -> str:
    """The version of vLLM that an interpreter would run.

    Raises:
        ConfigError: there is no such interpreter, or no vLLM in its environment.
    """
    try:
        command = [python, "-c", versions.VERSION_PROGRAM]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"rollout.server.python: {python!r} cannot be run: {error}") from error
    version = found.stdout.strip()
    if found.returncode or not version:
        raise ConfigError(
            f"rollout.server.python: no vLLM in the environment of {python!r}; pip install "
            "'siri-kernels[vllm]' there (without a GPU: sh scripts/vllm.sh .vllm), name the "
            "interpreter of another, or give rollout.server.url"
        )
    return version


class ServerProcess:
    """A server on the loopback interface, with a supervisor that restarts it.

    The supervisor ends it when the trainer ends, whatever the reason.

    The server has a random key, which it gets through the environment: other users of the machine
    reach the port but can neither read the key nor sample. The key is not written to any file.

    Args:
        folder: the model that the server loads, with weights (safetensors); read again after a
            restart.
        arguments: flags of ``vllm serve``; see :func:`.versions.server_flags`.
        log: the file for everything that the server prints.
        python: interpreter of the environment that has vLLM.
        gpus: its CUDA_VISIBLE_DEVICES; None: the trainer's.
        restarts: how often in a row it is started again after it ended.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        log: Path,
        *,
        python: str = sys.executable,
        gpus: str | None = None,
        restarts: int = 3,
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self._begins = log.stat().st_size  # what is there was printed by earlier servers
        self.has_served = False
        port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{port}"
        command = [python, "-m", versions.SERVER_MODULE, "--model", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        environment = {**versions.SERVER_DEFAULTS, **environment, **versions.SERVER_ENVIRONMENT}
        self.key = secrets.token_urlsafe(32)
        environment[versions.KEY] = self.key
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)  # it names packages of another environment
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        self._supervisor = subprocess.Popen(
            [sys.executable, supervisor.__file__, str(os.getpid()), str(restarts), str(log)]
            + [*command, *arguments],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is the trainer's to handle
        )

    @property
    def gave_up(self) -> str | None:
        """Why the server has ended, in one line, if it will not be restarted; otherwise None.

        A server that has ended before it ever served is not restarted: it would fail again.
        """
        coming = self._supervisor.poll() is None
        if coming and (self.has_served or not self._has_ended()):
            return None
        return f"{cause_of_death(self._said())} (all it said is in {shown(self.log)})"

    def _has_ended(self) -> bool:
        return supervisor.ENDED in self._said()

    def _said(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._begins)
            return log.read().decode(errors="replace")

    def close(self) -> None:
        """End the server; no process of it is left when this returns."""
        with suppress(ProcessLookupError):
            self._supervisor.terminate()
        self._supervisor.wait()


def cause_of_death(log: str) -> str:
    """The line of a log that says why the server ended, short and without secrets.

    It is the last error that does not refer to another one: vLLM's engine prints the cause, and its
    API server prints afterwards that the engine is gone. Without an error it is the last line.

    Args:
        log: what server and supervisor have printed since the server was first started.
    """
    lines = [line for raw in log.splitlines() if (line := _PREFIX.sub("", raw).strip())]
    own = [line for line in lines if line.startswith("supervisor: ")]
    leaks = ("- ", "nanobind", "See https")  # a report that follows every crash
    others = [line for line in lines if not line.startswith(("supervisor: ", *leaks))]
    errors = [line for line in others if _ERROR.match(line) and not _ELSEWHERE.search(line)]
    ended = next((line for line in reversed(own) if line.startswith(supervisor.ENDED)), "")
    line = (errors or others or [""])[-1]
    text = masked_value(printable(line))
    text = text if len(text) <= 400 else f"{text[:300]} ... {text[-90:]}"
    status = ended.removeprefix(f"{supervisor.ENDED}, ") or "no status"
    return f"{text} ({status})" if text else f"it said nothing ({status})"


def wait_for_server(
    client: JsonClient,
    patience: float,
    process: ServerProcess | None = None,
    lost: str | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> bool:
    """Wait until the server answers its health check; poll with growing pauses.

    Args:
        client: of the server.
        patience: longest wait in seconds.
        process: the trainer's own server; the wait ends when it will not be restarted.
        lost: why the server is waited for again; printed once.
        cancelled: once true, return at once.

    Returns:
        Whether the server is up; False only where the caller has cancelled.

    Raises:
        EngineError: it does not come up.
    """
    until, pause, printed = time.monotonic() + patience, 0.25, False
    while True:
        try:
            client.get(versions.Routes.HEALTH, _HEALTH)
            if process is not None:
                process.has_served = True
            return True
        except (Unreachable, Refused, Faulty) as error:
            reason = str(error)
        if cancelled is not None and cancelled():
            return False
        if process is not None and process.gave_up is not None:
            raise EngineError(
                f"the vLLM server of this run ended and does not come back: {process.gave_up}; "
                f"{HOW_TO_CONTINUE}"
            )
        if time.monotonic() > until:
            raise EngineError(
                f"no vLLM server at {client.url} for {patience:.0f} s (rollout.server."
                f"start_minutes): {lost or reason}; {HOW_TO_CONTINUE}"
            )
        if not printed:
            print(f"vLLM server at {client.url}: waiting for it ({lost or reason})", flush=True)
            printed = True
        time.sleep(min(pause, max(0.0, until - time.monotonic()) + 0.01))
        pause = min(pause * 1.5, 5.0)
