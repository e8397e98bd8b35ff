"""A wrapped model under the casts and the wrappers of FSDP, in this one process."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from siri_kernels import LogprobHead

from .helpers import cpu_mesh
from .test_wrap import batch, expected, make

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="this PyTorch is built without torch.distributed"
)
TEMPERATURES = (0.6, 0.9, 1.1, 0.37)


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def forms(value, shape):
    """One temperature in every form that is no number."""
    return {
        "0-d float32": torch.tensor(value),
        "0-d float64": torch.tensor(value, dtype=torch.float64),
        "per token float32": torch.full(shape, value),
        "per token float64": torch.full(shape, value, dtype=torch.float64),
    }


def peaked(family):
    model = make(family)
    nn.init.normal_(model.get_output_embeddings().weight, std=2.0)
    return model


def sharded(model, units, param_dtype, **policy):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options = {
        "mesh": cpu_mesh(),
        "mp_policy": MixedPrecisionPolicy(param_dtype=param_dtype, **policy),
    }
    if "layers" in units:
        for layer in model.model.layers:
            fully_shard(layer, **options)
    if "base" in units:
        fully_shard(model.model, **options)
    if "head" in units:
        fully_shard(model.lm_head, **options)
    return fully_shard(model, **options)


@pytest.mark.draw(6)
@pytest.mark.parametrize("units", ["root", "layers", "head", "layers+head", "base+head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen2", "granite"])
def test_fsdp2_leaves_temperatures_as_they_are(units, dtype, family):
    tied = {"granite": {"tie_word_embeddings": False}}.get(family, {})
    model = sharded(LogprobHead.wrap(make(family, **tied)), units, dtype)
    inputs, targets = batch()
    with torch.no_grad():
        for value in TEMPERATURES:
            want = model(**inputs, targets=targets, temperature=value)
            for form, temperature in forms(value, targets.shape).items():
                got = model(**inputs, targets=targets, temperature=temperature)
                for a, b in zip(got[:2], want[:2], strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5, msg=f"{form} {value}")


class Own(nn.Module):
    """A model of a user's own, its head a LogprobHead that is called with a tensor."""

    def __init__(self):
        super().__init__()
        self.head = LogprobHead(nn.Linear(8, 50))

    def forward(self, hidden, targets, value):
        temperature = torch.full(targets.shape, float(value))
        return self.head(hidden, targets, temperature=temperature)


def test_a_head_alone_keeps_its_temperatures_too():
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.manual_seed(0)
    model = Own()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(model.head, mesh=cpu_mesh(), mp_policy=policy)
    hidden, targets = 9 * torch.randn(6, 8), torch.arange(6)
    with torch.no_grad():
        for value in TEMPERATURES:
            want = model.head(hidden, targets, temperature=value).logprobs
            torch.testing.assert_close(model(hidden, targets, value).logprobs, want)


class Outer(nn.Module):
    """As PeftModel: holds the wrapped model and calls its forward."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, **inputs):
        out = self.inner.forward(**inputs)
        return out._replace(logprobs=out.logprobs.clone(), entropy=out.entropy.clone())


@pytest.mark.parametrize("form", list(forms(1.0, (1,))))
def test_a_wrapper_outside_that_casts_is_refused_with_advice_that_helps(form):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    inputs, targets = batch()
    temperature = forms(0.6, targets.shape)[form]
    for advice in ({}, {"cast_forward_inputs": False}):
        model = Outer(LogprobHead.wrap(make("qwen2")))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, **advice)
        fully_shard(model, mesh=cpu_mesh(), mp_policy=policy)
        want = model(**inputs, targets=targets, temperature=0.6).logprobs
        if not advice:
            with pytest.raises(TypeError, match="temperature must be.*cast_forward_inputs=False"):
                model(**inputs, targets=targets, temperature=temperature)
        else:
            got = model(**inputs, targets=targets, temperature=temperature).logprobs
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)


def fsdp1(model, precision, orig, **options):
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

    def unit(module):
        return isinstance(module, LogprobHead) or type(module).__name__ == "Qwen2DecoderLayer"

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=functools.partial(lambda_auto_wrap_policy, lambda_fn=unit),
        mixed_precision=precision and MixedPrecision(param_dtype=precision, **options),
        use_orig_params=orig,
        device_id=torch.device("cpu"),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("orig", [False, True])
def test_fsdp1_takes_a_head_that_is_its_own_unit(precision, orig):
    inputs, targets = batch()
    alone = make("qwen2")
    want = expected(alone, inputs, targets, 0.8)
    up = torch.randn(2, *targets.shape)
    (want[0] * up[0] + want[1] * up[1]).sum().backward()
    model = fsdp1(LogprobHead.wrap(make("qwen2")), precision, orig)
    assert type(model.module.get_output_embeddings()).__name__ == "FullyShardedDataParallel"
    got = model(**inputs, targets=targets, temperature=0.8)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if precision is None else {"rtol": 0.1, "atol": 0.2}
    torch.testing.assert_close(got[:2], want, **tolerance)
    (got[0] * up[0] + got[1] * up[1]).sum().backward()
    norm = model.clip_grad_norm_(1e9)
    theirs = torch.stack([p.grad.norm() for p in alone.parameters()]).norm()
    torch.testing.assert_close(norm, theirs, rtol=1e-4 if precision is None else 0.1, atol=0)
    assert LogprobHead.wrap(model.module) is model.module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("orig", [False, True])
@pytest.mark.parametrize("unit", [nn.Linear, None])
def test_a_model_that_is_sharded_first_says_when_to_wrap(orig, unit):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    options = {"use_orig_params": orig, "device_id": torch.device("cpu")}
    policy = unit and ModuleWrapPolicy({unit})
    outer = FullyShardedDataParallel(make("qwen2"), auto_wrap_policy=policy, **options)
    message = "wrap it before fully_shard, FSDP or DeepSpeed"
    with pytest.raises(ValueError, match=message):
        LogprobHead.wrap(outer.module)
    with pytest.raises(ValueError, match=message):
        LogprobHead.wrap(fully_shard(make("qwen2"), mesh=cpu_mesh()))


@pytest.mark.filterwarnings("ignore")
def test_fsdp1_that_casts_a_temperature_is_refused_with_advice_that_helps():
    inputs, targets = batch()
    temperature = torch.full(targets.shape, 0.6)
    model = fsdp1(LogprobHead.wrap(peaked("qwen2")), torch.bfloat16, True)
    want = model(**inputs, targets=targets, temperature=0.6).logprobs
    with pytest.raises(TypeError, match="FSDP1: cast_root_forward_inputs=False"):
        model(**inputs, targets=targets, temperature=temperature)
    model = fsdp1(
        LogprobHead.wrap(peaked("qwen2")),
        torch.bfloat16,
        True,
        cast_root_forward_inputs=False,
        cast_forward_inputs=False,
    )
    got = model(**inputs, targets=targets, temperature=temperature).logprobs
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("units", ["root", "layers+head"])
def test_a_rule_changed_after_sharding_is_followed(units):
    model = LogprobHead.wrap(make("gemma2", tie_word_embeddings=False))
    alone = make("gemma2", tie_word_embeddings=False)
    model = sharded(model, units, None)
    inputs, targets = batch()
    with torch.no_grad():
        for cap in (None, 7.0, 3.0):
            model.config.final_logit_softcapping = alone.config.final_logit_softcapping = cap
            want = expected(alone, inputs, targets, 1.0)
            got = model(**inputs, targets=targets)[:2]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("orig", [False, True])
def test_a_rule_changed_under_fsdp1_is_followed(orig):
    inputs, targets = batch()
    alone = make("gemma2", tie_word_embeddings=False)
    model = fsdp1(LogprobHead.wrap(make("gemma2", tie_word_embeddings=False)), None, orig)
    with torch.no_grad():
        for cap in (3.0, None, 7.0):
            model.module.config.final_logit_softcapping = cap
            alone.config.final_logit_softcapping = cap
            want = expected(alone, inputs, targets, 1.0)
            got = model(**inputs, targets=targets)[:2]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
