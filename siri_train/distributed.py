"""Ranks: process group, sharing work and results.

Everything here also works in a single process, where it costs nothing. Start several with
``torchrun --nproc-per-node N -m siri_train train RECIPE.yaml``.
"""

from __future__ import annotations

import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")
Result = TypeVar("Result")


_LEFT: list[Any] = []


def leave(wait: float = 60.0) -> None:
    """Leave the process group, if there still is one, together with all ranks.

    If one rank closes its sockets while another still reads, that one fails ("Connection reset by
    peer", after all was done). So the ranks first count themselves in the store, outside of gloo.

    The group's object is kept after the call: if a thread of gloo holds the last reference, it
    destroys the group and waits for itself ("terminate called without an active exception").

    Args:
        wait: seconds for the others at most; 0 where this rank leaves because of an error.
    """
    if not active():  # a vLLM in this process takes the group down with itself
        return
    until = time.monotonic() + wait
    try:
        store = dist.distributed_c10d._get_default_store()
        here = store.add("siri_train/leaving", 1)
        while here < dist.get_world_size() and time.monotonic() < until:
            time.sleep(0.01)
            here = store.add("siri_train/leaving", 0)
    except RuntimeError:
        pass  # another rank's store, which has seen all of us and gone
    _LEFT.append(dist.group.WORLD)
    dist.destroy_process_group()


@contextmanager
def session(device: str, timeout_minutes: float = 60.0) -> Iterator[None]:
    """Join the process group that torchrun describes for as long as the body runs.

    Without torchrun's environment (``RANK``, ``WORLD_SIZE``), or inside another session, nothing
    happens. On a GPU both gloo (objects on the CPU) and nccl (tensors) are opened and the process
    takes the GPU ``LOCAL_RANK``. Ranks other than 0 print nothing; their errors are still shown.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        timeout_minutes: a collective that takes longer is an error; ranks wait for one another
            while the slowest samples, so this is long.
    """
    if dist.is_initialized() or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store = fresh_store(timeout)
    if store is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
    _LEFT.append(dist.group.WORLD)
    try:
        if is_main():
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield
    except BaseException:
        leave(wait=0)
        raise
    leave()


def fresh_store(timeout: datetime.timedelta) -> Any:
    """A store for this launch of the ranks alone, or None where torchrun keeps none over restarts.

    torchrun's agent has one store for all launches of its ranks (``--max-restarts``). The addresses
    that killed ranks have left there make the ranks of the next launch wait for the dead (PyTorch
    issue 135712). So the keys of a launch get a prefix of their own, which rank 0 draws. A rank
    must not take the prefix of a former launch: it sends rank 0 a word that it has just drawn, and
    takes the prefix that comes back with this word. Only a rank 0 that runs now can answer so,
    because torchrun ends all old ranks before it starts new ones. Rank 0 answers until each of them
    has given the prefix back.

    Args:
        timeout: longest wait for all ranks.

    Returns:
        A ``torch.distributed.PrefixStore``, the same for all ranks; None without torchrun's store.

    Raises:
        RuntimeError: the others did not answer in time, or torchrun's store has gone.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False, timeout=timeout)
    mine = uuid.uuid4().hex
    if number > 0:
        store.set(f"siri_train/word/{number}", mine)
        prefix = _answer(store, number, mine, timeout)
        store.set(f"siri_train/heard/{number}", prefix)
        return dist.PrefixStore(f"siri_train/{prefix}", store)
    until = time.monotonic() + timeout.total_seconds()
    waiting: dict[int, str] = dict.fromkeys(range(1, size), "")
    while waiting:
        for other, answered in list(waiting.items()):
            word = _read(store, f"siri_train/word/{other}")
            if word != answered:
                store.set(f"siri_train/answer/{other}", f"{word} {mine}")
                waiting[other] = word
            elif word and _read(store, f"siri_train/heard/{other}") == mine:
                del waiting[other]
        _pause(until, f"ranks {', '.join(map(str, waiting))} of {size}")
    return dist.PrefixStore(f"siri_train/{mine}", store)


def _answer(store: Any, number: int, word: str, timeout: datetime.timedelta) -> str:
    """The prefix that rank 0 has sent back with ``word``."""
    until = time.monotonic() + timeout.total_seconds()
    while True:
        echoed, _, prefix = _read(store, f"siri_train/answer/{number}").partition(" ")
        if echoed == word:
            return prefix
        _pause(until, "rank 0")


def _read(store: Any, key: str) -> str:
    """A key's text, "" where there is none; ``get`` would wait for it."""
    return store.get(key).decode() if store.check([key]) else ""


def _pause(until: float, missing: str) -> None:
    if time.monotonic() > until:
        raise RuntimeError(f"distributed: no word from {missing} in distributed.timeout_minutes")
    time.sleep(0.01)


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Processes in the group, 1 without one."""
    return dist.get_world_size() if active() else 1


def active() -> bool:
    """Whether there is a process group, which may be of one process."""
    return dist.is_available() and dist.is_initialized()


def is_main() -> bool:
    """Whether this process writes the run's files."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        gather(None)  # over gloo: a barrier of nccl would need to know the GPU


def gather(value: Result) -> list[Result]:
    """Every rank's ``value`` (anything that pickles), in the order of the ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Result) -> Result:
    """Rank 0's ``value`` on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(function: Callable[..., Result], *args: Any) -> Result:
    """Rank 0's ``function(*args)`` on every rank; its exception is raised on every rank.

    Args:
        function: called on rank 0 only.
        *args: its arguments.

    Raises:
        Exception: the one that ``function`` raised.
    """
    if world_size() == 1:
        return function(*args)
    outcome: tuple[bool, Any] = (True, None)
    if is_main():
        try:
            outcome = (True, function(*args))
        except Exception as error:  # the others wait for this broadcast: they must get something
            outcome = (False, error)
    fine, value = from_main(outcome)
    if not fine:
        raise value
    return value


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body on rank 0 first; the others then find the files that it wrote."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def share_of(count: int, number: int, size: int) -> slice:
    """A rank's contiguous part of ``count`` items; the parts differ by one item at most.

    Args:
        count: all items.
        number: the rank.
        size: the number of ranks.
    """
    return slice(count * number // size, count * (number + 1) // size)


def share(count: int) -> slice:
    """This rank's :func:`share_of` ``count`` items."""
    return share_of(count, rank(), world_size())


def spread(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> list[Result]:
    """``work(items)`` with every rank doing its :func:`share`; the whole result on every rank.

    Args:
        work: one result per item, in order; must be fine with an empty sequence.
        items: the same on every rank.
    """
    parts = gather(list(work(items[share(len(items))])))
    return [result for part in parts for result in part]
