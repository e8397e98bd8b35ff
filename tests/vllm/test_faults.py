"""What goes wrong with a vLLM as a whole; every test starts its own."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from siri_train.rollout import EngineError
from siri_train.rollout.vllm import engine as vllm_engine
from siri_train.rollout.vllm.engine import VllmEngine
from siri_train.trainer.sync_probe import SyncError
from tests.vllm.conftest import tiny_policy
from tests.vllm.test_probe import probe


def test_the_stale_tied_head_of_vllm_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known case, not planted: vLLM's own reload of a tied float32 model without untying."""
    policy = tiny_policy(1)
    for name in ("write_engine_folder", "named_weights"):
        real = getattr(vllm_engine, name)
        monkeypatch.setattr(
            vllm_engine, name, lambda *a, real=real, **k: real(*a, **{**k, "untie": False})
        )
    engine = VllmEngine(policy.model, 128, max_num_seqs=64)
    try:
        with pytest.raises(SyncError, match="a tied lm_head above all"):
            probe(engine, policy).after_sync(5)
    finally:
        engine.close()


def test_nan_weights_are_seen_and_stay_in_the_cache() -> None:
    """Keys and values of NaN stay after new weights; a new engine has none."""
    policy = tiny_policy()
    engine = VllmEngine(policy.model, 128, max_num_seqs=64)
    norm = policy.model.model.norm.weight
    kept = norm.detach().clone()
    try:
        look = probe(engine, policy)
        assert look.look(5) < 1e-5
        with torch.no_grad():
            norm.fill_(float("nan"))
        engine.sync()
        with pytest.raises(SyncError, match="NaN in the weights"):
            look.look(5)
    finally:
        with torch.no_grad():
            norm.copy_(kept)
        engine.close()
    engine = VllmEngine(policy.model, 128, max_num_seqs=64)
    assert probe(engine, policy).look(5) < 1e-5
    engine.close()


@pytest.mark.parametrize("gib", [1e-4, 1e5])
def test_a_cache_too_small_or_too_large_is_named(gib: float) -> None:
    with pytest.raises(EngineError, match="did not start.*rollout.vllm.cache_gib") as caught:
        VllmEngine(tiny_policy().model, 128, cache_gib=gib)
    assert "vailable memory" in str(caught.value.__cause__)  # vLLM's own words: what there is
    assert not dist.is_initialized()  # nothing of it is left over
