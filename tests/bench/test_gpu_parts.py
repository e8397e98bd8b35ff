"""The parts of a GPU run at the sizes of a rehearsal, and the GPU's calls on a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.device import Cpu, spans
from bench.gpu import context as surroundings
from bench.gpu import oracle, plan
from bench.gpu.context import Context
from bench.gpu.head_calls import unfused
from bench.gpu.oracle import Options
from bench.gpu.parts import fused, head, losses, rates, repeats, sanitizer, values
from bench.gpu.parts import tests as part_tests
from bench.gpu.records import Records, read
from bench.peers import entries
from bench.peers.bare_import import make_importable
from bench.peers.base import Where
from bench.rows.elementwise import LossCase
from siri_kernels import linear_logprob

ROOT = Path(__file__).parents[2]


@pytest.fixture
def context(tmp_path, monkeypatch):
    # Peaks on a CPU collect garbage first: seconds in a process with many tests' objects.
    monkeypatch.setattr(Cpu, "peak", lambda self, step: 0)
    monkeypatch.setattr(Cpu, "free", lambda self: None)
    records = Records(tmp_path / "first.jsonl", {"call": "first", "part": "x"})
    return Context("x", records, 60.0, rehearse=True)


def figures(tmp_path: Path) -> dict[str, float]:
    return {r["key"]: r["value"] for r in read(tmp_path) if r["what"] == "number"}


def test_rates_and_losses_give_their_figures(context, tmp_path):
    rates.run(context)
    losses.run(context)
    found = figures(tmp_path)
    assert {"rates.copy", "rates.product_bf16.64x64", "rates.best_tile.128"} <= set(found)
    assert {"losses.loss.ragged.us.ours.300", "losses.loss.ragged.gain.TRL, restated.300"} <= set(
        found
    )
    assert found["losses.advantages.us.verl, restated.32"] > 0
    assert not context.failures
    rows = [r for r in read(tmp_path) if r["what"] == "row"]
    assert all("wrong" not in e for r in rows for e in r["result"]["contenders"].values())


def test_head_repeats_and_values_give_theirs(context, tmp_path):
    head.main_case(context, (5, 32, 260))
    repeats.repeated(context, (5, 32, 8200), 1e-2, "tiny")
    values.compare(context, values.Case(6, 32, 300, everything=True))
    assert not context.failures
    found = figures(tmp_path)
    assert found["head.both/product_fp32.32"] > 0 and found["repeats.differing.tiny"] == 0
    assert any(r.get("lists_seen") for r in read(tmp_path)), "the lists were not compared"
    (check,) = [r for r in read(tmp_path) if "dense" in str(r.get("name"))]
    assert check["ok"] and {"0", "299"} <= set(check["ids"])
    assert set(check["errors"]) == {"logprobs", "entropy", "d_hidden", "d_weight", "d_bias"}


def test_a_switch_of_the_library_is_put_back():
    fused = pytest.importorskip("siri_kernels.linear_logprob.triton.fused")
    before = fused.ENABLED
    with pytest.raises(KeyError), unfused():
        assert fused.ENABLED is False
        raise KeyError
    assert fused.ENABLED is before


def test_a_wrong_value_is_seen_and_its_place_named(context, tmp_path, monkeypatch):
    right = values.ours

    def wrong(*arguments):
        got, facts = right(*arguments)
        got["d_weight"][299] += 1  # one id of the last block
        return got, facts

    monkeypatch.setattr(values, "ours", wrong)
    values.compare(context, values.Case(6, 32, 300))
    assert context.failures
    for check in (r for r in read(tmp_path) if r["what"] == "check"):
        assert not check["ok"] and check["wrong"] == ["d_weight"]
        assert check["blocks_of_ids"][-1] > 10 * max(check["blocks_of_ids"][:-1])


def test_a_difference_between_repeats_is_seen(context, tmp_path, monkeypatch):
    calls = iter(range(100))

    def shaky(hidden, *arguments, **options):
        out = linear_logprob(hidden, *arguments, **options)
        return out._replace(logprobs=out.logprobs + 1e-3 * (next(calls) == 2))

    monkeypatch.setattr(repeats, "linear_logprob", shaky)
    repeats.repeated(context, (5, 32, 300), 1e-2, "tiny")
    (check,) = [r for r in read(tmp_path) if r["what"] == "check"]
    assert not check["ok"] and check["differing"]["results"] == 1
    assert check["examples"][0]["count"] == 5


def test_the_oracle_is_autograd_in_float64():
    torch.manual_seed(0)
    h, w, y = torch.randn(7, 5), torch.randn(11, 5), torch.randint(11, (7,))
    y[2] = -100
    up = (torch.randn(7), torch.randn(7))
    options = Options(torch.randn(11), torch.rand(7) + 0.5, softcap=3.0)
    got = oracle.head(h, w, y, up, options)
    x, v = h.double().requires_grad_(), w.double().requires_grad_()
    arguments = options.arguments() | {"bias": options.bias.double()}
    out = linear_logprob(x, v, y, backend="reference", **arguments)
    want = torch.autograd.grad(tuple(out), (x, v), [u.double() for u in up])
    torch.testing.assert_close(got["logprobs"], out.logprobs.detach())
    torch.testing.assert_close(got["entropy"], out.entropy.detach())
    torch.testing.assert_close(got["d_hidden"], want[0])
    torch.testing.assert_close(got["d_weight"], want[1])


def test_a_step_that_raises_is_named_and_the_next_one_runs(context, tmp_path):
    assert context.attempt("first", lambda: 1 / 0) is None
    assert context.attempt("second", lambda: 5) == 5
    (line,) = [r for r in read(tmp_path) if r["what"] == "failed"]
    assert line["step"] == "first" and "ZeroDivisionError" in line["why"]
    assert context.failures == ["first"]


def test_a_gpu_that_is_lost_ends_the_part(context):
    class Lost:
        def recover(self):
            raise SystemExit("the GPU is lost to this process: illegal access")

    context._device = Lost()
    with pytest.raises(SystemExit, match="illegal access"):
        context.attempt("a kernel", lambda: 1 / 0)


def test_what_time_runs_out_for_is_named(tmp_path):
    records = Records(tmp_path / "first.jsonl", {"part": "x"})
    context = Context("x", records, seconds=5.0)
    assert context.in_time("short", 1) and not context.in_time("long", 100)
    assert [r["step"] for r in read(tmp_path)] == ["long"]


def test_an_interpreter_that_fails_is_not_used(monkeypatch):
    found = {"triton": "3.6.0", "numpy": "2.5.2"}
    monkeypatch.setattr(surroundings.importlib.metadata, "version", found.__getitem__)
    assert not surroundings.interpreter_works()
    found["numpy"] = "2.3.9"
    assert surroundings.interpreter_works()
    found |= {"triton": "3.7.1+git", "numpy": "2.5.2"}
    assert surroundings.interpreter_works()


def test_busy_time_counts_kernels_that_overlap_once():
    events = [("a", 0.0, 10.0), ("b", 5.0, 12.0), ("a", 20.0, 30.0), ("c", 21.0, 22.0)]
    got = spans(events)
    assert got["launches"] == 4 and got["busy_ms"] == pytest.approx(0.022)
    assert got["span_ms"] == pytest.approx(0.030)
    assert got["kernels"][0] == {"name": "a", "count": 2, "ms": pytest.approx(0.020)}
    assert spans([]) == {"kernels": [], "launches": 0, "busy_ms": 0.0, "span_ms": 0.0}


def test_a_module_of_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    package = tmp_path / "heavy_peer" / "kernels"
    package.mkdir(parents=True)
    (tmp_path / "heavy_peer" / "__init__.py").write_text("import a_package_nobody_has\n")
    (package / "__init__.py").write_text("import another_one_nobody_has\n")
    (package / "fold.py").write_text("ANSWER = 42\n")
    (package / "broken.py").write_text("import a_third_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    try:
        assert make_importable("heavy_peer.kernels.fold") == ""
        assert sys.modules["heavy_peer.kernels.fold"].ANSWER == 42
        assert "a_third_nobody_has" in make_importable("heavy_peer.kernels.broken")
        assert make_importable("a_peer_nobody_has.x") == "not installed as a package"
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


@pytest.mark.parametrize("name", ["TRL", "verl"])
def test_restated_losses_are_their_trainers(name):
    """Where the trainer is installed (``make test-peers``)."""
    pytest.importorskip(name.lower())
    where = Where(torch.device("cpu"), triton=False)
    given = {name: entries("loss")[name]} | entries("loss", bare=True)
    work = LossCase(700, ragged=True).build(where, Cpu(), None, given)
    real, mine = work.steps[name](), work.steps[f"{name}, restated"]()
    for a, b in zip(real, mine, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.costly
def test_tests_write_a_line_for_each_failure(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='why not')\n"
        "def test_skipped(): pass\n"
    )
    out = tmp_path / "out"
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "GPU_RECORDS": str(out / "first.jsonl"),
        "GPU_EVERY": '{"call": "first", "part": "tests"}',
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu.pytest_records",
         "-p", "no:cacheprovider", str(tmp_path)],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found = list(read(out))
    (failed,) = [r for r in found if r["what"] == "test_failed"]
    assert failed["test"].endswith("test_x.py::test_bad") and "1 == 2" in failed["message"]
    assert found[-1]["what"] == "tests" and found[-1]["part"] == "tests"
    assert (found[-1]["passed"], found[-1]["failed"], found[-1]["skipped"]) == (1, 1, 1)
    assert found[-1]["skipped_because"]


def test_the_place_of_the_fused_kernel(context, tmp_path, monkeypatch):
    module = ModuleType(plan.FUSED)
    monkeypatch.setitem(sys.modules, plan.FUSED, module)
    fused.run(context)  # a module that is no kernel yet
    module.ENABLED = False  # type: ignore[attr-defined]
    fused.run(context)
    missing, *rest = [r for r in read(tmp_path) if r["what"] != "number"]
    assert missing["what"] == "missing" and "no switch ENABLED" in missing["why"]
    assert [r["ok"] for r in rest if r["what"] == "check"] == [True] * 3
    found = figures(tmp_path)
    assert found["fused.both fused/product_bf16.32"] > 0 and found["fused.ms.both apart.32"] > 0


def test_what_the_sanitizer_says(context, tmp_path, monkeypatch):
    context.rehearse = False
    clean = "ran head, lists\n========= ERROR SUMMARY: 0 errors\n"
    racy = "========= Race reported between Write access at fold_kernel+0x10\n" + clean.replace(
        "ERROR SUMMARY: 0", "RACECHECK SUMMARY: 2"
    )
    given = iter([(0, clean), (0, racy)])

    def tool(command, **options):
        assert options["env"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" and options["timeout"] >= 5
        code, text = next(given)
        return subprocess.CompletedProcess(command, code, text, "")

    monkeypatch.setattr(sanitizer.shutil, "which", lambda name, path: "/bin/compute-sanitizer")
    monkeypatch.setattr(sanitizer.subprocess, "run", tool)
    sanitizer.run(context)
    memory, race = [r for r in read(tmp_path) if r["what"] == "check"]
    assert memory["ok"] and memory["calls"] == ["head, lists"]
    assert not race["ok"] and race["errors_found"] == 2 and race["kernels"] == ["fold_kernel"]
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name, path: None)
    sanitizer.run(context)
    assert list(read(tmp_path))[-1]["what"] == "missing"


def test_the_second_call_runs_what_failed_in_the_first(context, monkeypatch):
    asked = []
    monkeypatch.setattr(
        part_tests, "pytest_run", lambda c, name, paths, kept=0: asked.append(paths)
    )
    part_tests.run(context)
    assert asked == list(part_tests.REHEARSAL)
    failed = ["tests/kernels/test_varlen.py::test_cut", "tests/gone.py::test_x"]
    context.records.every["call"] = "second"
    context.before = [{"what": "test_failed", "call": "first", "test": name} for name in failed]
    part_tests.run(context)
    assert asked[1:] == [(failed[0],)], "only what is still there"


def test_a_run_of_tests_that_cannot_begin_or_does_not_end(context, tmp_path, monkeypatch):
    class Process:
        code: int | None = part_tests.USAGE

        def __init__(self, command, **options):
            self.command, self.killed = command, False

        def wait(self, timeout=None):
            if self.code is None and not self.killed:
                raise subprocess.TimeoutExpired(self.command, timeout)
            return self.code

        def kill(self):
            self.killed = True

    monkeypatch.setattr(part_tests.subprocess, "Popen", Process)
    part_tests.pytest_run(context, "tests/train/test_packing.py", ("x",))
    assert not context.failures and list(read(tmp_path))[-1]["what"] == "left_out"
    part_tests.pytest_run(context, "tests/kernels", ("tests/kernels",))
    monkeypatch.setattr(Process, "code", None)
    part_tests.pytest_run(context, "again", ("tests/kernels",))
    assert context.failures == ["tests tests/kernels", "tests again"]
    assert list(read(tmp_path))[-1]["why"] == "not finished within the limit"


def test_tests_of_kernels_come_first():
    from bench.gpu.pytest_records import rank

    names = ["test_aot.py::a", "test_errors.py::b", "test_policy_loss_triton.py::c"]
    assert [rank(name) for name in names] == [2, 1, 0]
    assert rank("tests/kernels/test_linear_logprob_sharded.py::triton") == 2


@pytest.mark.parametrize("part", [part.name for part in plan.PARTS])
@pytest.mark.slow
def test_each_part_rehearsed(part, tmp_path):
    done = subprocess.run(
        ["sh", "scripts/gpu_run.sh", "first", str(tmp_path), "--rehearse", "--only", part,
         "--limit", f"{part}=800"],
        cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    (end,) = [r for r in read(tmp_path) if r["what"] == "end"]
    assert end["status"] in ("done", "missing"), done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.slow
def test_the_training_step_needs_nothing_of_the_trainer_s(tmp_path):
    absent = [f"--fault=missing:{name}" for name in ("pydantic", "math_verify", "liger_kernel")]
    done = subprocess.run(
        ["sh", "scripts/gpu_run.sh", "first", str(tmp_path), "--rehearse", "--only=step",
         "--limit=step=800", *absent],
        cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures(tmp_path)["step.tokens_per_s.64"] > 0
