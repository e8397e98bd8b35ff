from __future__ import annotations

import itertools
import re
import warnings

import pytest
import torch
from torch import nn

from siri_kernels import LogprobHead, linear_logprob


class Model(nn.Module):
    def __init__(self, tied=False, bias=False):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.lm_head = nn.Linear(8, 30, bias=bias)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens, *args, **kwargs):
        return self.lm_head(self.embed(tokens), *args, **kwargs)


@pytest.mark.parametrize("bias", [False, True])
def test_hidden_alone_gives_the_same_logits(bias):
    model, tokens = Model(bias=bias), torch.randint(0, 30, (2, 5))
    before = model(tokens)
    model.lm_head = LogprobHead(model.lm_head)
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_names_and_checkpoints_stay(tied):
    model = Model(tied=tied, bias=True)
    parameters, saved = dict(model.named_parameters()), model.state_dict()
    model.lm_head = LogprobHead(model.lm_head)
    after = dict(model.named_parameters())
    assert list(after) == list(parameters) and list(model.state_dict()) == list(saved)
    assert all(after[name] is parameters[name] for name in after)
    assert (model.lm_head.weight is model.embed.weight) == tied
    other = Model(tied=tied, bias=True)
    other.lm_head = LogprobHead(other.lm_head)
    other.load_state_dict(saved)
    tokens = torch.randint(0, 30, (7,))
    assert torch.equal(other(tokens), model(tokens))


def test_targets_give_logprobs_with_gradient_to_all_parameters():
    model = Model(tied=True, bias=True)
    model.lm_head = LogprobHead(model.lm_head)
    tokens, targets = torch.randint(0, 30, (2, 5)), torch.randint(0, 30, (2, 5))
    out = model(tokens, targets, temperature=0.7)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    weight, bias = (p.detach().clone().requires_grad_() for p in model.lm_head.parameters())
    want = linear_logprob(
        weight[tokens], weight, targets, bias=bias, temperature=0.7, backend="reference"
    )
    torch.testing.assert_close(tuple(out), tuple(want))
    (want.logprobs.sum() + want.entropy.sum()).backward()
    torch.testing.assert_close(model.embed.weight.grad, weight.grad)
    torch.testing.assert_close(model.lm_head.bias.grad, bias.grad)


def test_made_of_an_embedding_or_a_parameter():
    embedding = nn.Embedding(12, 4)
    hidden, targets = torch.randn(3, 4), torch.tensor([0, 5, 11])
    for source, weight in ((embedding, embedding.weight), (embedding.weight, embedding.weight)):
        head = LogprobHead(source)
        assert head.weight is weight and list(head.state_dict()) == ["weight"]
        assert (head.in_features, head.out_features) == (4, 12)
        torch.testing.assert_close(
            tuple(head(hidden, targets)), tuple(linear_logprob(hidden, weight, targets))
        )


def test_is_a_linear_in_the_mode_dtype_and_device_of_the_head():
    head = LogprobHead(nn.Linear(4, 6).bfloat16().eval())
    assert isinstance(head, nn.Linear) and not head.training
    assert head.weight.dtype == torch.bfloat16
    assert head(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16


def test_refusals():
    with pytest.raises(TypeError, match="head must be an nn.Linear.*got str"):
        LogprobHead("lm_head")
    with pytest.raises(ValueError, match=r"weight of shape \[V, D\] with V, D >= 1; got \[3\]"):
        LogprobHead(nn.Parameter(torch.randn(3)))
    with pytest.raises(TypeError, match="targets are missing.*temperature"):
        LogprobHead(nn.Linear(4, 6))(torch.randn(2, 4), temperature=2.0)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


NOT_HEADS = {
    "lazy": lambda: nn.LazyLinear(5),
    "unknown": nn.UninitializedParameter,
    "integers": lambda: nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False),
    "complex": lambda: nn.Linear(3, 4, dtype=torch.complex64),
    "sparse": lambda: nn.Parameter(torch.eye(3).to_sparse()),
    "no width": lambda: nn.Parameter(torch.zeros(5, 0)),
    "no ids": lambda: nn.Embedding(0, 5),
    "three dimensions": lambda: nn.Parameter(torch.zeros(2, 3, 4)),
    "computed": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
    "another forward": lambda: Doubled(3, 4),
    "a class": lambda: nn.Linear,
    "a tensor": lambda: torch.randn(3, 4),
    "None": lambda: None,
    "a convolution": lambda: nn.Conv1d(3, 4, 1),
}


@pytest.mark.parametrize("name", NOT_HEADS)
def test_what_is_no_head_is_refused_when_it_is_given(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lazy and empty modules
        given = NOT_HEADS[name]()
    with pytest.raises((TypeError, ValueError), match="^LogprobHead: .*head.*; got ") as error:
        LogprobHead(given)
    assert "\n" not in str(error.value)


def test_takes_no_bias_but_its_own():
    head = LogprobHead(nn.Linear(4, 6))
    with pytest.raises(TypeError, match="^LogprobHead: bias is the head's own"):
        head(torch.randn(2, 4), torch.tensor([0, 5]), bias=torch.zeros(6))


DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("pair", itertools.permutations(DTYPES, 2), ids=str)
def test_mixed_dtypes_are_refused_with_advice_that_helps(pair):
    hidden, weight = torch.randn(5, 8).to(pair[0]), torch.randn(20, 8).to(pair[1])
    targets = torch.arange(5)
    with pytest.raises(TypeError, match="weight must have the dtype of hidden") as error:
        linear_logprob(hidden, weight, targets)
    advice = re.search(r"as in (.*), or call it under torch.autocast", str(error.value))
    for word in advice[1].split(" and "):
        name, dtype = re.fullmatch(r"(\w+)\.to\(torch\.(\w+)\)", word).groups()
        cast = {"hidden": hidden, "weight": weight}[name].to(getattr(torch, dtype))
        hidden, weight = (cast, weight) if name == "hidden" else (hidden, cast)
    want = (hidden.double() @ weight.double().T).log_softmax(-1)[range(5), targets]
    got = linear_logprob(hidden, weight, targets).logprobs
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        linear_logprob(hidden, weight, targets)
