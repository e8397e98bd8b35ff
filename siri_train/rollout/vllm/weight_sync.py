"""The trainer's weights on their way to vLLM: within this process, by disk, or by NCCL.

vLLM takes them under their checkpoint names. What differs between its versions is in
``versions.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from siri_train.files import share_weights
from siri_train.model import lora
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.http_client import JsonClient, free_port, own_address
from siri_train.rollout.vllm.versions import Routes

RELEASED = "siri-released"
"""The name of a server's weights after the run that sent them has ended."""
UNUSED = (versions.FIRST_WEIGHTS, RELEASED)
"""Names of a server's weights that no run samples with: after its start, and after a run's end."""


def write_engine_folder(model: Any, folder: Path, *, untie: bool) -> None:
    """Write the config that vLLM builds its model from; the weights are sent later.

    Args:
        model: the trainer's transformers model.
        folder: created if missing.
        untie: give vLLM a separate head although the trainer's is tied to the embedding; see
            :func:`.versions.keeps_stale_head`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # fully_shard puts its own name in front of the class's.
    config["architectures"] = [type(model).__name__.removeprefix("FSDP")]
    if untie:
        config["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


@torch.no_grad()
def named_weights(
    model: Any, dtype: torch.dtype, *, untie: bool, lora_scaling: float | None = None
) -> Iterator[tuple[str, Any]]:
    """The trainer's weights under their checkpoint names, one at a time.

    Sharded parameters (DTensor) are gathered one at a time, never the whole model. Every rank must
    then iterate over all of them. Adapters are merged into the weight they adapt.

    Args:
        model: the trainer's transformers model.
        dtype: what the engine computes in.
        untie: see :func:`write_engine_folder`.
        lora_scaling: alpha / rank where the model has adapters.

    Yields:
        (name, tensor); the head only where it is a separate parameter or ``untie`` is set.
    """
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    head = model.get_output_embeddings().weight
    names = {name for name, _ in model.named_parameters()}
    adapters = {n: _whole(p) for n, p in model.named_parameters() if ".lora_" in n}
    for name, parameter in model.named_parameters():
        if name in adapters:
            continue
        value = {name: _whole(parameter)}
        if lora_scaling is not None:
            value = lora.merged({**adapters, **value}, lora_scaling)
        yield from ((plain, whole.to(dtype)) for plain, whole in value.items())
    if tied and untie and "lm_head.weight" not in names:
        yield "lm_head.weight", _whole(head).to(dtype)


def _whole(parameter: Any) -> Any:
    value = parameter.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


# Seconds that one call of a sync may take: a large model is read from a disk.
_SYNC = 1800.0
# Bytes of weights in CPU memory at a time while they are written.
_SHARD = 2**31


def exchange(server: JsonClient, version: str, load: Callable[[], Any]) -> None:
    """Replace a server's weights: pause sampling, load, drop cached prefixes, resume.

    The weights get the name ``version`` once all are loaded. While they are loaded they have a name
    that no run accepts. A server whose load failed stays paused: its weights are incomplete.

    Args:
        server: its requests in flight are aborted.
        version: the name of these weights, which the server repeats in its answers.
        load: makes the workers load them.

    Raises:
        RuntimeError: prefixes of the old weights stay cached. What ``load`` raises is passed on.
    """
    server.post(Routes.PAUSE, {}, _SYNC)
    server.post(Routes.SET_WEIGHTS_NAME, {"new_version": f"{version} loading"}, _SYNC)
    load()
    if versions.prefixes_stay(server.post(Routes.RESET_PREFIX_CACHE, {}, _SYNC)):
        raise RuntimeError("vLLM keeps prefixes cached under the old weights")
    server.post(Routes.SET_WEIGHTS_NAME, {"new_version": version}, _SYNC)
    server.post(Routes.RESUME, {}, _SYNC)


class DiskTransfer:
    """Weights as safetensors in a folder that trainer and server both read.

    It works on every system. The newest weights stay in the folder until the next ones are
    complete, so a restarted server can load them again. ``latest`` is a link to them.

    Args:
        folder: on a file system that both see.
        prepare: called with the folder of new weights before they are written, to add a config.
    """

    def __init__(self, folder: Path, prepare: Callable[[Path], None] | None = None) -> None:
        self.folder, self.prepare = folder.resolve(), prepare
        self.latest = self.folder / "latest"
        self._current: Path | None = None

    def write(self, weights: Iterator[tuple[str, Any]], name: str) -> None:
        """Write new weights and link ``latest`` to them; the old ones stay until :meth:`send`.

        It iterates over all of ``weights`` even if the disk is full, because other ranks gather
        them together with this one.
        """
        self._current = self.folder / name
        self._current.mkdir(parents=True)
        try:
            if self.prepare is not None:
                self.prepare(self._current)
            _write_shards(weights, self._current)
            link = self.folder / "link"
            link.unlink(missing_ok=True)
            link.symlink_to(name)
            link.replace(self.latest)
        finally:
            drain(weights)

    def send(self, server: JsonClient, version: str) -> None:
        """Make the server load the weights written last; any rank may repeat it."""
        body = versions.reload_call(str(self.latest.resolve()))
        exchange(server, version, lambda: server.post(Routes.CALL_WORKERS, body, _SYNC))
        for old in self.folder.glob("weights_*"):
            if self._current not in (None, old):
                shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def drain(weights: Iterator[Any]) -> None:
    """Iterate over the rest of sharded weights: other ranks gather them together with this one."""
    for _ in weights:
        pass


def _write_shards(weights: Iterator[tuple[str, Any]], folder: Path) -> None:
    """Files of at most :data:`_SHARD` bytes (or one matrix), so the whole model is never copied."""
    shard: dict[str, torch.Tensor] = {}
    size = count = 0

    def flush() -> None:
        nonlocal size, count
        if shard:
            save_file(shard, folder / f"model-{count:05d}.safetensors")
            share_weights(folder)  # the server may run as somebody else
            shard.clear()
            size, count = 0, count + 1

    seen: set[int] = set()
    for name, value in weights:
        value = value.cpu().contiguous()
        if size and size + value.nbytes > _SHARD:
            flush()
            seen.clear()
        if value.data_ptr() in seen:  # safetensors refuses two names of one memory (a tied head)
            value = value.clone()
        seen.add(value.data_ptr())
        shard[name] = value
        size += value.nbytes
    flush()


class NcclTransfer:
    """Weights broadcast from the trainer's GPU to the server's workers.

    Tested against a fake server and communicator; it has not run on a GPU. It needs vLLM in the
    trainer's environment too, and a GPU that the server does not use.

    Args:
        device: the trainer's GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._group: Any = None
        self._plan: dict[str, Any] | None = None

    def describe(self, weights: Iterator[tuple[str, Any]]) -> None:
        """Collect names, dtypes and shapes, which the workers need before the first weight."""
        names, dtypes, shapes = [], [], []
        for name, value in weights:
            names.append(name)
            dtypes.append(str(value.dtype).removeprefix("torch."))
            shapes.append(list(value.shape))
        self._plan = versions.transfer_plan(names, dtypes, shapes)

    @property
    def described(self) -> bool:
        """Whether :meth:`describe` has been called."""
        return self._plan is not None

    def connect(self, server: JsonClient) -> None:
        """Open the group of the trainer (rank 0) and all workers; replaces one that is open."""
        self._let_go()
        torch.cuda.set_device(self.device)
        address = own_address(server.host)
        workers = server.get(Routes.COUNT_WORKERS, _SYNC)["world_size"]
        group = versions.transfer_group(address, free_port(address), workers)
        with _beside(server, Routes.OPEN_TRANSFER, {"init_info": group}):
            self._group = versions.join_transfer(group)

    def send(self, server: JsonClient, weights: Iterator[tuple[str, Any]], version: str) -> None:
        """Broadcast weights and make the server use them.

        Args:
            server: whose weights are replaced.
            weights: in the order of :meth:`describe`; all of them are iterated over.
            version: see :func:`exchange`.

        Raises:
            RuntimeError: a worker failed. The group is closed; the next call opens another.
        """
        assert self._plan is not None

        def load() -> None:
            server.post(Routes.START_TRANSFER, {}, _SYNC)
            with _beside(server, Routes.TRANSFER, {"update_info": self._plan}):
                versions.broadcast(weights, self._group, self.device)
            server.post(Routes.FINISH_TRANSFER, {}, _SYNC)

        try:
            if self._group is None:
                self.connect(server)
            exchange(server, version, load)
        except BaseException:
            self._let_go()  # the two sides may be at different weights
            raise
        finally:
            drain(weights)

    def close(self) -> None:
        """Leave the group."""
        self._let_go()

    def _let_go(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            with suppress(Exception):
                versions.leave_transfer(group)


@contextmanager
def _beside(server: JsonClient, route: str, body: dict[str, Any]) -> Iterator[None]:
    """Send a request that the server answers only after the block has run.

    If it is refused at once, this raises before the block, which would wait for the server forever.
    """
    side = ThreadPoolExecutor(1)
    try:
        answer = side.submit(server.post, route, body, _SYNC)
        if wait([answer], timeout=0.2).done:
            answer.result()
        yield
        answer.result()
    except BaseException:
        server.hang_up()  # otherwise the thread waits for an answer that cannot come
        raise
    finally:
        side.shutdown()
