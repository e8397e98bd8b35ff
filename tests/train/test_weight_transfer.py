"""Weights on their way to a server: files that vLLM finds, and the calls of a broadcast by NCCL."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from siri_train.model.policy import Policy
from siri_train.rollout.vllm import weight_sync
from siri_train.rollout.vllm.weight_sync import DiskTransfer, NcclTransfer, named_weights


def pushed(policy: Policy, untie: bool = False) -> Any:
    return named_weights(policy.model, torch.float32, untie=untie)


def test_files_hold_every_weight_in_pieces_of_bounded_size(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a tied head under two names, which safetensors refuses to see twice in one file."""
    monkeypatch.setattr(weight_sync, "_SHARD", 20_000)
    transfer = DiskTransfer(tmp_path / "w", lambda folder: (folder / "config.json").touch() or None)
    transfer.write(pushed(policy, untie=True), "weights_000001")
    files = sorted(transfer.latest.glob("*.safetensors"))
    assert len(files) > 2 and (transfer.latest / "config.json").exists()
    assert all(file.stat().st_size < 25_000 for file in files)
    got = {k: v for file in files for k, v in load_file(file).items()}
    assert got.keys() == {name for name, _ in pushed(policy, untie=True)}
    assert all(torch.equal(got[name], value) for name, value in pushed(policy, untie=True))
    transfer.write(pushed(policy), "weights_000002")
    assert transfer.latest.resolve().name == "weights_000002"
    assert (tmp_path / "w" / "weights_000001").exists()  # until the server has the new ones


def test_a_full_disk_does_not_leave_other_ranks_waiting(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(weight_sync, "save_file", full)
    monkeypatch.setattr(weight_sync, "_SHARD", 1000)
    transfer = DiskTransfer(tmp_path / "w")
    stream = ((name, value) for name, value in pushed(policy) if seen.append(name) is None)
    with pytest.raises(OSError, match="No space"):
        transfer.write(stream, "weights_000001")
    assert seen == [name for name, _ in pushed(policy)]
    assert not transfer.latest.exists()


class FakeServer:
    """Remembers calls; the routes that wait for the trainer wait for ``group.sent``."""

    host = "127.0.0.1"

    def __init__(self, group: Any) -> None:
        self.group, self.calls, self.hung = group, [], False
        self.refuse: str | None = None
        self.lock = threading.Lock()

    def get(self, route: str, timeout: float) -> Any:
        assert route == "/get_world_size"
        return {"world_size": 2}

    def post(self, route: str, body: Any, timeout: float) -> Any:
        with self.lock:
            self.calls.append((route, body))
        if route == self.refuse:
            raise RuntimeError("HTTP 500: worker failed")
        event = {"/init_weight_transfer_engine": "joined", "/update_weights": "sent"}.get(route)
        if event and not getattr(self.group, event).wait(60):
            raise RuntimeError(f"the trainer never {event}")
        return None

    def hang_up(self) -> None:
        self.hung = True


class FakeGroup:
    """vLLM's communicator, and the two functions of vLLM that use it."""

    def __init__(self) -> None:
        self.joined, self.sent = threading.Event(), threading.Event()
        self.received: dict[str, torch.Tensor] = {}
        self.info: dict[str, Any] = {}
        self.destroyed = 0

    def trainer_init(self, info: dict[str, Any]) -> FakeGroup:
        self.info = info
        self.joined.set()
        return self

    def producer(self, *, iterator: Any, group: Any, src: int, post_iter_func: Any) -> None:
        assert group is self and src == 0
        for item in iterator:
            self.received[item[0]] = post_iter_func(item)
        self.sent.set()

    def destroy(self) -> None:
        self.destroyed += 1


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> FakeGroup:
    made = FakeGroup()
    parent = "vllm.distributed.weight_transfer"
    modules = {
        "nccl_common": {"trainer_init": made.trainer_init},
        "packed_tensor": {"packed_nccl_broadcast_producer": made.producer},
    }
    for name in ("vllm", "vllm.distributed", parent):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, members in modules.items():
        module = types.ModuleType(f"{parent}.{name}")
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, f"{parent}.{name}", module)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return made


def test_a_broadcast_in_its_order(group: FakeGroup, policy: Policy) -> None:
    server, transfer = FakeServer(group), NcclTransfer(torch.device("cpu"))
    transfer.describe(pushed(policy))
    transfer.send(server, pushed(policy), "v1")
    routes = [route for route, _ in server.calls]
    assert routes == [
        "/init_weight_transfer_engine", "/pause?mode=abort", "/update_weight_version",
        "/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache",
        "/update_weight_version", "/resume",
    ]  # fmt: skip
    bodies = dict(server.calls)
    info = bodies["/init_weight_transfer_engine"]["init_info"]
    assert info == group.info and info["master_address"] == "127.0.0.1"
    assert (info["world_size"], info["rank_offset"], info["packed"]) == (3, 1, True)
    told = bodies["/update_weights"]["update_info"]
    assert list(group.received) == told["names"] == [name for name, _ in pushed(policy)]
    assert [list(v.shape) for v in group.received.values()] == told["shapes"]
    assert set(told["dtype_names"]) == {"float32"}
    assert all(torch.equal(group.received[name], value) for name, value in pushed(policy))
    assert bodies["/update_weight_version"] == {"new_version": "v1"}
    server.calls.clear()
    transfer.send(server, pushed(policy), "v2")
    assert "/init_weight_transfer_engine" not in dict(server.calls)  # the group stays
    transfer.connect(server)  # a restarted server has other workers
    assert group.destroyed == 1 and "/init_weight_transfer_engine" in dict(server.calls)
    transfer.close()
    assert group.destroyed == 2


@pytest.mark.parametrize("route", ["/init_weight_transfer_engine", "/update_weights"])
def test_a_refused_broadcast_raises_instead_of_waiting(
    group: FakeGroup, policy: Policy, route: str
) -> None:
    server, transfer = FakeServer(group), NcclTransfer(torch.device("cpu"))
    transfer.describe(pushed(policy))
    server.refuse = route
    seen = []
    stream = ((name, value) for name, value in pushed(policy) if seen.append(name) is None)
    with pytest.raises(RuntimeError, match="worker failed"):
        transfer.send(server, stream, "v1")
    assert server.hung and not group.received
    assert seen == [name for name, _ in pushed(policy)]  # other ranks gather with it
    versions = [b["new_version"] for r, b in server.calls if r == "/update_weight_version"]
    assert "v1" not in versions
