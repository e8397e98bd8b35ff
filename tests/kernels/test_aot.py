"""The ahead-of-time compilation records and counts right, on a machine without a GPU."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 compiles nothing", allow_module_level=True)

from triton.runtime.jit import JITFunction

from siri_kernels import group_advantages
from siri_kernels.aot import __main__ as command
from siri_kernels.aot import calls, machine_code, variants
from siri_kernels.aot.compiler import report
from siri_kernels.aot.limits import LIMITS, Limit, faults_of
from siri_kernels.aot.machine_code import Counts
from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.record import FakeGPU, Recorder, Variant, specialised
from siri_kernels.aot.report import Report
from siri_kernels.aot.variants import recorded
from siri_kernels.group_advantages import triton_kernels as kernels

SM_90 = PARTS[1]
CUDA = torch.cuda.is_available()


def some_call(total=65536, size=8, dtype=torch.float32, offset=0, **options):
    def make(gpu):
        rewards = torch.empty(total + offset, dtype=dtype, device="cuda")
        rewards = torch.narrow(rewards, 0, offset, total)
        group_advantages(rewards, size, **options)

    return calls.Call("some call", make)


def real_launches(make):
    """(kernel, arguments, constants) of the launches that ``make`` would do."""
    launches = []

    def run(kernel, *args, grid=None, warmup=False, **kwargs):
        launches.append((kernel, args, kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        make()
    return launches


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("total", [65536, 65535 // 7 * 7])
def test_what_is_recorded_is_what_the_jit_compiles_for_real_tensors(part, offset, total):
    """Real, aligned tensors through the real ``JITFunction.run``, against fake ones."""
    from siri_kernels.group_advantages import triton as launch

    size = 8 if total % 8 == 0 else 7
    # PyTorch's CPU tensors are aligned to 64 bytes, a GPU's to 512: the same for Triton.
    rewards = torch.zeros(total + offset)[offset:]
    launches = real_launches(
        lambda: launch.group_advantages(rewards, size, "mean", "batch_std", 1e-6, 1, "zero", None)
    )
    want = [specialised(kernel, part, args, kwargs) for kernel, args, kwargs in launches]
    got = recorded([part], [some_call(total, size, offset=offset, scale="batch_std")])
    assert len(want) == 2 and {v.key for v in want} == set(got)
    for variant in want:
        assert got[variant.key].signature == variant.signature
        assert got[variant.key].constants == variant.constants
        assert got[variant.key].attributes == variant.attributes
        assert vars(got[variant.key].options) == vars(variant.options)


def test_divisibility_ones_and_alignment_make_other_variants():
    tables = [
        recorded([SM_90], [call])
        for call in (
            some_call(),
            some_call(),
            some_call(offset=1),
            some_call(dtype=torch.bfloat16),
            some_call(size=16),
        )
    ]
    keys = [tuple(table) for table in tables]
    assert keys[0] == keys[1] and len(set(keys)) == 4


def test_every_kernel_is_recorded():
    usual = [c for c in variants.all_calls() if not c.name.startswith("linear_logprob(size=QWEN")]
    few = usual[:20] + usual[-40:]
    few += [c for c in usual if c.name.startswith(("group", "selective"))][::3]
    names = {variant.name for variant in recorded([SM_90], few).values()}
    assert names >= {"online_softmax_kernel", "gradient_kernel", "group_kernel", "scan_kernel"}
    assert names >= {"batch_kernel", "sequence_kernel", "loss_kernel", "reduce_kernel"}


def test_nothing_is_launched_and_everything_is_put_back():
    run, apply = JITFunction.run, torch.autograd.Function.apply
    recorder, gpu = Recorder([SM_90]), FakeGPU()
    with gpu.active(), recorder.recording("one"):
        some_call().make(gpu)
    assert recorder.launches == 1 and len(recorder.variants) == 1
    assert JITFunction.run is run and torch.autograd.Function.apply == apply
    x = torch.ones(2, requires_grad=True)
    (x[:1] * 2).sum().backward()
    assert x.grad.tolist() == [2, 0]


def test_every_pair_of_options_occurs():
    options = {"a": (1, 2, 3), "b": "xy", "c": (True, False), "d": (0, 1, 2, 3)}
    rows = calls.pairwise(options)
    assert len(rows) < 20
    for one in options:
        for two in options:
            if one < two:
                pairs = {(row[one], row[two]) for row in rows}
                assert len(pairs) == len(options[one]) * len(options[two])


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_kernel_compiles(part):
    (variant,) = recorded([part], [some_call()]).values()
    made = report(variant)
    assert 0 < made.registers <= 512 and 0 <= made.shared <= part.shared
    assert made.stack == 0 and made.counts.tensor_core == 0 and not faults_of(made)
    assert 0 < made.counts.path <= made.counts.total
    assert made.counts.loads and made.counts.stores and "group_kernel" in made.line()


SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/               @P0 EXIT ;
.L_x_0:
        /*0030*/                   FADD R4, R4, R5 ;
        /*0040*/                   LDG.E R6, desc[UR4][R2.64] ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/               @P2 BRA `(.L_x_2) ;
        /*0070*/                   MUFU.EX2 R4, R4 ;
        /*0080*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
.L_x_2:
        /*0090*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*00a0*/                   EXIT ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3);
"""


def test_the_common_path_is_the_shortest_that_stores():
    counts = machine_code.nvidia(SASS)
    assert counts == Counts(12, 9, (3,), (16, 4), (8, 2), 0)


def test_amd_code_is_counted():
    text = """
kernel:
\ts_load_dwordx2 s[0:1], s[2:3], 0x0
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\ts_cbranch_scc1 .LBB0_2
; %bb.1:
\tv_add_f32 v0, v0, v1
\tbuffer_store_short v0, v4, s[0:3], 0 offen
.LBB0_2:
\tglobal_store_dword v4, v0, s[0:1]
\ts_endpgm
\t.section .rodata
"""
    assert machine_code.amd(text) == Counts(7, 5, (), (16,), (4, 2), 0)


def result(**changes):
    counts = Counts(100, 80, (), (16, 4), (8,), 0)
    given = (
        "online_softmax_kernel",
        {"TOP_ENTRIES": True},
        SM_90,
        frozenset(["stride"]),
        32,
        0,
        1024,
        counts,
    )
    return Report(*given, 20.0, ())._replace(**changes)


def test_faults_are_named_with_their_number_and_limit(monkeypatch):
    limit = Limit(
        "online_softmax_kernel",
        {"TOP_ENTRIES": True},
        ("sm_90",),
        64,
        80,
        0,
        25,
        16,
        8,
        ("stride",),
    )
    monkeypatch.setattr("siri_kernels.aot.limits.LIMITS", (limit,))
    assert faults_of(result()) == []
    narrow = Counts(100, 81, (), (4, 4), (4,), 0)
    bad = result(registers=65, stack=8, shared=SM_90.shared + 1, per_element=25.5, counts=narrow)
    assert faults_of(bad._replace(hazards=("a hazard",))) == [
        "online_softmax_kernel: 8 bytes of stack a thread, limit 0",
        f"online_softmax_kernel: {SM_90.shared + 1} bytes of shared memory, limit {SM_90.shared}",
        "online_softmax_kernel: 65 registers, limit 64",
        "online_softmax_kernel: 81 instructions on the common path, limit 80",
        "online_softmax_kernel: 25.5 instructions an element, limit 25",
        "online_softmax_kernel: loads of 4 bytes at most, limit 16",
        "online_softmax_kernel: stores of 4 bytes at most, limit 8",
        "a hazard",
    ]
    # Of other constants, another part, a row that is no multiple of 16.
    good = bad._replace(stack=0, shared=0)
    assert faults_of(good._replace(constants={"TOP_ENTRIES": False})) == []
    assert faults_of(good._replace(part=PARTS[0])) == []
    assert faults_of(good._replace(aligned=frozenset())) == []
    allowed = limit._replace(
        stack=8, registers=None, path=None, per_element=None, load=None
    )._replace(store=None)
    monkeypatch.setattr("siri_kernels.aot.limits.LIMITS", (allowed,))
    assert faults_of(bad._replace(shared=0)) == []


def test_limits_are_of_kernels_that_exist():
    from siri_kernels.linear_logprob.screen_triton import (
        join_kernel,
        product_kernels,
        row_kernels,
        weight_kernels,
    )
    from siri_kernels.linear_logprob.triton import fused_join, sparse_kernels, token_kernels
    from siri_kernels.linear_logprob.triton import kernels as linear
    from siri_kernels.policy_loss import triton_kernels as policy

    for limit in LIMITS:
        modules = (linear, sparse_kernels, token_kernels, fused_join, policy, kernels)
        modules += (join_kernel, product_kernels, row_kernels, weight_kernels)
        (kernel,) = (getattr(m, limit.kernel) for m in modules if hasattr(m, limit.kernel))
        assert set(limit.constants) | set(limit.aligned) <= set(kernel.arg_names)
        assert set(limit.parts) <= {part.name for part in PARTS}


@pytest.mark.costly
def test_check_says_which_variant_has_a_fault(monkeypatch, capsys):
    monkeypatch.setattr(variants, "all_calls", lambda: [some_call()])
    part = ["--part", "sm_90", "--jobs", "1"]
    assert command.main(["--check", *part]) == 0
    limit = Limit("group_kernel", {}, registers=1)
    monkeypatch.setattr("siri_kernels.aot.limits.LIMITS", (limit,))
    assert command.main(["--check", *part, "--kernel", "group"]) == 1
    assert "FAULT: group_kernel: " in capsys.readouterr().out
    assert command.main(part) == 0
    assert command.main(["--check", *part, "--kernel", "no such"]) == 0


@pytest.mark.skipif(not CUDA, reason="the JIT compiles on a GPU only")
def test_a_gpu_compiles_nothing_that_was_not_recorded(monkeypatch):
    """Real calls at the recorded sizes: each variant the JIT compiles is among the recorded."""
    major, minor = torch.cuda.get_device_capability()
    part = SM_90._replace(name="here", arch=10 * major + minor)
    names = ("group_advantages(", "policy_loss(", "selective_logprob(size=Size(tokens=1003")
    chosen = [c for c in variants.all_calls() if c.name.startswith(names)][::5]
    known = recorded([part], chosen)
    compiled, real = [], JITFunction._do_compile

    def do_compile(kernel, key, signature, device, constants, options, attributes, warmup):
        variant = Variant(kernel, part, signature, constants, attributes, options, "")
        compiled.append(variant.key)
        return real(kernel, key, signature, device, constants, options, attributes, warmup)

    class OnGPU(FakeGPU):
        def backward(self, keep=lambda index: True):
            pass  # selective_logprob's needs a graph, which these calls do not keep

    monkeypatch.setattr(JITFunction, "_do_compile", do_compile)
    monkeypatch.setattr(calls, "tensor", zeros)
    for variant in known.values():
        variant.kernel.device_caches.clear()  # compiled by another test
    for call in chosen:
        call.make(OnGPU())
    assert compiled and set(compiled) <= set(known)


def zeros(*shape, dtype=torch.float32, grad=False):
    """As ``calls.tensor``, with values that every call takes (one sequence holds all tokens)."""
    out = torch.zeros(shape, dtype=dtype, device="cuda")
    if dtype == torch.int32:
        out[-1] = 262144
    if shape == ():
        out += 1
    return out.requires_grad_(grad)
