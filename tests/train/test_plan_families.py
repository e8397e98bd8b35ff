"""Shapes of known models against published counts; known GPUs; questions by the set's name."""

from __future__ import annotations

import random
import re
import time

import pytest

from siri_train.config.base import ConfigError
from siri_train.config.data import SourceConfig
from siri_train.plan.families import known_config, known_models
from siri_train.plan.gpus import GPUS, gpu_of, matching
from siri_train.plan.memory import Sizes
from siri_train.plan.questions import known_rows

SEED = int(time.time())

# Parameters as the hub counts the stored weights; tied embeddings are stored once.
EXACT = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-4B-Thinking-2507": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}
POSITIONS = {
    "deepseek-ai/DeepSeek-R1-Distill": 131072, "Qwen/Qwen3-4B-Thinking": 262144,
    "Qwen/Qwen3-4B-Instruct-2507": 262144, "Qwen/Qwen3": 40960, "Qwen/Qwen2.5-Math": 4096,
    "Qwen/Qwen2.5-0.5B": 32768, "Qwen/Qwen2.5-1.5B-Instruct": 32768,
    "Qwen/Qwen2.5-7B-Instruct": 32768, "Qwen/Qwen2.5": 131072, "HuggingFaceTB/SmolLM2": 8192,
}  # fmt: skip
TIED = re.compile(r"Qwen3-(0\.6|1\.7|4)B|Qwen2\.5-(0\.5|1\.5)B|Qwen2\.5-Math-1\.5B|SmolLM2")


@pytest.mark.parametrize("name", known_models())
def test_a_shape_has_the_models_parameters_positions_and_tied_head(name: str) -> None:
    config = known_config(name)
    sizes = Sizes.of(config)
    if name in EXACT:
        assert sizes.parameters == EXACT[name]
    assert sizes.tied == bool(TIED.search(name))
    prefix = next(key for key in POSITIONS if name.startswith(key))
    assert config.max_position_embeddings == POSITIONS[prefix]
    named = re.search(r"([0-9.]+)([BM])\b", name)
    assert named is not None
    size = float(named[1]) * {"B": 1e9, "M": 1e6}[named[2]]
    # Names round down, and those of Qwen and DeepSeek leave out the embedding of small models.
    assert 0.94 * size < sizes.parameters < 1.2 * size


def test_names_are_found_in_any_case_and_unknown_ones_are_listed() -> None:
    draw = random.Random(SEED)
    name = draw.choice(known_models())
    mixed = "".join(draw.choice((c.upper(), c.lower())) for c in name)
    assert Sizes.of(known_config(mixed)) == Sizes.of(known_config(name)), SEED
    with pytest.raises(ConfigError, match=r"model\.path: 'a/b' .*one of .*SmolLM2-135M") as error:
        known_config("a/b")
    assert "\n" not in str(error.value)


def test_gpus_are_found_by_name_and_by_device() -> None:
    for name, gpu in GPUS.items():
        assert gpu_of(name.upper()) is gpu
        assert 0 < gpu.network <= gpu.link < gpu.bandwidth < gpu.flops
        assert 10 < gpu.memory_gb < 300
    assert gpu_of("a100").memory_gb == 80
    with pytest.raises(ConfigError, match="--gpu: got 'h300'; takes one of .*h100.*mi300x"):
        gpu_of("h300")
    found = matching("NVIDIA A100-SXM4-40GB", 42.3)
    assert found is not None and found.name == "a100-40" and found.memory_gb == 42.3
    h200 = matching("NVIDIA H200", 150.1)
    assert h200 is not None and h200.name == "h200"
    assert matching("NVIDIA GeForce GT 710", 2.0) is None


@pytest.mark.parametrize(
    ("path", "more", "rows"),
    [
        ("hub:agentica-org/DeepScaleR-Preview-Dataset", {}, 40315),
        (["data/deepscaler/train.jsonl", "hub:x/y"], {"limit": 1000}, 1000),
        ("data/deepscaler", {"split": "validation"}, 512),
        ("data/aime24.jsonl", {}, 30), ("data/AIME_2025.parquet", {"offset": 20}, 10),
        ("data/amc.jsonl", {}, 83), ("data/amc23.jsonl", {}, 40), ("data/math-500.jsonl", {}, 500),
        ("hub:openai/gsm8k:main", {}, 1319), ("data/gsm8k", {"split": "train"}, 7473),
        ("data/mine.jsonl", {}, None),
    ],
)  # fmt: skip
def test_questions_of_known_sets(path: object, more: dict[str, object], rows: int | None) -> None:
    source = SourceConfig(kind="file", path=path, **more)  # type: ignore[arg-type]
    assert known_rows(source, "test") == rows
