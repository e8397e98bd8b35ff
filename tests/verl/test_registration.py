"""``import verl`` alone registers everything; what went wrong is said aloud."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from verl.trainer.ppo import core_algos

from siri_kernels.integrations import verl as plugin

LOOK = """
import json, sys
import verl
imported = sorted(name for name in sys.modules if name.split(".")[0] in ("vllm", "sglang", "wandb"))
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry as loops
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER as managers
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY as estimators
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as losses
found = [losses.get("siri"), estimators.get("siri_grpo"), managers.get("siri_capped")]
print(json.dumps({
    "found": [thing and f"{thing.__module__}.{thing.__qualname__}" for thing in found],
    "loop": loops.get("siri_single_turn"), "imported": imported,
    "head": "siri_kernels.integrations.verl_head" in sys.modules,
    "others": ["vanilla" in losses, "grpo" in estimators, "naive" in managers],
}))
"""


def look(code: str = LOOK, **environment: str) -> tuple[dict, str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_bare_import_of_verl_registers_all_four():
    seen, _ = look()
    assert seen["found"] == [
        "siri_kernels.integrations.verl.siri_loss",
        "siri_kernels.integrations.verl.siri_grpo",
        "siri_train.integrations.verl.reward.SiriRewardManager",
    ]
    assert seen["loop"] == {"_target_": "siri_train.integrations.verl.agent_loop.SiriAgentLoop"}
    assert seen["others"] == [True, True, True]
    assert seen["imported"] == [] and not seen["head"]  # kernels are replaced on demand alone


def test_a_verl_told_to_load_no_plugins_has_none():
    seen, _ = look(VERL_USE_EXTERNAL_PLUGINS="none")
    assert seen["found"] == [None, None, None] and seen["loop"] is None
    assert seen["others"] == [True, True, True]


def test_a_failure_that_verl_swallows_is_logged():
    broken = "import sys; sys.modules['siri_train.rewards'] = None\n" + LOOK
    seen, log = look(broken)
    assert seen["found"][2] is None and seen["found"][0] is not None
    assert "siri_train: agent loop and reward manager are not registered" in log


def test_another_contract_of_losses_is_refused(monkeypatch):
    def changed(old_log_prob, log_prob, advantages, response_mask, temperature): ...

    monkeypatch.setattr(core_algos, "compute_policy_loss_vanilla", changed)
    with pytest.raises(RuntimeError, match=r"verl 0\.9\.1: .*vanilla takes .*'temperature'"):
        plugin.register()
