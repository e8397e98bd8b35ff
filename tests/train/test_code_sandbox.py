"""The sandbox: it refuses where it cannot keep its promises, and needs no privilege."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from siri_train.rewards import SandboxError, make_verifier
from siri_train.rewards.code import sandbox
from siri_train.rewards.code.isolation import LAYERS
from siri_train.rewards.code.keeper import MODULES
from siri_train.rewards.code.promises import PROMISES


def test_strict_refuses_where_a_promise_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = sandbox.Sandbox(("limits",), ("memory", "processes"))
    monkeypatch.setattr(sandbox, "look", lambda: poor)
    with pytest.raises(SandboxError, match="NOT shut off: network, files, other processes; use a"):
        make_verifier("code")
    assert sandbox.require("best_effort") == ("memory", "processes")


def test_a_process_that_keeps_less_than_promised_is_not_used() -> None:
    asked = [sys.executable, *sandbox.FLAGS, sandbox.SCRIPT, *sandbox.arguments(1.0, (), PROMISES)]
    said = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert json.loads(said.stdout) == {
        "error": "not shut off: files, memory, network, other processes, processes",
        "layers": [],
        "promises": [],
    }


# An ordinary user starts the keeper: Python's modules are read before, as the folder of the
# interpreter may be closed to that user.
AS_ORDINARY_USER = f"""
import importlib, json, os, socket, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from siri_train.rewards.code.keeper import MODULES, serve
for name in MODULES:
    importlib.import_module(name)
ours, theirs = socket.socketpair()
if os.fork() == 0:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    ours.close()
    serve(theirs, set(sys.argv[1].split(",")))
    os._exit(0)
theirs.close()
sys.stdout.buffer.write(ours.makefile("rb").readline())
"""


@pytest.mark.parametrize("without", ["", "namespaces", "landlock"])
def test_an_ordinary_user_has_the_same_promises(without: str) -> None:
    layers = [layer for layer in LAYERS if layer != without]
    said = subprocess.run(
        [sys.executable, "-S", "-c", AS_ORDINARY_USER, ",".join(layers)],
        capture_output=True,
        timeout=60,
    )
    held = json.loads(said.stdout)
    assert "other user" not in held["layers"]
    assert set(held["layers"]) >= {"limits"} | ({"seccomp"} & set(sandbox.look().layers))
    if "seccomp" in held["layers"]:
        assert set(held["promises"]) == set(PROMISES), held


# The promises that docs/code-rewards.md says a layer keeps alone. A machine may lack the layer.
ALONE = {
    ("seccomp",): {"network", "files", "processes", "other processes"},
    ("limits",): {"memory"},
    ("limits", "seccomp"): set(PROMISES),
}


@pytest.mark.parametrize("layers", ALONE, ids=" ".join)
def test_a_layer_alone_keeps_what_the_page_says(layers: tuple[str, ...]) -> None:
    held = sandbox.look(layers)
    if set(layers) <= set(held.layers):
        assert ALONE[layers] <= set(held.promises), str(held)
    else:
        assert not set(layers) <= set(sandbox.look(LAYERS).layers)


def test_what_other_layers_leave_open_is_not_promised() -> None:
    # Without seccomp a service's socket, the mode of a file and the limits of a process are open.
    held = sandbox.look(("limits", "other user", "namespaces", "landlock"))
    assert not {"network", "files", "other processes"} & set(held.promises), str(held)


def test_without_layers_nothing_is_promised() -> None:
    held = sandbox.look(())
    assert held.layers == () and "network" not in held.promises and "files" not in held.promises
    assert "NOT shut off: " in str(held)


@pytest.mark.parametrize(("lost", "right"), [([], True), (["seccomp of before"], False)])
def test_nothing_runs_where_a_layer_is_lost(lost: list[str], right: bool) -> None:
    gold = json.dumps({"setup": "", "names": ["f"], "tests": ["assert f() == 1"]})
    item = {"program": "def f(): return 1", "gold": gold}
    script = (
        "import json\nfrom siri_train.rewards.code import host, keeper\n"
        f"keeper._probe = lambda layers, memory: (['limits', *{lost!r}], [])\n"
        "channel = host._keeper({'limits'})\nchannel.makefile('rb').readline()\n"
        f"print(json.dumps(host._judge(channel, {item!r}, 30.0)))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert json.loads(said.stdout)["right"] is right, said


@pytest.mark.parametrize(("ended", "said"), [(False, b"ran"), (True, b"")])
def test_nothing_runs_whose_parent_has_ended_before_it_began(ended: bool, said: bytes) -> None:
    script = (
        "import os, time\nfrom siri_train.rewards.code import keeper\n"
        "parent = os.getpid()\npid = os.fork()\nif pid == 0:\n"
        f"    while {ended} and os.getppid() == parent: time.sleep(0.01)\n"
        "    def run(place): os.write(place, b'ran')\n"
        "    keeper._child(run, [1], set(), 1 << 40, 30.0, parent)\n"
        f"if not {ended}: os.waitpid(pid, 0)\nos._exit(0)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert ran.stdout == said, ran


def test_modules_are_pythons_own() -> None:
    assert set(name.partition(".")[0] for name in MODULES) <= set(sys.stdlib_module_names)
