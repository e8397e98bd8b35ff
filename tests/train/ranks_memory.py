"""Peaks of sharded updates on two ranks, beside the memory estimate; ``ranks.py`` calls it."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.memory import peak_bytes
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.model import fsdp
from siri_train.model.attention import prepare
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy, token_logprobs
from siri_train.plan.memory import Sizes, estimate
from siri_train.train import update
from siri_train.trainer.optimizer import make_optimizer
from tests.train.conftest import TINY
from tests.train.test_memory import beyond_given

CHECKPOINTING = "model.gradient_checkpointing=true"


def memory() -> dict[str, tuple[int, int]]:
    """Peaks of an update beyond weights and optimiser: (counted at operators, by the estimate)."""
    model = Qwen2Config(
        vocab_size=2048, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    tied = copy.deepcopy(model)
    tied.tie_word_embeddings = True
    many = copy.deepcopy(model)
    many.vocab_size = 8000
    mixed = "distributed.compute_dtype=bfloat16"
    cases: dict[str, tuple[Qwen2Config, int, tuple[str, ...]]] = {
        "the head": (model, 96, ()),
        "all activations": (model, 512, (mixed,)),
        "a layer computed again": (model, 512, (CHECKPOINTING,)),
        "mixed": (model, 512, (CHECKPOINTING, mixed)),
        "bfloat16": (model, 96, (CHECKPOINTING, "model.dtype=bfloat16")),
        "no reshard": (model, 512, (CHECKPOINTING, "distributed.reshard_after_forward=false")),
        "tied": (tied, 96, (CHECKPOINTING, mixed)),
        "sharded head": (many, 64, (CHECKPOINTING, "distributed.vocabulary_parallel_head=true")),
        "the root reduced": (many, 64, (CHECKPOINTING, "model.dtype=bfloat16")),
    }
    results = {}
    for name, (shape, budget, overrides) in cases.items():
        torch.manual_seed(0)
        recipe = {**copy.deepcopy(TINY), "schedule": {"max_len": 40, "min_len": 24, "cycle": 4}}
        recipe["train"] |= {"token_budget": budget, "mini_batches": 1}
        config = parse_config(recipe, overrides)
        policy = sharded_random(shape, config)
        optimizer = make_optimizer(policy.model, config.train)

        def one_update(
            count: int, length: int, shape: Any = shape, config: Any = config,
            policy: Policy = policy, optimizer: Any = optimizer,
        ) -> None:  # fmt: skip
            draw = torch.Generator().manual_seed(1)
            batch = [
                Sample(
                    list(range(8)),
                    torch.randint(0, shape.vocab_size, (length - 8,), generator=draw).tolist(),
                    [-1.0] * (length - 8),
                    1.0 if i % 2 else -1.0,
                )
                for i in range(count)
            ]
            update(
                policy, optimizer, batch, config.train, config.loss,
                temperature=1.0, constant_length=40, seed=0,
            )  # fmt: skip

        one_update(4, 16)  # from here on the optimiser's state and FSDP's buffers exist
        counted = peak_bytes(partial(one_update, 4, budget))
        expected = estimate(config, Sizes.of(shape), ranks=2, gpu=False)
        results[name] = (counted, beyond_given(expected))
    return results


def sharded_random(shape: Qwen2Config, config: RunConfig) -> Policy:
    """As ``load_policy`` makes it, with random weights of this shape."""
    model: Any = Qwen2ForCausalLM(shape).to(getattr(torch, config.model.dtype))
    prepare(model)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    fsdp.shard(
        model,
        torch.device("cpu"),
        methods={"siri_token_logprobs": token_logprobs},
        reshard_after_forward=config.distributed.reshard_after_forward,
        compute_dtype=getattr(torch, config.distributed.compute_dtype or "", None),
        vocabulary_parallel_head=config.distributed.vocabulary_parallel_head,
    )
    return Policy(model, tokenizer=None, eos_ids=frozenset([0]), softcap=None)
