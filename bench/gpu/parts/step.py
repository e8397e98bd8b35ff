"""The training step of a 1.5B model on a machine that has torch and transformers alone.

It has packed sequences, ``linear_logprob`` on the hidden states that predict a response token,
``policy_loss`` and the trainer's optimiser with float32 masters. The part ``step-full`` runs the
same through the trainer's own code, which needs pydantic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from bench.gpu.context import Context
from bench.workloads.step_model import (
    MODEL_CONFIGS,
    flops,
    hidden_of,
    peak_flops,
    seconds,
    settle,
    sharpen,
    two_micro_batches,
)
from siri_kernels import LogprobHead, linear_logprob, policy_loss, take_backward_stats
from siri_train.model import attention
from siri_train.model.packing import MicroBatch, micro_batches
from siri_train.trainer.optimizer import MasterAdamW, clip_gradients

ENTROPY = 0.7  # nats, of a trained reasoning model


class PackedModel:
    """A causal language model that scores the response tokens of packed sequences."""

    def __init__(self, model_config: str, device: torch.device) -> None:
        torch.manual_seed(0)
        config = Qwen2Config(
            **MODEL_CONFIGS[model_config], max_position_embeddings=65_536, tie_word_embeddings=True
        )
        with device:
            self.model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, trust_remote_code=False
            )
        self.model.set_attn_implementation(attention.NAME)
        self.model.set_output_embeddings(LogprobHead(self.model.get_output_embeddings()))
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()

    def token_logprobs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy [T] of every response token."""
        with attention.packed_forward(batch.layout) as packed:
            hidden = self.model.base_model(input_ids=batch.input_ids, **packed).last_hidden_state
        out = self.model.get_output_embeddings()(hidden[0, batch.predictors], batch.targets)
        return out.logprobs, out.entropy


def run(context: Context) -> None:
    """8K and 16K tokens a row."""
    model_config = "tiny" if context.rehearse else "qwen2-1.5b"
    model = context.attempt("model", lambda: PackedModel(model_config, context.device.device))
    if model is None:
        return
    parameters = list(model.model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = MasterAdamW(groups, lr=1e-6, fused=True)
    context.say("model", shape=model_config, parameters=sum(p.numel() for p in parameters))
    for length in (64,) if context.rehearse else (8192, 16_384):
        if context.in_time(f"context {length}", 20):
            context.attempt(
                f"context {length}",
                lambda n=length: _case(context, model, optimizer, model_config, n),
            )
            context.device.free()


def _case(
    context: Context, model: PackedModel, optimizer: MasterAdamW, model_config: str, length: int
) -> None:
    """Tokens a second, utilisation, peak memory and the head's share of an update."""
    device = context.device.device
    samples = two_micro_batches(MODEL_CONFIGS[model_config]["vocab_size"], length)
    batches = list(micro_batches(samples, length, device))
    sharpen(model, batches[0], ENTROPY)
    for batch in batches:
        settle(model, batch)
    total = float(sum(batch.tokens for batch in batches))
    losses: list[Tensor] = []

    def update() -> None:
        for batch in batches:
            logprobs, entropy = model.token_logprobs(batch)
            loss, _ = policy_loss(
                logprobs, batch.old_logprobs, batch.advantages, batch.cu_seqlens,
                denominator=total, entropy=entropy, backend=context.backend,
            )  # fmt: skip
            loss.backward()
            losses.append(loss.detach())
        clip_gradients(model.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    update()  # compiles, and fills the optimiser's state
    context.device.synchronize()
    take_backward_stats()
    on_gpu = context.device.kind == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rounds = 1 if context.rehearse else 5
    took = seconds(update, device, rounds)
    stats = take_backward_stats()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    head = model.model.get_output_embeddings().weight
    inputs = [(hidden_of(model, b).requires_grad_(), b.targets) for b in batches]

    def head_alone() -> None:
        for hidden, targets in inputs:
            out = linear_logprob(hidden, head, targets)
            torch.autograd.grad(out.logprobs.sum(), (hidden, head))

    head_alone()
    alone = seconds(head_alone, device, rounds)
    lengths = [sample.length for sample in samples]
    rate = flops(model_config, lengths) / took
    limit = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
    width = model.model.config.hidden_size // model.model.config.num_attention_heads
    facts = {
        "tokens_per_s": sum(lengths) / took, "seconds": took, "tflops": rate / 1e12,
        "mfu": rate / limit if limit else None, "peak_gib": peak / 2**30,
        "head_share": alone / took,
        "dense_row_frac": None if stats is None else float(stats.dense_row_frac),
    }  # fmt: skip
    context.say(
        "step", context=length, entropy=ENTROPY, tokens=sum(lengths),
        losses=torch.stack(losses).tolist(),
        attention=attention.attention_backend(device, torch.bfloat16, width), **facts,
    )  # fmt: skip
    for name, value in facts.items():
        if value is not None:
            context.number(f"step.{name}.{length}", value)
    context.check(f"finite loss at {length}", bool(torch.stack(losses).isfinite().all()))
    if not context.rehearse and context.in_time("kernels of the step", 5):
        found = context.device.kernels(update)
        if found is not None:
            longest = found.pop("kernels")[:40]
            context.say("kernels", function="step", dim=length, kernels=longest, **found)
