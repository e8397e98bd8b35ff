from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from siri_kernels import linear_logprob, selective_logprob
from siri_kernels.linear_logprob.portable import backward, dense_backward, forward
from siri_kernels.linear_logprob.portable.forward import tile_shape
from siri_kernels.linear_logprob.top_entries import entries_to_save

from .helpers import assert_no_worse, eager_logprob, gradients, leaves, make_linear, upstream

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 3.0},
    "all": {"temperature": "tensor", "softcap": 5.0, "bias": "tensor"},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "shape", [(7, 5, 11), (1, 3, 2), (4, 4, 1), (150, 9, 2049), (30, 16, 4099)]
)
def test_portable_equals_reference_in_float64(shape, option):
    tokens, width, vocabulary = shape
    hidden, weight, targets = make_linear(*shape)
    options = dict(OPTIONS[option])
    inputs = leaves(hidden, weight)
    if options.get("temperature") == "tensor":
        options["temperature"] = torch.rand(tokens, dtype=torch.float64) + 0.5
    if options.get("bias") == "tensor":
        inputs += leaves(torch.randn(vocabulary, dtype=torch.float64))
        options["bias"] = inputs[2]
    targets[::4] = -100
    targets[0] = vocabulary - 1
    up = upstream(tokens)
    results = []
    for backend in ("reference", "portable"):
        out = linear_logprob(*inputs[:2], targets, backend=backend, **options)
        results.append([*out, *gradients(out, inputs, up)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", ["plain", "temperature", "softcap"])
def test_error_at_most_twice_eagers(dtype, option):
    hidden, weight, targets = make_linear(200, 48, 3001, dtype)
    up, options = upstream(200), OPTIONS[option]
    exact_inputs = leaves(hidden.double(), weight.double())
    exact = linear_logprob(*exact_inputs, targets, backend="reference", **options)
    exact = [*exact, *gradients(exact, exact_inputs, up)]
    inputs = leaves(hidden, weight)
    ours = linear_logprob(*inputs, targets, **options)
    assert ours.logprobs.dtype == ours.entropy.dtype == torch.float32
    ours = [*ours, *gradients(ours, inputs, up)]
    eager = eager_logprob(*inputs, targets, **options)
    eager = [*eager, *gradients(eager, inputs, up)]
    for got, theirs, want in zip(ours, eager, exact, strict=True):
        assert_no_worse(got, theirs, want, floor=1e-7)
    # Results are fp32 whatever the inputs, where eager has rounded its logits.
    for got, want in zip(ours[:2], exact[:2], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)


def test_reference_gradcheck():
    hidden, weight, targets = make_linear(5, 4, 7)
    bias, temperature = torch.randn(7, dtype=torch.float64), torch.rand(5).double() + 0.5
    targets[1] = -100

    def both(h, w, b):
        return tuple(
            linear_logprob(
                h, w, targets, bias=b, temperature=temperature, softcap=2.0, backend="reference"
            )
        )

    assert torch.autograd.gradcheck(both, leaves(hidden, weight, bias))
    assert torch.autograd.gradgradcheck(both, leaves(hidden, weight, bias))


def test_portable_gradcheck():
    hidden, weight, targets = make_linear(4, 3, 6)

    def both(h, w):
        return tuple(linear_logprob(h, w, targets, temperature=0.7, backend="portable"))

    assert torch.autograd.gradcheck(both, leaves(hidden, weight))


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.costly
def test_no_tensor_of_the_size_of_a_row_block_times_the_vocabulary():
    tokens, width, vocabulary = 700, 8, 40_000
    hidden, weight, targets = make_linear(tokens, width, vocabulary, torch.float32)
    targets[3] = -100
    inputs = leaves(hidden, weight)
    rows, ids = tile_shape(vocabulary, hidden.device)
    saved = 2 * tokens * (entries_to_save(vocabulary, 1e-2, True) + 1)  # as int64
    found = 2 * rows * ids  # places of a tile's candidates, as int64
    bound = max(found, weight.numel(), hidden.numel(), saved)
    assert bound < rows * vocabulary / 4, "the case must be able to show a [C, V] tensor"
    with LargestTensor() as largest:
        out = linear_logprob(*inputs, targets, softcap=30.0, temperature=0.9)
        (out.logprobs.sum() + out.entropy.sum()).backward()
    assert rows * ids <= largest.elements <= bound
    with LargestTensor() as eager:  # the measurement does see logits
        eager_logprob(hidden, weight, targets.clamp(min=0))
    assert eager.elements >= tokens * vocabulary


def test_ignored_rows_are_zero_and_leave_no_trace():
    hidden, weight, targets = make_linear(40, 6, 50, torch.float32)
    targets[::3] = -7
    hidden[::3] = float("nan")
    inputs, kept = leaves(hidden, weight), targets != -7
    for backend in ("portable", "reference"):
        out = linear_logprob(*inputs, targets, ignore_index=-7, backend=backend)
        assert (out.logprobs[~kept] == 0).all() and (out.entropy[~kept] == 0).all()
        d_hidden, d_weight = gradients(out, inputs, upstream(40))
        assert (d_hidden[~kept] == 0).all() and d_weight.isfinite().all()
        some = linear_logprob(inputs[0][kept], inputs[1], targets[kept], backend=backend)
        torch.testing.assert_close(out.logprobs[kept], some.logprobs, rtol=0, atol=0)
        torch.testing.assert_close(out.entropy[kept], some.entropy, rtol=0, atol=0)


def count_tokens(monkeypatch):
    """Records how many tokens backward recomputes."""

    seen, original = [], backward.recompute

    def spy(call, *args, **kwargs):
        seen.append(len(call.hidden))
        return original(call, *args, **kwargs)

    monkeypatch.setattr(backward, "recompute", spy)
    return seen


def test_tokens_without_gradient_are_not_computed(monkeypatch):
    seen = count_tokens(monkeypatch)
    inputs = leaves(*make_linear(30, 6, 50, torch.float32)[:2])
    targets = torch.randint(0, 50, (30,))
    targets[4] = -100
    weights = torch.randn(30)
    weights[10:] = 0
    out = linear_logprob(*inputs, targets)
    d_hidden, d_weight = torch.autograd.grad((out.logprobs * weights).sum(), inputs)
    assert seen == [9]
    assert (d_hidden[10:] == 0).all() and d_hidden[0].abs().sum() > 0
    want = linear_logprob(*inputs, targets, backend="reference")
    want = torch.autograd.grad((want.logprobs * weights).sum(), inputs)
    torch.testing.assert_close(d_hidden, want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d_weight, want[1], rtol=1e-5, atol=1e-6)
    out = linear_logprob(*inputs, targets)
    (d_weight,) = torch.autograd.grad((out.logprobs * 0).sum(), inputs[1:])
    assert seen == [9, 0] and (d_weight == 0).all()


class CountGemms(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.overloadpacket.__name__ in ("mm", "addmm_", "_linear_pointwise")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frozen, gemms", [((), 3), ((0,), 2), ((1,), 2)])
def test_a_frozen_input_costs_nothing(frozen, gemms):
    inputs = leaves(*make_linear(20, 6, 50, torch.float32)[:2])
    for i in frozen:
        inputs[i].requires_grad_(False)
    out = linear_logprob(*inputs, torch.randint(0, 50, (20,)))
    with CountGemms() as count:  # autograd runs a CPU backward in this thread
        (out.logprobs.sum() + out.entropy.sum()).backward()
    assert count.calls == gemms
    assert [x.grad is None for x in inputs] == [i in frozen for i in range(2)]


# Shapes, strides, dtypes, autocast


@pytest.mark.parametrize("lead", [(), (0,), (1,), (2, 3), (2, 0, 4), (2, 1, 3)])
@pytest.mark.parametrize("backend", ["portable", "reference"])
def test_leading_dimensions(lead, backend):
    hidden = torch.randn(*lead, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    targets = torch.randint(0, 11, lead)
    out = linear_logprob(hidden, weight, targets, backend=backend)
    assert out.logprobs.shape == out.entropy.shape == lead
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert hidden.grad.shape == hidden.shape and weight.grad.isfinite().all()
    want = eager_logprob(hidden, weight, targets)
    for got, exact in zip(out, want, strict=True):
        torch.testing.assert_close(got, exact)


def test_non_contiguous_inputs():
    wide, tall = torch.randn(7, 2 * 9).double(), torch.randn(9, 13).double()
    hidden, weight = wide[:, ::2], tall.t()
    targets = torch.randint(0, 13, (14,))[::2]
    bias = torch.randn(13, 2).double()[:, 0]
    got = linear_logprob(hidden, weight, targets, bias=bias)
    want = linear_logprob(
        hidden.contiguous(), weight.contiguous(), targets.contiguous(), bias=bias.contiguous()
    )
    torch.testing.assert_close(got.logprobs, want.logprobs)
    h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    out = linear_logprob(h, w, targets)
    d_hidden, d_weight = torch.autograd.grad(out.logprobs.sum(), (h, w))
    ref = linear_logprob(h, w, targets, backend="reference")
    want_h, want_w = torch.autograd.grad(ref.logprobs.sum(), (h, w))
    torch.testing.assert_close(d_hidden, want_h)
    torch.testing.assert_close(d_weight, want_w)


def test_tied_weight_gets_both_gradients():
    table = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    tokens, targets = torch.randint(0, 20, (9,)), torch.randint(0, 20, (9,))
    got = torch.autograd.grad(linear_logprob(table[tokens], table, targets).logprobs.sum(), table)
    want = torch.autograd.grad(eager_logprob(table[tokens], table, targets)[0].sum(), table)
    torch.testing.assert_close(got, want)


def test_autocast_mixes_dtypes_and_keeps_fp32_results():
    hidden, weight, targets = make_linear(50, 16, 400, torch.float32)
    hidden = hidden.bfloat16()
    inputs = leaves(hidden, weight)
    with pytest.raises(TypeError, match="weight must have the dtype of hidden"):
        linear_logprob(*inputs, targets)
    up = upstream(50)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_logprob(*inputs, targets)
        eager = eager_logprob(*inputs, targets)
    assert out.logprobs.dtype == torch.float32
    d_hidden, d_weight = gradients(out, inputs, up)
    assert d_hidden.dtype == torch.bfloat16 and d_weight.dtype == torch.float32
    # Exact for the operands autocast chooses: weight rounded to bf16.
    exact_inputs = leaves(hidden.double(), weight.bfloat16().double())
    exact = linear_logprob(*exact_inputs, targets, backend="reference")
    torch.testing.assert_close(out.logprobs.double(), exact.logprobs, rtol=1e-5, atol=1e-5)
    want = gradients(exact, exact_inputs, up)
    theirs = gradients(eager, inputs, up)
    assert_no_worse(d_hidden, theirs[0], want[0])
    assert_no_worse(d_weight, theirs[1], want[1])


def test_one_output_alone():
    inputs = leaves(*make_linear(20, 6, 50)[:2])
    targets = torch.randint(0, 50, (20,))
    for which in range(2):
        got = torch.autograd.grad(linear_logprob(*inputs, targets)[which].sum(), inputs)
        want = linear_logprob(*inputs, targets, backend="reference")[which]
        torch.testing.assert_close(got, torch.autograd.grad(want.sum(), inputs))


def test_checkpoint_around_it():
    inputs = leaves(*make_linear(20, 6, 50)[:2])
    targets = torch.randint(0, 50, (20,))
    out = torch.utils.checkpoint.checkpoint(linear_logprob, *inputs, targets, use_reentrant=False)
    got = torch.autograd.grad(out.logprobs.sum(), inputs)
    want = torch.autograd.grad(linear_logprob(*inputs, targets).logprobs.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_double_backward_is_refused_clearly():
    inputs = leaves(*make_linear(5, 4, 9)[:2])
    out = linear_logprob(*inputs, torch.randint(0, 9, (5,)))
    (grad,) = torch.autograd.grad(out.logprobs.sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="linear_logprob.*cannot be differentiated again"):
        grad.sum().backward()


@pytest.mark.parametrize("tail", [0.0, 1e-2, 1.0])
def test_every_tail_gives_the_exact_gradient_where_the_vocabulary_is_small(tail):
    inputs = leaves(*make_linear(20, 6, 50)[:2])
    targets = torch.randint(0, 50, (20,))
    up = upstream(20)
    got = gradients(linear_logprob(*inputs, targets, tail=tail), inputs, up)
    want = gradients(linear_logprob(*inputs, targets, backend="reference"), inputs, up)
    torch.testing.assert_close(got, want)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 40),
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 60),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    temperature=st.floats(0.1, 5.0),
    seed=st.integers(0, 2**31),
    ignored=st.floats(0, 1),
)
def test_any_small_problem(tokens, width, vocabulary, scale, temperature, seed, ignored):
    torch.manual_seed(seed)
    inputs = leaves(
        scale * torch.randn(tokens, width, dtype=torch.float64),
        torch.randn(vocabulary, width, dtype=torch.float64),
    )
    targets = torch.randint(0, vocabulary, (tokens,)).masked_fill(torch.rand(tokens) < ignored, -1)
    up, results = upstream(tokens), []
    for backend in ("reference", "portable"):
        out = linear_logprob(
            *inputs, targets, temperature=temperature, ignore_index=-1, backend=backend
        )
        results.append([*out, *gradients(out, inputs, up)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10 * max(scale, 1))


def test_without_padding_as_on_a_gpu(monkeypatch):
    class Unpadded(forward.Tiles):
        @property
        def pad(self):
            return False

        @pad.setter
        def pad(self, value):
            pass

    hidden, weight, targets = make_linear(1030, 6, 5000, torch.float32)
    up, inputs = upstream(1030), leaves(hidden, weight)
    out = linear_logprob(*inputs, targets)
    want = [*out, *gradients(out, inputs, up)]
    for module in (forward, dense_backward):
        monkeypatch.setattr(module, "Tiles", Unpadded)
    out = linear_logprob(*inputs, targets)
    for a, b in zip([*out, *gradients(out, inputs, up)], want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_a_nan_gradient_is_not_mistaken_for_none():
    inputs = leaves(*make_linear(6, 4, 9, torch.float32)[:2])
    out = linear_logprob(*inputs, torch.randint(0, 9, (6,)))
    grad = torch.zeros(6)
    grad[2] = float("nan")
    (d_hidden,) = torch.autograd.grad(out.logprobs, inputs[0], grad)
    assert d_hidden[2].isnan().all() and (d_hidden[[0, 1, 3, 4, 5]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("one_for_all", [False, True])
def test_temperature_tensor_of_any_float_dtype(dtype, one_for_all):
    (hidden, weight), targets = leaves(torch.randn(6, 4), torch.randn(9, 4)), torch.arange(6)
    temperature = torch.tensor(0.75) if one_for_all else torch.tensor([0.5, 1, 2, 1.5, 0.75, 4])
    want = linear_logprob(hidden, weight, targets, temperature=temperature)
    out = linear_logprob(hidden, weight, targets, temperature=temperature.to(dtype))
    up = upstream(6)
    torch.testing.assert_close(tuple(out), tuple(want))
    got = gradients(out, (hidden, weight), up)
    torch.testing.assert_close(got, gradients(want, (hidden, weight), up))
    logits = (hidden @ weight.t()).detach().requires_grad_()
    again = selective_logprob(logits, targets, temperature=temperature.to(dtype))
    (d_logits,) = gradients(again, (logits,), up)
    torch.testing.assert_close(d_logits @ weight, got[0], rtol=1e-5, atol=1e-5)
