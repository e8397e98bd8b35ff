"""Real vLLM on a CPU; run by ``make test-vllm`` in the environment of scripts/vllm.sh."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("tests.vllm.checks")  # so that a failure shows its values

# Not collected elsewhere: `make test` has no vLLM. Asked for by name there, pytest finds nothing
# and fails.
if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # vLLM compiles one function of its sampler in every process, 5 s of the test's time. Not
    # elsewhere: pytest reads this file in `make test` too, whose tests count what is compiled.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

    from siri_train.config.model import ArchitectureConfig, ModelConfig
    from siri_train.model.policy import Policy, load_policy
    from siri_train.rollout.vllm.engine import VllmEngine

PROMPTS = [[1, 12, 25, 8, 3], [1, 14, 8, 3], [1, 10, 30, 31, 32, 8, 3]]


def tiny_policy(seed: int = 0) -> Policy:
    """A random Qwen2 with a tied head, of a head size that vLLM's CPU kernels take."""
    torch.manual_seed(seed)
    shape = ArchitectureConfig(hidden_size=128, intermediate_size=128, layers=3, heads=4)
    policy = load_policy(ModelConfig(path="scratch", scratch=shape), torch.device("cpu"))
    assert policy.model.config.tie_word_embeddings
    with torch.no_grad():  # far from uniform, so that a wrong weight shows
        for parameter in policy.model.parameters():
            parameter.mul_(3)
    return policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture(scope="module")
def engine(policy: Policy) -> Iterator[VllmEngine]:
    """One vLLM a file: when one closes, vLLM takes the groups of every other in the process down.

    A test that changes weights puts them back and syncs.
    """
    made = VllmEngine(policy.model, 128, max_num_seqs=64)
    yield made
    made.close()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a folder that both sides load."""
    from siri_train.config.recipe import load_config
    from siri_train.model.gguf import convert_gguf

    source = load_config("smollm2-135m.yaml").model.convert_from
    assert source is not None
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    convert_gguf(source, folder, dtype="float32")
    return folder
