"""``screen`` and ``logprob_tol`` of a wrapped model: the default of its calls, and one call's own.

The calls are watched, so that nothing here depends on where there is a screen.
"""

from __future__ import annotations

import copy
import math
import pickle
import random

import pytest
import torch
import torch.distributed as dist
from torch import nn

from siri_kernels import LogprobHead
from siri_kernels.linear_logprob.head import forms, scoring

from .test_wrap import batch, make

KINDS = (None, "int8", "fp8", "auto")


@pytest.fixture
def calls(monkeypatch):
    """The screens that ``linear_logprob`` is asked for; it computes exactly."""
    seen = []
    exact = scoring.linear_logprob

    def watch(*tensors, **options):
        seen.append((options.pop("screen", "none"), options.pop("logprob_tol", "none")))
        return exact(*tensors, **options)

    monkeypatch.setattr(scoring, "linear_logprob", watch)
    monkeypatch.setattr(forms, "linear_logprob", watch)
    return seen


def tolerance():
    return random.choice([10 ** random.uniform(-8, 2), random.randrange(1, 9)])


def test_a_wrapped_model_screens_unless_a_call_says_otherwise(calls):
    model, want = make("qwen2"), None
    inputs, targets = batch()
    for _ in range(12):  # wrapped again with another value, it has that one
        screen, tol = random.choice(KINDS), tolerance()
        assert LogprobHead.wrap(model, screen=screen, logprob_tol=tol) is model
        for _ in range(3):
            own = {"screen": random.choice(KINDS), "logprob_tol": tolerance()}
            own = {name: own[name] for name in own if random.random() < 0.5}
            got = model(**inputs, targets=targets, **own).logprobs
            assert calls.pop() == (own.get("screen", screen), own.get("logprob_tol", tol))
            assert want is None or torch.equal(got, want)
            want = got
    LogprobHead.wrap(model)
    model(**inputs, targets=targets)
    assert calls == [(None, 1e-4)]
    assert model(**inputs).logits.shape[-1] == model.config.vocab_size and len(calls) == 1


def test_copies_and_pickles_keep_it(calls):
    model = LogprobHead.wrap(make("gpt2"), screen="int8", logprob_tol=3e-3)
    inputs, targets = batch()
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        other(**inputs, targets=targets)
        assert calls.pop() == ("int8", 3e-3)
    own = copy.deepcopy(model)
    LogprobHead.wrap(own, screen="auto")  # its own, not the first one's
    for each, want in ((model, ("int8", 3e-3)), (own, ("auto", 1e-4))):
        each(**inputs, targets=targets)
        assert calls.pop() == want


def test_a_head_whose_vocabulary_was_resized_is_wrapped_with_a_screen_again(calls):
    model = LogprobHead.wrap(make("qwen2"), screen="int8")
    inputs, targets = batch()
    model.resize_token_embeddings(model.config.vocab_size + 3)
    LogprobHead.wrap(model, screen="auto", logprob_tol=1)
    model(**inputs, targets=targets)
    assert calls == [("auto", 1)]


BAD = [
    ({"screen": "int4"}, ValueError, "screen must be None, 'int8', 'fp8', 'auto'; got 'int4'"),
    ({"screen": "INT8"}, ValueError, "screen must be None, 'int8', 'fp8', 'auto'; got 'INT8'"),
    ({"screen": 8}, ValueError, "screen must be None, 'int8', 'fp8', 'auto'; got 8"),
    ({"screen": True}, ValueError, "screen must be None"),
    ({"logprob_tol": 0}, ValueError, "logprob_tol must be"),
    ({"logprob_tol": -1e-4, "screen": "int8"}, ValueError, "logprob_tol must be"),
    ({"logprob_tol": math.nan, "screen": "auto"}, ValueError, "logprob_tol must be"),
    ({"logprob_tol": math.inf}, ValueError, "logprob_tol must be"),
    ({"logprob_tol": "1e-4"}, TypeError, "logprob_tol must be"),
    ({"logprob_tol": None, "screen": "int8"}, TypeError, "logprob_tol must be"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_values_are_refused_before_anything_is_changed(options, error, message):
    model = make("qwen2")
    kind = type(model)
    with pytest.raises(error, match=f"LogprobHead.wrap: {message}"):
        LogprobHead.wrap(model, **options)
    assert type(model) is kind and not isinstance(model.lm_head, LogprobHead)


def test_a_call_refuses_bad_values_and_near_names():
    model = LogprobHead.wrap(make("qwen2"))
    inputs, targets = batch()
    with pytest.raises(ValueError, match="screen must be None.*got 'int4'"):
        model(**inputs, targets=targets, screen="int4")
    with pytest.raises(ValueError, match="logprob_tol must be"):
        model(**inputs, targets=targets, screen="auto", logprob_tol=-1)
    for name in ("screens", "logprobs_tol"):
        with pytest.raises(TypeError, match=f"'{name}' is not an option.*screen.*logprob_tol"):
            model(**inputs, targets=targets, **{name: 1})
    with pytest.raises(TypeError, match="targets are missing.*screen"):
        model(**inputs, screen="auto")


@pytest.mark.parametrize("screen", ["int8", "auto"])
def test_of_few_tokens_it_is_exact(screen):
    """With gradients; also where the model is compiled."""
    results = []
    inputs, targets = batch()
    for options in ({}, {"screen": screen}, {"screen": screen, "compiled": True}):
        model = make("qwen2")
        compiled = options.pop("compiled", False)
        LogprobHead.wrap(model, **options)
        call = torch.compile(model, backend="aot_eager") if compiled else model
        out = call(**inputs, targets=targets, temperature=0.7)
        (out.logprobs.sum() + out.entropy.sum()).backward()
        results.append([out.logprobs, out.entropy, *(p.grad for p in model.parameters())])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.fixture
def group(tmp_path):
    if not dist.is_available():
        pytest.skip("this PyTorch is built without torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_sharded_heads_are_asked_for_it(group, calls, precision):
    """FSDP1 and FSDP2; the head in the root and as a unit of its own."""
    from .test_wrap_fsdp import fsdp1, sharded

    inputs, targets = batch()
    for outer in (
        lambda model: sharded(model, "root", precision),
        lambda model: sharded(model, "layers+head", precision),
        lambda model: fsdp1(model, precision, True),
    ):
        tol = tolerance()
        model = outer(LogprobHead.wrap(make("qwen2"), screen="int8", logprob_tol=tol))
        model(**inputs, targets=targets, temperature=0.9).logprobs.sum().backward()
        assert calls.pop() == ("int8", tol)
        with torch.no_grad():
            model(**inputs, targets=targets, screen="auto", logprob_tol=0.6)
        assert calls.pop() == ("auto", 0.6), "a float among the arguments is not cast"
        assert not calls


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("units", ["root", "layers+head"])
def test_a_sharded_head_with_a_screen_gives_the_same(group, units):
    from .test_wrap_fsdp import sharded

    inputs, targets = batch()
    alone = LogprobHead.wrap(make("qwen2"))
    model = sharded(LogprobHead.wrap(make("qwen2"), screen="int8"), units, None)
    grads = []
    for each in (alone, model):
        out = each(**inputs, targets=targets, temperature=0.9)
        (out.logprobs.sum() + out.entropy.sum()).backward()
        grads.append(
            [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in each.parameters()]
        )
    for got, want in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_head_alone_passes_it_on(calls):
    head = LogprobHead(nn.Linear(8, 50))
    hidden, targets, tol = torch.randn(5, 8), torch.randint(0, 50, (5,)), tolerance()
    head(hidden, targets, screen="auto", logprob_tol=tol)
    assert calls == [("auto", tol)]
