"""verl's fused LM head on ``linear_logprob``, through verl's own patched model."""

from __future__ import annotations

import importlib

import pytest
import torch
import verl.utils.experimental.torch_functional as torch_seam
import verl.utils.kernel.linear_cross_entropy as triton_seam
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM
from verl.models.transformers.monkey_patch import apply_monkey_patch

from siri_kernels import LogprobHead
from siri_train.model.demo_model import START_FOLDER

MODULE = "siri_kernels.integrations.verl_head"


@pytest.fixture
def head():
    """Imports the module, as verl's ``external_lib`` does; conftest puts verl's own back."""
    forward = Qwen2ForCausalLM.forward
    yield lambda: importlib.import_module(MODULE)
    Qwen2ForCausalLM.forward = forward


def patched(backend):
    model = AutoModelForCausalLM.from_pretrained(START_FOLDER, attn_implementation="eager")
    apply_monkey_patch(
        model, use_remove_padding=False, use_fused_kernels=True, fused_kernels_backend=backend
    )
    return model


def score(model, ids, labels, upstream):
    model.zero_grad()
    out = model(ids, temperature=0.8, shift_labels=labels, return_dict=True)
    ((out.log_probs * upstream[0]).sum() + (out.entropy * upstream[1]).sum()).backward()
    return (
        out.log_probs.detach(),
        out.entropy.detach(),
        {name: p.grad.clone() for name, p in model.named_parameters()},
    )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_verls_patched_model_runs_ours(head, backend, monkeypatch):
    """The same values as verl's own torch head (its Triton one needs a GPU)."""
    monkeypatch.setenv("SIRI_KERNELS_VERL_TAIL", "0")
    ids, labels = torch.randint(3, 30, (2, 2, 19))
    upstream = torch.randn(2, 2, 19)
    want = score(patched("torch"), ids, labels, upstream)
    module = head()
    assert module.install() is module.install() and module.install().tail == 0
    got = score(patched(backend), ids, labels, upstream)
    counted = module.install()
    assert counted.calls == {"torch": 0, "triton": 0, backend: 1} and counted.rows == 38
    for a, b in zip(got[:2], want[:2], strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    for name, grad in want[2].items():
        assert (got[2][name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_results_are_shaped_as_verls(head, rows, tokens):
    """verl's Triton head is flat; its engine reads columns of several padded rows."""
    shape = (tokens,) if rows is None else (rows, tokens)
    hidden, weight = torch.randn(*shape, 8, requires_grad=True), torch.randn(11, 8)
    labels = torch.randint(0, 11, shape)
    own = torch_seam.FusedLinearForPPO().forward(hidden, weight, labels, 0.7)
    head()
    for call, want in (
        (torch_seam.FusedLinearForPPO().forward, shape),
        (triton_seam.linear_cross_entropy, shape if (rows or 0) > 1 else (tokens,)),
    ):
        got = call(hidden, weight, labels, 0.7)
        assert [tuple(x.shape) for x in got] == [want, want]
        for a, b in zip(got, own, strict=True):
            torch.testing.assert_close(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-5)
        assert torch.autograd.grad(got[0].sum(), hidden)[0].shape == hidden.shape


def test_without_the_module_verl_is_untouched():
    assert triton_seam.linear_cross_entropy.__self__ is triton_seam.LinearCrossEntropy
    assert torch_seam.FusedLinearForPPO.forward.__module__ == torch_seam.__name__


def test_what_stays_verls(head):
    """The liger backend, and a vocabulary over ranks."""
    calls = []
    triton_seam.linear_cross_entropy = lambda *call: calls.append(call)
    counted = head().install()
    triton_seam.linear_cross_entropy(1, 2, 3, 1.0, "none", "group")
    triton_seam.linear_cross_entropy(1, 2, 3, 1.0, "mean")
    assert calls == [(1, 2, 3, 1.0, "none", "group"), (1, 2, 3, 1.0, "mean", None)]
    hidden, weight, labels = torch.randn(3, 8), torch.randn(11, 8), torch.tensor([1, 2, 3])
    torch_seam.FusedLinearForPPO(impl_backend="liger").forward(hidden, weight, labels)
    assert counted.rows == 0
    torch_seam.FusedLinearForPPO().forward(hidden, weight, labels.int())
    assert counted.rows == 3


@pytest.mark.parametrize("text", ["-1", "exact", "nan", "inf"])
def test_a_wrong_tail_is_refused(head, monkeypatch, text):
    monkeypatch.setenv("SIRI_KERNELS_VERL_TAIL", text)
    with pytest.raises(ValueError, match=f"SIRI_KERNELS_VERL_TAIL: got '{text}'"):
        head()


@pytest.mark.parametrize("text", ["int4", "INT8", "none", "1"])
def test_a_wrong_screen_is_refused(head, monkeypatch, text):
    monkeypatch.setenv("SIRI_KERNELS_VERL_SCREEN", text)
    with pytest.raises(ValueError, match=f"SIRI_KERNELS_VERL_SCREEN: got '{text}'; takes int8"):
        head()


@pytest.mark.parametrize("text", [None, "", "auto", "int8"])
def test_a_screen_reaches_every_call_of_the_head(head, monkeypatch, text):
    monkeypatch.delenv("SIRI_KERNELS_VERL_SCREEN", raising=False)
    if text is not None:
        monkeypatch.setenv("SIRI_KERNELS_VERL_SCREEN", text)
    module = head()
    seen, exact = [], module.linear_logprob

    def watch(*tensors, screen, **rest):
        seen.append(screen)
        return exact(*tensors, **rest)

    monkeypatch.setattr(module, "linear_logprob", watch)
    hidden, weight, labels = torch.randn(3, 8), torch.randn(11, 8), torch.tensor([1, 2, 3])
    for own in (None, "auto", "int8"):  # an argument stands above the environment
        assert module.install(screen=own).screen == (own or text or None)
        torch_seam.FusedLinearForPPO().forward(hidden, weight, labels, 0.7)
        assert seen.pop() == (own or text or None)
    with pytest.raises(ValueError, match="verl_head.install: screen must be None.*got 'int4'"):
        module.install(screen="int4")


def test_another_contract_is_refused(head, monkeypatch):
    import verl.models.transformers.dense_common as models

    def parameters(
        self, hidden_states, vocab_weights, input_ids, temperature=1.0, softcap=None
    ): ...
    def values(self, hidden_states, vocab_weights, input_ids, temperature=1.0):
        out = LogprobHead(torch.nn.Parameter(vocab_weights))(hidden_states, input_ids)
        return out.logprobs, out.entropy  # forgets the temperature

    def lookup(self, shift_labels=None):
        return torch_seam.FusedLinearForPPO2

    for where, name, broken, error in (
        (torch_seam.FusedLinearForPPO, "forward", parameters, "forward takes .*'softcap'"),
        (torch_seam.FusedLinearForPPO, "forward", values, "log_probs of a small problem"),
        (models, "forward_with_torch_backend", lookup, "does not look up FusedLinearForPPO"),
        (triton_seam.LinearCrossEntropy, "forward", parameters, "LinearCrossEntropy.forward takes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, broken)
            with pytest.raises(RuntimeError, match=f"verl 0.9.1 has another .*{error}"):
                head()
        assert triton_seam.linear_cross_entropy.__self__ is triton_seam.LinearCrossEntropy
