"""linear_logprob and selective_logprob in Triton: at full size on a GPU, else interpreted."""

from __future__ import annotations

import pytest
import torch

from siri_kernels import linear_logprob, selective_logprob, take_backward_stats
from siri_kernels.linear_logprob import api

from . import test_linear_logprob_sharded as sharded
from .helpers import NoHostRead, eager_logprob, gradients, leaves
from .interpreter import DEVICE, direct
from .test_linear_logprob_sparse import relative, zipf_head

pytestmark = direct
# The interpreter runs a millisecond or more of Python for each row and tile, and for each id of the
# gradient of the weight. There are rows for two blocks and ids for two tiles, the last ones short.
TOKENS, VOCABULARY = (2000, 50_000) if DEVICE == "cuda" else (18, 84)
ENTRIES = 512 if DEVICE == "cuda" else 16
TILE = 16, 64
# The interpreter cuts fp32 to bf16 where GPUs round: its error is twice as large.
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_sizes(monkeypatch)


def small_sizes(monkeypatch, entries=ENTRIES):
    """Top entries in small vocabularies, and in the interpreter tiles to match."""
    monkeypatch.setattr(
        api, "entries_to_save", lambda v, tail, needed: entries if tail and needed else 0
    )
    if DEVICE == "cpu":
        launch = pytest.importorskip("siri_kernels.linear_logprob.triton.forward")
        monkeypatch.setattr(launch, "tile_shape", lambda rows, device: TILE)
        # A tile of more than one block, the last tile short.
        monkeypatch.setattr(launch.kernels, "IDS", 32)
        monkeypatch.setattr(launch.kernels, "PART", 32)


def on(where, tensors):
    return [t.to(where) if isinstance(t, torch.Tensor) else t for t in tensors]


def on_device(*tensors):
    return on(DEVICE, tensors)


def run(inputs, targets, up, which=(0, 1), backend="triton", **options):
    """Outputs and gradients, back on the CPU."""
    there = leaves(*on_device(*inputs))
    options = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    extra = {"bias": there[2]} if len(there) > 2 else {}
    out = linear_logprob(*there[:2], targets.to(DEVICE), backend=backend, **extra, **options)
    grads = gradients([out[i] for i in which], there, on_device(*(up[i] for i in which)))
    return [x.detach().cpu() for x in out], [g.cpu() for g in grads]


def lost_in_logits(inputs, temperature=1.0, **_):
    """What rounding logits to fp32 costs a log-prob: at a GPU's sizes they reach several hundred,
    a product of them is a few roundings off, and a division there is right to 2 ulp only."""
    if DEVICE == "cpu":
        return 0.0  # logits are small at the interpreter's sizes
    hidden, weight = (x.double() for x in on_device(*inputs[:2]))
    coldest = float(torch.as_tensor(temperature).min())
    return 4 * 2**-24 * float((hidden @ weight.t()).abs().max()) / coldest


def eager_gradients(inputs, targets, up):
    """Eager PyTorch's in the inputs' dtype and on the same device, back on the CPU."""
    there = leaves(*on_device(*inputs))
    out = eager_logprob(*there, targets.to(DEVICE))
    return [g.cpu() for g in gradients(out, there, on_device(*up))]


def assert_right(inputs, targets, up, tail=1e-2, **options):
    """Values, and gradients: exact for ``tail`` 0, within ``tail`` and better than bf16's else."""
    dtype = inputs[0].dtype
    want, want_grads = run(
        [x.double() for x in inputs], targets, up, backend="reference", **options
    )
    take_backward_stats()
    got, grads = run(inputs, targets, up, tail=tail, **options)
    lost = lost_in_logits(inputs, **options)
    for mine, true in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5 + lost)
    for mine, true in zip(grads, want_grads, strict=True):
        assert mine.dtype == dtype and relative(mine, true) <= tail + ROUNDING[dtype] + lost
    return take_backward_stats()


OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 20.0},
    "all": {"temperature": "tensor", "softcap": 15.0, "bias": True},
}


@pytest.mark.draw(4)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("tail", [0.0, 1e-2])
def test_options_and_dtypes(option, dtype, tail):
    hidden, weight, targets = zipf_head(TOKENS, VOCABULARY, 0.5, dtype)
    options, inputs = dict(OPTIONS[option]), [hidden, weight]
    if options.get("temperature") == "tensor":
        options["temperature"] = torch.rand(TOKENS) + 0.5
    if options.pop("bias", False):
        inputs.append(torch.randn(VOCABULARY).to(dtype))
    targets[::7] = -100
    up = torch.randn(TOKENS), 0.1 * torch.randn(TOKENS)
    up[0][3:9], up[1][3:9] = 0, 0
    stats = assert_right(inputs, targets, up, tail, **options)
    assert stats.dense_row_frac == 1 if tail == 0 else stats.dense_row_frac < 0.9
    lost = lost_in_logits(inputs, **options)
    for which in (0, 1) if dtype == torch.float32 else ():  # one of the outputs alone
        _, alone = run(inputs, targets, up, (which,), tail=tail, **options)
        _, exact = run([x.double() for x in inputs], targets, up, (which,), "reference", **options)
        for mine, true in zip(alone, exact, strict=True):
            assert relative(mine, true) <= tail + ROUNDING[dtype] + lost
        assert (alone[0][::7] == 0).all() and (alone[0][3:9] == 0).all()


@pytest.mark.draw(2)
@pytest.mark.parametrize("entropy", [0.1, 0.3, 1, 3, None])
def test_entropies(entropy):
    """The default tail is no worse than eager bf16, exact fp32 than twice eager's."""
    inputs = zipf_head(TOKENS, VOCABULARY, entropy, torch.bfloat16)
    *inputs, targets = inputs
    up = torch.randn(TOKENS), 0.1 * torch.randn(TOKENS)
    stats = assert_right(inputs, targets, up)
    assert (stats.dense_row_frac == 1) == (entropy is None) or entropy == 3
    eager = eager_gradients(inputs, targets, up)
    _, exact = run([x.double() for x in inputs], targets, up, backend="reference")
    _, got = run([x.float() for x in inputs], targets, up)
    for mine, theirs, true in zip(got, eager, exact, strict=True):
        assert relative(mine, true) <= relative(theirs, true)
    eager = eager_gradients([x.float() for x in inputs], targets, up)
    _, got = run([x.float() for x in inputs], targets, up, tail=0.0)
    for mine, theirs, true in zip(got, eager, exact, strict=True):
        assert relative(mine, true) <= 2 * relative(theirs, true) + 1e-7


def test_ids_with_many_entries(monkeypatch):
    """Their entries are added up in pieces first; with and without rows that are recomputed."""
    from siri_kernels.linear_logprob.triton import sparse_kernels

    if DEVICE == "cpu":
        monkeypatch.setattr(sparse_kernels, "PIECE", 4)
    hidden, weight, targets = zipf_head(TOKENS, VOCABULARY, 0.3)
    targets[: TOKENS // 2] = 5
    bias, up = torch.randn(VOCABULARY), (torch.randn(TOKENS), torch.zeros(TOKENS))
    dense = []
    for tail in (1e-5, 0.3):
        stats = assert_right([hidden, weight, bias], targets, up, tail)
        dense.append(float(stats.dense_row_frac))
    assert 0 < dense[0] < 1 and dense[1] == 0, "both cases must have run"


@pytest.mark.parametrize("most", [0, TOKENS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_tokens_to_recompute(monkeypatch, dtype, most):
    """They are entries of the gradient of weight, or go through the loop over its tiles."""
    from siri_kernels.linear_logprob.triton import few_dense

    monkeypatch.setattr(few_dense, "MOST", most)
    hidden, weight, targets = zipf_head(TOKENS, VOCABULARY, 0.1, dtype)
    hidden[torch.randperm(TOKENS)[:3]] *= 1e-4
    bias, up = torch.randn(VOCABULARY).to(dtype) / 100, (torch.randn(TOKENS), torch.randn(TOKENS))
    calls = []
    append = few_dense.append
    monkeypatch.setattr(few_dense, "append", lambda *args: calls.append(1) or append(*args))
    stats = assert_right([hidden, weight, bias], targets, up, softcap=30.0)
    assert 0 < float(stats.dense_row_frac) < 1 and bool(calls) == (most > 0)


@pytest.mark.costly
def test_only_what_is_asked_for():
    *inputs, targets = zipf_head(TOKENS, VOCABULARY, 0.5)
    inputs.append(torch.randn(VOCABULARY))
    up = torch.randn(TOKENS), torch.randn(TOKENS)
    _, whole = run(inputs, targets, up)
    there = on_device(*inputs)
    for frozen in range(3):
        mine = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(there)]
        out = linear_logprob(*mine[:2], targets.to(DEVICE), bias=mine[2], backend="triton")
        torch.autograd.backward(list(out), on_device(*up))
        for i, (tensor, want) in enumerate(zip(mine, whole, strict=True)):
            assert tensor.grad is None if i == frozen else torch.equal(tensor.grad.cpu(), want)


def test_shapes_and_strides():
    width, vocabulary = 33, 101
    weight = torch.randn(width, vocabulary).t()
    hidden = torch.randn(3, 2 * width, 4).transpose(1, 2)[..., ::2]
    targets = torch.randint(vocabulary, (4, 3)).t()
    up = torch.randn(3, 4), torch.randn(3, 4)
    temperature = (torch.rand(4, 3) + 0.5).t()
    for tail in (0.0, 0.1):
        got = run([hidden, weight], targets, up, tail=tail, temperature=temperature)
        want = run(
            [hidden.double(), weight.double()],
            targets,
            up,
            backend="reference",
            temperature=temperature,
        )
        for mine, true in zip(got[0] + got[1], want[0] + want[1], strict=True):
            assert mine.shape == true.shape and relative(mine, true) < 0.1
    for tokens in (0, 1):
        rows, up = torch.randn(tokens, width), (torch.randn(tokens), torch.randn(tokens))
        ids = torch.randint(vocabulary, (tokens,))
        out, (d_hidden, d_weight) = run([rows, weight], ids, up)
        assert out[0].shape == (tokens,) and d_hidden.shape == rows.shape
        assert d_weight.shape == weight.shape and (tokens or (d_weight == 0).all())
    one = torch.randn(5, 3)  # a vocabulary of one: sure
    out, grads = run([one, torch.randn(1, 3)], torch.zeros(5, dtype=torch.int64), torch.ones(2, 5))
    assert (out[0] == 0).all() and (out[1] == 0).all() and all((g == 0).all() for g in grads)


def test_autocast_uses_the_rounded_operands():
    hidden, weight, targets = zipf_head(TOKENS, VOCABULARY, 0.5)
    up = torch.randn(TOKENS), 0.1 * torch.randn(TOKENS)
    with torch.autocast(DEVICE, torch.bfloat16):
        _, got = run([hidden.bfloat16(), weight], targets, up)
    rounded = [hidden.bfloat16().double(), weight.bfloat16().double()]
    _, exact = run(rounded, targets, up, backend="reference")
    assert [g.dtype for g in got] == [torch.bfloat16, torch.float32]
    for mine, true in zip(got, exact, strict=True):
        assert relative(mine, true) < 1e-2


def test_forward_does_not_wait(monkeypatch):
    from siri_kernels import _checks

    monkeypatch.setattr(_checks, "may_read", lambda tensor: False)
    *inputs, targets = zipf_head(12, VOCABULARY, 0.3)
    inputs, (targets,) = leaves(*on_device(*inputs)), on_device(targets)
    linear_logprob(*inputs, targets, backend="triton")  # compiled once
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoHostRead():
            linear_logprob(*inputs, targets, backend="triton")
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_fp16_gradients_of_any_size():
    """Products of fp16 are scaled, so that small logit gradients are not lost, nor large ones."""
    hidden, weight, targets = zipf_head(TOKENS, VOCABULARY, None)
    # Such a size keeps the gradient of the weight among fp16's normal numbers.
    inputs = [(1e4 * hidden).half(), (1e-4 * weight).half()]
    for size in (1e-4, 1.0):
        up = size * torch.randn(TOKENS), torch.zeros(TOKENS)
        _, exact = run([x.double() for x in inputs], targets, up, backend="reference")
        _, (_, got) = run(inputs, targets, up, tail=0.0)
        assert relative(got.double(), exact[1].half().double()) < 1e-3


def test_float64_is_for_the_portable_backend():
    *inputs, targets = zipf_head(4, 50, None, torch.float64)
    with pytest.raises(ValueError, match="takes bfloat16, float16 and float32; got hidden"):
        linear_logprob(*on_device(*inputs, targets), backend="triton")
    assert linear_logprob(*on_device(*inputs, targets)).logprobs.dtype == torch.float64
    with pytest.raises(ValueError, match="takes bfloat16, float16 and float32; got logits"):
        selective_logprob(*on_device(inputs[1], torch.zeros(50).long()), backend="triton")


@pytest.mark.draw(3)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6, "tensor"])
def test_selective(dtype, temperature, monkeypatch):
    from siri_kernels.linear_logprob.triton import kernels

    monkeypatch.setattr(kernels, "IDS", 2048)  # two blocks and a short one
    tokens, vocabulary = (500, 50_001) if DEVICE == "cuda" else (8, 5001)
    logits = (torch.randn(tokens, vocabulary + 3) * 3).to(dtype)[:, :vocabulary]
    targets = torch.randint(vocabulary, (tokens,))
    targets[4] = -100
    if temperature == "tensor":
        temperature = torch.rand(tokens) + 0.5
    logits[4, 7], logits[5, 9] = float("nan"), float("-inf")
    up = torch.randn(tokens), torch.randn(tokens)
    up[0][6], up[1][6] = 0, 0

    def outcome(x, where, **more):
        (x,) = leaves(x.to(where))
        t = temperature.to(where) if isinstance(temperature, torch.Tensor) else temperature
        grads = []
        for which in ((0,), (1,), (0, 1)):
            out = selective_logprob(x, targets.to(where), temperature=t, **more)
            grads += gradients([out[i] for i in which], (x,), on(where, [up[i] for i in which]))
        return [o.detach().cpu() for o in (*out, *grads)]

    got = outcome(logits, DEVICE, backend="triton")
    want = outcome(logits.double(), "cpu", backend="reference")
    for mine, true in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)
    for mine, true in zip(got[2:], want[2:], strict=True):
        assert mine.dtype == dtype and relative(mine, true) <= ROUNDING[dtype]
        assert (mine[4] == 0).all() and (mine[6] == 0).all() and (mine[5, 9] == 0)


@pytest.mark.costly
@pytest.mark.skipif(DEVICE == "cuda", reason="needs a GPU for each process")
def test_vocabulary_over_two_processes(tmp_path):
    sharded.check(tmp_path, "triton", [(torch.float32, 1e-2, True), (torch.bfloat16, 0.0, False)])
