"""Runs and rates that others measured, as docs/plan.md lists them, and the model's values for them.

None was run by this project but the training step. Where a source gives no lengths the share of the
cap is an assumption, said beside it.
"""

from __future__ import annotations

from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig
from siri_train.plan.efficiency import FAST, SLOW, Efficiency
from siri_train.plan.families import known_config
from siri_train.plan.gpus import gpu_of
from siri_train.plan.memory import Sizes
from siri_train.plan.phases import step_time
from siri_train.plan.sampling_time import Sampler, step_seconds
from siri_train.plan.training_time import Machines, training_time

DISTILL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


def recipe(cap: int, *overrides: str) -> RunConfig:
    """A run as verl's of early 2025: log-probs of the trainer, a vLLM on 85 % of each GPU."""
    return load_config(
        "siri-1.5b",
        ["rollout.engine=vllm", "schedule.shape=constant", f"schedule.max_len={cap}",
         f"schedule.min_len={cap}", f"train.token_budget={max(32768, cap + 1024)}",
         "eval.budgets=[]", "checkpoint.lag=0", "rollout.vllm.gpu_memory_utilization=0.85",
         "rollout.vllm.max_num_seqs=1024", "loss.old_logprobs=recompute", *overrides],
    )  # fmt: skip


def step(
    config: RunConfig, gpu: str, ranks: int, share: float, model: str = DISTILL,
    speed: Efficiency = SLOW,
) -> float:  # fmt: skip
    """Seconds of a step."""
    time = step_time(
        config, Sizes.of(known_config(model)), Machines(ranks, gpu_of(gpu)),
        cap=config.schedule.max_len, share=share, prompt=150, speed=speed,
    )  # fmt: skip
    return time.rollout.seconds + time.training.seconds


def first_stage(gpu: str) -> float:
    """Seconds of one of the first steps of DeepScaleR's 8K stage on eight GPUs."""
    config = recipe(8192, "rollout.group_size=8", "loss.kl_coef=0.001")
    return step(config, gpu, 8, 5500 / 8192)


def deepscaler() -> float:
    """A100 hours of DeepScaleR: 1040, 480 and 230 steps at 8K, 16K, 24K on 8, 32, 32 GPUs.

    Lengths: 5500 to 3500 tokens in the first stage; 4400 and 4900 are assumed after it.
    """
    hours = 0.0
    for cap, group, gpus, steps, length in (
        (8192, 8, 8, 1040, 4100), (16384, 16, 32, 480, 4400), (24576, 16, 32, 230, 4900),
    ):  # fmt: skip
        config = recipe(cap, f"rollout.group_size={group}", "loss.kl_coef=0.001")
        hours += gpus * steps * step(config, "a100-80", gpus, length / cap) / 3600
    return hours


def polaris() -> float:
    """Seconds of a step of POLARIS-4B: 128 x 8 responses, 40K to 52K, half of the cap assumed."""
    config = recipe(48000, "rollout.group_size=8")
    return step(config, "h800", 32, 0.5, "Qwen/Qwen3-4B")


def decoding(model: str, gpu: str, batch: int, context: int) -> float:
    """Milliseconds of a decoding step of a bare vLLM."""
    sizes = Sizes.of(known_config(model))
    sampler = Sampler(1, 1, batch, None, False)
    return 1e3 * step_seconds(sizes, gpu_of(gpu), sampler, batch, context * batch, FAST)


def trained(context: int, liger: bool) -> float:
    """Tokens a second of the bench's training step: one sequence of ``context``, then three."""
    lengths = [context, *[context // 3] * 3]
    sizes = Sizes.of(known_config("Qwen/Qwen2.5-1.5B"))
    seconds = 0.0
    for length in lengths:
        config = load_config(
            "siri-1.5b",
            [f"schedule.max_len={length}", f"schedule.min_len={length}", "schedule.shape=constant",
             "eval.budgets=[]", "checkpoint.lag=0", "rollout.prompts=1", "rollout.group_size=2",
             "train.mini_batches=1", "model.dtype=bfloat16", "distributed.compute_dtype=null",
             f"model.liger={'on' if liger else 'off'}"],
        )  # fmt: skip
        time = training_time(
            config, sizes, Machines(1, gpu_of("h200")), cap=length, share=1.0, prompt=0,
            speed=FAST,
        )  # fmt: skip
        seconds += time.work / 2  # of two sequences
    return sum(lengths) / seconds


MEASURED = {
    # name: (measured, what the model says, fitted)
    "training step, 8192 tokens, Liger": (33500.0, lambda: trained(8192, True), True),
    "training step, 16384 tokens, Liger": (28700.0, lambda: trained(16384, True), False),
    "training step, 8192 tokens": (27000.0, lambda: trained(8192, False), True),
    "training step, 16384 tokens": (24200.0, lambda: trained(16384, False), False),
    "Qwen3-8B, H100, 4 sequences": (
        7.38, lambda: decoding("Qwen/Qwen3-8B", "h100", 4, 350), True,
    ),
    "Qwen3-14B, A100, 256 sequences": (
        55.5, lambda: decoding("Qwen/Qwen3-14B", "a100-80", 256, 350), True,
    ),
    "DeepScaleR, first steps, 8 A100": (394.0, lambda: first_stage("a100-80"), True),
    "DeepScaleR, first steps, 8 H200": (396.0, lambda: first_stage("h200"), False),
    "DeepScaleR, whole": (3800.0, deepscaler, False),
    "POLARIS-4B, a step": (28 * 86400 / 700, polaris, False),
}  # fmt: skip
"""Each figure, in the unit of its source (tokens/s, ms, s, GPU hours)."""
