"""The costs of each operation, in numbers that do not depend on the machine's load, must not grow.

Operators started, floating-point operations of matrix products, allocations, their bytes and peak
are compared with ``counts.json``; of the Triton paths the products and the kernels launched,
counted in Triton's interpreter at a small size. After a change that means to raise one, or lowers
it, write them anew and commit the file with the reason:

    python -m tests.kernels.test_counts
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.memory import peak_bytes
from siri_kernels import group_advantages, linear_logprob, policy_loss, selective_logprob
from siri_kernels.linear_logprob.portable import products

from . import interpreter  # noqa: F401 - makes the interpreter cheaper
from .helpers import leaves
from .test_linear_logprob_sparse import zipf_head

FILE = Path(__file__).with_name("counts.json")
TRITON = "--triton" in sys.argv and __name__ == "__main__"
BACKEND = "triton" if TRITON else None
# The interpreter runs a millisecond of Python for each row of a tile.
TOKENS, WIDTH, VOCABULARY = (18, 32, 280) if TRITON else (512, 64, 12_000)
LOSS_TOKENS, REWARDS = (2**12, 2**8) if TRITON else (2**17, 2**16)
# Views and questions about a tensor start nothing on a device.
FREE = {"view", "detach", "slice", "select", "t", "transpose", "expand", "unsqueeze", "squeeze"}
FREE |= {"alias", "as_strided", "split", "_unsafe_view", "unbind", "permute", "is_same_size"}


class Operators(TorchDispatchMode):
    """Counts the operators that compute something, the bytes of what they return anew, and the
    floating-point operations of matrix products (in place too, which FlopCounterMode leaves out).
    """

    def __init__(self):
        super().__init__()
        self.operators = self.bytes = self.flops = self.allocations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        if func.overloadpacket.__name__ not in FREE:
            self.operators += 1
            results = out if isinstance(out, (tuple, list)) else [out]
            given = {a.data_ptr() for a in args if isinstance(a, torch.Tensor)}
            new = [
                r.nbytes
                for r in results
                if isinstance(r, torch.Tensor) and r.data_ptr() not in given
            ]
            self.bytes += sum(new)
            self.allocations += len(new)
        return out


def head(entropy, tail):
    """A sure head, for which top entries suffice, or one that is recomputed."""
    *inputs, targets = zipf_head(TOKENS, VOCABULARY, entropy, width=WIDTH)
    hidden, weight = leaves(*inputs)

    def step():
        out = linear_logprob(hidden, weight, targets, tail=tail, backend=BACKEND)
        torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), (hidden, weight))

    return step


def forward_only():
    step_weight = torch.randn(VOCABULARY, WIDTH)
    hidden, targets = torch.randn(TOKENS, WIDTH), torch.randint(VOCABULARY, (TOKENS,))
    return lambda: linear_logprob(hidden, step_weight, targets, backend=BACKEND)


def selective():
    logits = torch.randn(TOKENS, VOCABULARY).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,))

    def step():
        out = selective_logprob(logits, targets, backend=BACKEND)
        torch.autograd.grad(out.logprobs.sum(), logits)

    return step


def loss(**options):
    tokens = LOSS_TOKENS
    logprobs = (-torch.rand(tokens)).requires_grad_()
    old, lengths = -torch.rand(tokens), torch.arange(0, tokens + 1, 512, dtype=torch.int32)
    advantages = torch.randn(len(lengths) - 1)

    def step():
        # Not the compiled loop, which starts no operators and is not everywhere.
        backend = BACKEND or "portable"
        out = policy_loss(logprobs, old, advantages, lengths, backend=backend, **options)
        torch.autograd.grad(out.loss, logprobs)

    return step


def grouped(groups, **options):
    rewards = torch.rand(REWARDS)
    return lambda: group_advantages(rewards, groups, backend=BACKEND, **options)


CASES = {
    "linear_logprob forward": forward_only,
    "linear_logprob certified": lambda: head(0.5, 1e-2),
    "linear_logprob exact": lambda: head(0.5, 0.0),
    "linear_logprob unsure": lambda: head(None, 1e-2),
    "selective_logprob": selective,
    "policy_loss clip": loss,
    "policy_loss GSPO": lambda: loss(ratio="sequence"),
    "group_advantages equal": lambda: grouped(16),
    "group_advantages ragged": lambda: grouped(torch.arange(REWARDS) // 16),
    "group_advantages batch": lambda: grouped(16, scale="batch_std"),
}


@pytest.fixture(autouse=True)
def the_same_products_on_any_processor(monkeypatch):
    monkeypatch.setattr(products, "_onednn", lambda: None)


def counts(name):
    torch.manual_seed(0)
    step = CASES[name]()
    if not TRITON:
        step()  # what is made once
    operators = Operators()
    with operators, counted_launches() as launches:
        step()
    if TRITON:  # the interpreter runs operators and allocates too
        return {"flops": operators.flops, "launches": len(launches)}
    return {
        "operators": operators.operators,
        "flops": operators.flops,
        "allocations": operators.allocations,
        "bytes": operators.bytes,
        "peak": peak_bytes(step),
    }


@contextlib.contextmanager
def counted_launches():
    """The Triton kernels launched inside, by name."""
    names = []
    if not TRITON:
        yield names
        return
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def counted(self, *args, **kwargs):
        names.append(self.__name__)
        return run(self, *args, **kwargs)

    InterpretedFunction.run = counted
    yield names
    InterpretedFunction.run = run


def triton_counts():
    """The same of the Triton paths, in another process: Triton reads the variable at its import."""
    command = [sys.executable, "-m", "tests.kernels.test_counts", "--triton"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def compared(name, got, allowed):
    # Another processor saves a few entries more or less; another PyTorch counts a
    # little differently.
    slack = 1.02 if allowed["torch"] == torch.__version__ else 1.1
    for what, most in allowed[name].items():
        assert got[what] <= slack * most, f"{name}: {got[what]} {what}, {most} in {FILE.name}"


@pytest.mark.draw(2)
@pytest.mark.parametrize("name", CASES)
def test_nothing_grows(name):
    allowed = json.loads(FILE.read_text(encoding="utf-8"))
    assert allowed.keys() == {"torch", "triton", *CASES}
    compared(name, counts(name), allowed)


@pytest.mark.costly
def test_nothing_grows_in_the_triton_paths():
    pytest.importorskip("triton")
    allowed = json.loads(FILE.read_text(encoding="utf-8"))
    got = triton_counts()
    assert got.keys() == allowed["triton"].keys() == CASES.keys()
    for name in CASES:
        label = f"{name}, Triton"
        compared(label, got[name], {label: allowed["triton"][name], "torch": allowed["torch"]})
    launches = {name: numbers["launches"] for name, numbers in got.items()}
    assert launches["group_advantages equal"] == launches["group_advantages ragged"] == 1
    assert launches["group_advantages batch"] == 2 and launches["policy_loss clip"] <= 2


@pytest.mark.costly
def test_top_entries_save_the_products_of_backward():
    forward, certified, exact = (
        counts(f"linear_logprob {name}")["flops"] for name in ("forward", "certified", "exact")
    )
    assert certified < 1.1 * forward and exact == 4 * forward


def test_a_step_that_does_more_is_seen():
    small, large = Operators(), Operators()
    x = torch.randn(100, 100)
    with small:
        x @ x
    with large:
        (x @ x) + x
    assert (large.operators, large.bytes) == (small.operators + 1, 2 * small.bytes)
    assert small.flops == large.flops == 2 * 100**3


if __name__ == "__main__":
    torch.set_num_threads(1)
    products._onednn = lambda: None
    if TRITON:  # top entries in a small vocabulary too
        api = importlib.import_module("siri_kernels.linear_logprob.api")
        api.entries_to_save = lambda vocabulary, tail, needed: 32 if tail and needed else 0
    measured = {name: counts(name) for name in CASES}
    if TRITON:
        print(json.dumps(measured))
    else:
        measured = {"torch": torch.__version__} | measured | {"triton": triton_counts()}
        FILE.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
