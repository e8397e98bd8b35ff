"""Memory by the estimate against peaks counted at PyTorch's operators; the paper's recipes fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from bench.memory import peak_bytes
from siri_kernels.linear_logprob.screen.quantise import screened_weight
from siri_train.commands.dry_run import dry_run
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config, parse_config
from siri_train.config.run import RunConfig
from siri_train.model.attention import prepare
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy
from siri_train.plan.memory import GB, Memory, Sizes, estimate
from siri_train.plan.rates import Rates, expected_hours, measured_rates
from siri_train.plan.text import describe_memory, describe_time, verdict
from siri_train.train import train, update
from siri_train.trainer.optimizer import make_optimizer
from tests.train.conftest import TINY

# What there is before an update starts, which peak_bytes does not count.
GIVEN = ("weights", "AdamW moments", "float32 master weights")


def qwen(hidden: int, intermediate: int, layers: int, heads: int, kv: int, vocabulary: int,
         tied: bool = False) -> Qwen2Config:  # fmt: skip
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
        tie_word_embeddings=tied, max_position_embeddings=131072,
    )  # fmt: skip


def beyond_given(memory: Memory) -> int:
    phases = (memory.training, memory.optimizer)
    return max(sum(v for name, v in parts.items() if name not in GIVEN) for parts in phases)


SHAPES = {
    "float32": (qwen(64, 160, 4, 4, 2, 512), "float32", 1024),
    "bfloat16": (qwen(64, 160, 4, 4, 2, 512, tied=True), "bfloat16", 1024),
    "no grouped heads": (qwen(96, 256, 6, 6, 6, 1024), "bfloat16", 512),
    # the head's lists
    "large vocabulary": (qwen(128, 344, 6, 8, 2, 16384, tied=True), "float32", 512),
    # the optimiser's step is the peak
    "optimiser": (qwen(128, 344, 2, 8, 2, 8000), "bfloat16", 64),
    "Llama": ("llama", "float32", 768),
}
CASES = [
    pytest.param(
        *SHAPES[name], checkpointing, lengths, id=f"{name}-{checkpointing}-{lengths} a row"
    )
    for name in SHAPES
    for checkpointing in (False, True)
    for lengths in (1, 4)
]  # fmt: skip


@pytest.mark.costly
@pytest.mark.draw(3)
@pytest.mark.parametrize(("shape", "dtype", "budget", "checkpointing", "lengths"), CASES)
def test_estimate_is_within_15_percent_of_the_measured_peak(
    shape: Any, dtype: str, budget: int, checkpointing: bool, lengths: int
) -> None:
    torch.manual_seed(0)
    kind: Any = Qwen2ForCausalLM
    if shape == "llama":
        kind = LlamaForCausalLM
        shape = LlamaConfig(
            vocab_size=700, hidden_size=80, intermediate_size=208, num_hidden_layers=5,
            num_attention_heads=5, num_key_value_heads=1, tie_word_embeddings=False,
        )  # fmt: skip
    model = kind(shape).to(getattr(torch, dtype))
    prepare(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model=model, tokenizer=None, eos_ids=frozenset([0]), softcap=None)
    config = parse_config(
        copy.deepcopy(TINY),
        ["schedule.max_len=40", f"train.token_budget={budget}", f"model.dtype={dtype}",
         f"model.gradient_checkpointing={str(checkpointing).lower()}", "train.mini_batches=1"],
    )  # fmt: skip
    optimizer = make_optimizer(model, config.train)
    draw = torch.Generator().manual_seed(1)

    def step(count: int, length: int) -> None:
        samples = [
            Sample(
                [0, 1],  # short: the estimate is of responses that fill the budget
                torch.randint(0, shape.vocab_size, (length - 2,), generator=draw).tolist(),
                [-1.0] * (length - 2),
                1.0 if i % 2 else -1.0,
            )
            for i in range(count)
        ]
        update(
            policy, optimizer, samples, config.train, config.loss,
            temperature=1.0, constant_length=40, seed=0,
        )  # fmt: skip

    step(2, 16)  # the optimiser's state exists from here on
    measured = peak_bytes(lambda: step(2 * lengths, budget // lengths))
    expected = beyond_given(estimate(config, Sizes.of(shape), gpu=False))
    assert expected == pytest.approx(measured, rel=0.15)


def test_state_before_an_update_is_counted_exactly() -> None:
    shape = qwen(64, 160, 3, 4, 2, 500)
    config = parse_config(copy.deepcopy(TINY), ["model.dtype=bfloat16"])
    model = Qwen2ForCausalLM(shape).bfloat16()
    optimizer = make_optimizer(model, config.train)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    memory = estimate(config, Sizes.of(shape), gpu=False)
    weights = sum(p.nbytes for p in model.parameters())
    state = [value for s in optimizer.state.values() for value in s.values() if value.ndim]
    assert memory.training["weights"] == weights == memory.training["gradients"]
    held = memory.training["AdamW moments"] + memory.training["float32 master weights"]
    assert held == sum(value.nbytes for value in state)


DISTILL_1_5B = qwen(1536, 8960, 28, 12, 2, 151936)
DISTILL_7B = qwen(3584, 18944, 28, 28, 4, 152064)
"""DeepSeek-R1-Distill-Qwen's config.json."""


@pytest.mark.parametrize(
    ("recipe", "shape", "parameters", "ranks", "gpu"),
    [
        ("siri-1.5b.yaml", DISTILL_1_5B, 1_777_088_000, 8, 80),
        ("siri-7b.yaml", DISTILL_7B, 7_615_616_512, 16, 80),
        ("siri-1.5b-1gpu.yaml", DISTILL_1_5B, 1_777_088_000, 1, 80),
    ],
)
def test_the_papers_recipes_fit(
    recipe: str, shape: Any, parameters: int, ranks: int, gpu: int
) -> None:
    config = load_config(recipe)
    # The paper's settings, whatever else is tuned to the machine.
    assert (config.schedule.max_len, config.schedule.min_len, config.schedule.cycle) == (
        16384, 8192, 640,
    )  # fmt: skip
    assert config.train.steps == 3 * 640 and config.train.lr == 1e-6
    assert config.rollout.prompts == 128 and config.rollout.group_size == 16
    assert config.rollout.prompts // config.train.mini_batches == 64
    assert (config.loss.clip_low, config.loss.clip_high) == (0.2, 0.28)
    assert config.rollout.temperature == 1.0

    counted = Sizes.of(shape)
    assert counted.parameters == parameters
    memory = estimate(config, counted, ranks=ranks)
    text = "\n".join(describe_memory(config, counted, memory, ranks, gpu))
    assert f"of {0.9 * gpu:.1f} usable ({gpu} GB)" in text and "\nfits" in text
    assert memory.peak < 0.9 * gpu * GB
    # Every rank can sample, so none may need less than the whole model in 16 bits.
    assert memory.totals["rollout"] > 2 * parameters
    assert memory.logits_eager > 50 * memory.logits_saved


def test_what_does_not_fit_names_the_key() -> None:
    config = load_config("siri-7b.yaml")
    shape = Sizes.of(DISTILL_7B)
    alone = estimate(config, shape, ranks=1)
    assert alone.training["weights"] == 4 * shape.parameters
    assert "does NOT fit" in verdict(config, alone, 80)
    crowded = load_config("siri-7b.yaml", ["rollout.engine=transformers", "rollout.batch_rows=64"])
    text = verdict(crowded, estimate(crowded, shape, ranks=16), 80)
    assert "does NOT fit" in text and "rollout.batch_rows (64)" in text
    stored = load_config(
        "siri-7b.yaml", ["model.gradient_checkpointing=false", "train.token_budget=17408"]
    )
    text = verdict(stored, estimate(stored, shape, ranks=16), 80)
    assert "does NOT fit" in text and "model.gradient_checkpointing=true" in text


def test_ranks_offload_and_adapters_move_what_they_should() -> None:
    shape = Sizes.of(DISTILL_7B)

    def of(ranks: int, *overrides: str) -> Memory:
        return estimate(load_config("siri-7b.yaml", overrides), shape, ranks=ranks)

    assert of(16).training["AdamW moments"] == 8 * shape.parameters // 16
    assert of(8).training["weights"] == 2 * of(16).training["weights"]
    assert of(16, "distributed.offload=true").optimizer["AdamW moments"] == 0
    whole = of(16, "distributed.reshard_after_forward=false").training["gathered weights"]
    assert whole == 2 * shape.parameters > of(16).training["gathered weights"]
    lora = of(1, "model.lora={rank: 16}", "model.dtype=bfloat16")
    assert lora.peak < of(1, "model.dtype=bfloat16").peak / 2


def test_the_heads_8_bit_copies_are_counted() -> None:
    shape = qwen(48, 160, 2, 4, 2, 9000)

    def of(*overrides: str, gpu: bool = False) -> dict[str, int]:
        config = parse_config(copy.deepcopy(TINY), list(overrides))
        return estimate(config, Sizes.of(shape), gpu=gpu).training

    name = "8-bit copies of the head"
    one = of("train.screen=int8")[name]
    made = screened_weight(torch.randn(9000, 48), torch.float32)
    assert one == made.codes.nbytes >= 0.9 * made.nbytes
    assert of("train.screen=auto", "loss.kl_coef=0.1")[name] == 2 * one
    assert name not in of() and name not in of("train.screen=auto", gpu=True)


def test_a_colocated_vllm_takes_its_share_and_gives_it_back_while_it_sleeps() -> None:
    shape = Sizes.of(DISTILL_7B)

    def of(*overrides: str) -> Memory:
        config = load_config("siri-7b.yaml", ["rollout.engine=vllm", *overrides])
        return estimate(config, shape, ranks=16, memory_gb=80)

    share = "vLLM's share"
    asleep = of("rollout.vllm.gpu_memory_utilization=0.5")
    assert asleep.rollout[share] == 40 * GB and share not in asleep.training
    awake = of("rollout.vllm.gpu_memory_utilization=0.5", "rollout.vllm.sleep_level=0")
    assert awake.totals["training"] == asleep.totals["training"] + 40 * GB
    assert awake.totals["optimizer"] == asleep.totals["optimizer"] + 40 * GB
    exact = of("rollout.vllm.cache_gib=4", "rollout.vllm.dtype=bfloat16").rollout
    assert exact["vLLM's weights"] == 2 * shape.parameters
    assert exact["vLLM's cache"] == 4 * 2**30
    server = load_config("siri-7b.yaml", ["rollout.engine=vllm-server"])
    elsewhere = estimate(server, shape, ranks=16, memory_gb=80)
    assert elsewhere.totals["rollout"] == asleep.totals["rollout"] - 40 * GB
    greedy = load_config(
        "siri-7b.yaml", ["rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.9"]
    )
    text = verdict(greedy, estimate(greedy, shape, ranks=16, memory_gb=80), 80)
    assert "does NOT fit" in text and "rollout.vllm.gpu_memory_utilization (0.9)" in text


@pytest.mark.costly
def test_hours_from_the_rates_of_a_run(tiny: Any, tmp_path: Path) -> None:
    run = train(tiny("train.steps=4", f"output={tmp_path / 'measured'}"))
    rates = measured_rates(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates is not None and rates.steps == 4
    assert min(r["time_rollout"] / r["tokens"] for r in rows) <= rates.rollout
    assert 0 < rates.filled <= 1
    longer = tiny("train.steps=400")
    text = dry_run(longer, rates_from=str(run))
    assert "h for 400 steps" in text and f"from 4 steps of {run}" in text
    # Every response of a step as measured, over steps whose caps average to 40.
    given = Rates(rollout=0.1, train=0.2, filled=0.5, steps=4, where=run)
    rollout, update_, evaluation = expected_hours(longer, given, eval_questions=10)
    assert rollout == pytest.approx(400 * 16 * 0.5 * 40 * 0.1 / 3600)
    assert update_ == pytest.approx(2 * rollout)
    # 200 cycle ends of each kind (400 is the last step), and the start; 56 tokens at most.
    assert evaluation == pytest.approx(201 * 10 * 0.5 * 56 * 0.1 / 3600)


def test_no_rates_no_hours(tiny: Any, tmp_path: Path) -> None:
    assert measured_rates(tmp_path) is None
    text = "\n".join(describe_time(tiny(), None, 16))
    assert "16 responses a step in 2 updates" in text and "unknown until a step" in text
    with pytest.raises(ConfigError, match="--rates"):
        dry_run(tiny(), rates_from=str(tmp_path))


def test_dry_run_plans_for_gpus_that_are_not_here(tiny: Any) -> None:
    config: RunConfig = tiny()
    text = dry_run(config, ranks=4, memory_gb=80)
    assert "GB on each of 4 ranks" in text and "fits: " in text and "of 72.0 usable" in text
    assert not config.run_dir.exists()
