"""Peak memory of a piece of CPU code, counted at PyTorch's operators."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class _Live(TorchDispatchMode):
    """Bytes of storages created by operators while the mode is on, and their peak.

    FSDP2 frees and fills gathered weights by resizing their storages: those that were empty when
    the mode began are read again at every operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: dict[int, int] = {}
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
        tensors = [t for t in tensors if t.layout is torch.strided]  # sparse ones have no storage
        storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
        self.empty = [s for s in storages.values() if s.nbytes() == 0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(t.__name__ == "DTensor" for t in types):
            return NotImplemented  # it calls again with the local tensors
        given = {
            t.untyped_storage()._cdata
            for t in tree_flatten((args, kwargs))[0]
            if isinstance(t, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.seen:
                    self._add(storage)
        self.peak = max(self.peak, self.live + sum(s.nbytes() for s in self.empty))
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen[key] = size
        self.live += size
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self.seen.pop(key, 0)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once while ``run`` runs, beyond its inputs.

    What ``run`` returns counts too; scratch inside a single operator does not show.
    """
    gc.collect()
    mode = _Live()
    with mode:
        out = run()
    del out
    return mode.peak


def allocated_peak(run: Callable[[], Any]) -> int:
    """As :func:`peak_bytes`, counted at PyTorch's CPU allocator by its profiler.

    So it sees scratch inside operators too, and what compiled code allocates; not numpy's arrays.
    """
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        out = run()
    del out
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
