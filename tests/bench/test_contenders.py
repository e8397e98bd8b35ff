"""Every contender that can run here is right, the others say why not; a new peer is one file."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from bench import peers
from bench.device import Cpu
from bench.gpu import plan
from bench.kernels import Plan
from bench.measure import measure
from bench.peers import entries, found, gpu_parts, packages, registered
from bench.peers.base import Entry, Missing, Where
from bench.peers.pytorch import logprobs
from bench.reports.tables import row_table
from bench.rows.elementwise import AdvantageCase, LossCase
from bench.rows.head import HeadCase

# Left out: Inductor, which takes half a minute of a loaded core (`python -m bench` runs it), and
# unsloth-zoo, whose import replaces triton.jit in the process.
LEFT_OUT = {"torch.compile", "cut-cross-entropy, torch.compile", "Liger", "unsloth-zoo"}
HERE = Where(torch.device("cpu"), triton=False, without=frozenset(LEFT_OUT))
ROOT = Path(__file__).parents[2]


def test_head_contenders_are_right_or_named():
    hidden, weight = torch.randn(9, 16), torch.randn(50, 16)
    targets = torch.randint(50, (9,))
    want = logprobs(hidden.double(), weight.double(), targets)
    here, missing = found(entries("head"), HERE)
    assert {"ours", "ours, tail=0", "eager", "Liger scaled CE"} <= set(here)
    for name, contender in here.items():
        got = contender.call(hidden, weight, targets)
        assert torch.allclose(got.double(), want, atol=1e-5), name
        assert contender.settings
    assert all(missing.values()) and {"verl, Triton", "eager, chunks"} <= set(missing)
    scalar, _ = found(entries("scalar"), HERE)
    for name, contender in scalar.items():
        got = contender.call(hidden, weight, targets).sum()
        assert torch.allclose(got.double(), want.sum(), rtol=1e-5), name


def test_missing_ones_carry_the_import_error():
    def absent(where):
        raise ImportError("No module named 'nothing'")

    def unsuited(where):
        raise Missing("needs a GPU")

    here, missing = found({"a": Entry("a", absent), "b": Entry("b", unsuited)}, HERE)
    assert here == {}
    assert missing == {"a": "ImportError: No module named 'nothing'", "b": "needs a GPU"}


@pytest.mark.parametrize("case", [LossCase(600), LossCase(500, ragged=True), AdvantageCase(6, 4)])
@pytest.mark.parametrize("bare", [False, True])
def test_losses_and_advantages_are_right_or_named(case, bare):
    given = entries(case.group, bare=bare)
    work = case.build(HERE, Cpu(), None, given)
    assert {"ours", "eager"} <= set(work.steps)
    for name in work.steps:
        _, wrong = work.check(name)
        assert wrong is None, f"{name}: {wrong}"
    if bare:
        assert {"TRL, restated", "verl, restated"} <= set(work.steps)
    elif os.environ.get("SIRI_PEERS"):
        assert {"TRL", "verl"} <= set(work.steps), work.missing


def test_a_loop_over_samples_is_not_measured_with_many():
    slow = {"NeMo": entries("advantages")["NeMo"]}
    work = AdvantageCase(2**12).build(HERE, Cpu(), None, slow)
    assert not work.steps and "up to 32 768" in work.missing["NeMo"]


def test_lengths():
    for case in (LossCase(2**15), LossCase(2**15, ragged=True), LossCase(700, ragged=True)):
        lengths = case.lengths()
        assert int(lengths.sum()) == case.tokens and int(lengths.min()) > 0
    assert LossCase(2**15, ragged=True).lengths().float().std() > 100


@pytest.mark.parametrize(
    "case",
    [
        HeadCase(40, 16, 300),
        HeadCase(40, 16, 300, mode="forward"),
        HeadCase(40, 16, 300, mode="frozen", masked=0.5),
        HeadCase(40, 16, 300, softmax="uniform", masked=0.3),
        HeadCase(40, 16, 300, group="scalar"),
    ],
    ids=lambda case: case.name,
)
def test_head_cases(case):
    work = case.build(HERE, Cpu(), None)
    parts = {"forward": 1, "frozen": 2, "both": 3}[case.mode]
    for name, step in work.steps.items():
        errors, wrong = work.check(name)
        assert wrong is None, f"{name}: {wrong}"
        results = step()
        assert len(errors) == len(results) == parts
        assert work.check_result(name, results) is None
    unmasked = round(work.flops / (2 * parts * 16 * 300))
    assert (unmasked < 40) == bool(case.masked)


DUMMY = """
from bench.peers.base import Contender, Entry, GpuPart, Peer


def logprob(where):
    from {module} import eager

    right = eager(where).call
    return Contender(lambda h, w, y: {factor} * right(h, w, y), "a dummy")


PEER = Peer(
    package="pytest", version="1.0",
    entries=(Entry("dummy", logprob, ("head", "scalar"), ("few", "sweep")),),
    parts=(GpuPart("dummy", ("dummy",), "bench.peers.{name}", ("pytest",)),),
)
"""


@pytest.fixture
def dummy(tmp_path, monkeypatch):
    """Adds a peer as CONTRIBUTING says: a file in the folder of the peers, and nothing else."""

    def add(name: str, factor: float) -> None:
        text = DUMMY.format(module="bench.peers.pytorch", factor=factor, name=name)
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(peers, "__path__", [*peers.__path__, str(tmp_path)])

    before = set(sys.modules)
    yield add
    for name in set(sys.modules) - before:
        if name.startswith("bench.peers."):
            del sys.modules[name]


def test_a_new_peer_is_one_file(dummy):
    dummy("a_dummy_peer", 1.0)
    cases = [c for c in Plan(kind="cuda").cases() if c.group in ("head", "scalar")]
    assert cases and all("dummy" in case.contenders() for case in cases)
    assert "dummy" not in next(c for c in Plan().cases() if c.group == "growth").contenders()
    labels = ("ours", "eager", "dummy")
    work = HeadCase(20, 16, 300, labels=labels).build(HERE, Cpu(), None)
    assert list(work.steps) == list(labels) and work.settings["dummy"] == "a dummy"
    limits = {"product_flop_per_s": 1e9, "copy_bytes_per_s": 1e9}
    row = measure(work, Cpu(), limits, seconds=0.0, least=1)
    assert any(line.startswith("| dummy | ") for line in row_table(row, "process"))
    assert "pytest" in packages() and gpu_parts()["dummy"].labels == ("dummy",)
    part = next(part for part in plan.parts() if part.name == "peer-dummy")
    assert (part.file, part.option, part.needs) == ("peers", "dummy", ("pytest",))
    assert plan.remedy("pytest").endswith(": bring the wheel of pytest==1.0 in .whl/")


def test_a_wrong_contender_is_seen(dummy):
    dummy("a_wrong_peer", 1.1)
    work = HeadCase(40, 16, 300, labels=("eager", "dummy")).build(HERE, Cpu(), None)
    assert "from float64" in work.check("dummy")[1]
    wrong = [1.5 * x for x in work.steps["eager"]()]
    assert "at full size logprobs is 5.0e-01" in work.check_result("eager", wrong)


def test_versions_are_those_that_are_installed():
    """Versions in the registry equal those in the files that install the peers."""
    text = "".join((ROOT / name).read_text() for name in ("scripts/peers.txt", "constraints.txt"))
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", text, re.M))
    for peer in registered():
        if peer.package:
            assert peer.version == pinned[peer.package], peer.package
            labels = {entry.label for entry in peer.entries}
            for part in peer.parts:
                assert set(part.labels) <= labels and part.needs
                top = part.imports.partition(".")[0]
                assert top in part.needs


def test_labels_of_a_table_are_unique():
    for table in ("head", "scalar", "loss", "advantages"):
        labels = [e.label for peer in registered() for e in peer.entries if table in e.tables]
        assert len(labels) == len(set(labels)), table
