"""A trial of the largest micro-batch before training, to find out about memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from siri_kernels import policy_loss, take_backward_stats, take_forward_stats
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.model.no_dropout import set_rl_mode
from siri_train.model.packing import Sample, micro_batches
from siri_train.model.policy import Policy
from siri_train.trainer.reference_model import Reference
from siri_train.trainer.update import backward


def rehearse(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    reference: Reference | None = None,
) -> None:
    """Two forward and backward passes over a full micro-batch of the longest possible sequences.

    The second pass adds to existing gradients, as in every update, and memory is reserved for
    AdamW's moments. Nothing is changed: no step is made and gradients are dropped.

    Args:
        policy: the model.
        optimizer: over its parameters.
        config: the recipe.
        reference: the model of the KL term, if the loss has one.

    Raises:
        ConfigError: out of memory, with the key to change.
    """
    samples = longest_samples(config)
    temperature = config.rollout.temperature
    set_rl_mode(policy.model)  # as every update
    with out_of_memory_named(config, policy.device, "the largest row there can be"):
        reserved = [
            torch.zeros_like(p, dtype=torch.float32)
            for group in optimizer.param_groups
            for p in group["params"]
            if not optimizer.state.get(p)
            for _ in range(_moments(optimizer))
        ]
        with torch.random.fork_rng():
            for batch in 2 * list(micro_batches(samples, config.train.token_budget, policy.device)):
                ref_logprobs = reference.token_logprobs(batch, temperature) if reference else None
                logprobs, entropy = policy.token_logprobs(
                    batch, temperature=temperature, tail=config.train.tail
                )
                loss, _ = policy_loss(
                    logprobs, batch.old_logprobs, batch.advantages, batch.cu_seqlens,
                    entropy=entropy, ref_logprobs=ref_logprobs,
                    denominator=float(batch.tokens), **config.loss.heaviest.options(),
                )  # fmt: skip
                backward(loss, batch)
        del reserved
    optimizer.zero_grad(set_to_none=True)
    take_backward_stats()
    take_forward_stats()
    if policy.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"{config.name}: a row of {sum(s.length for s in samples)} tokens, the largest there "
            f"can be, takes {peak:.1f} GiB",
            flush=True,
        )


def longest_samples(config: RunConfig) -> list[Sample]:
    """As many sequences of the longest prompt and response as a micro-batch holds, and the rest."""
    prompt, longest = config.data.max_prompt_len, config.schedule.max_len
    full, rest = divmod(config.train.token_budget, prompt + longest)
    lengths = [longest] * full + ([rest - prompt] if rest > prompt else [])
    return [
        # Tokens of every kind, so that the head's top entries are not those of one repeated token.
        Sample([1] * prompt, [i % 997 % 32 for i in range(n)], [-1.0] * n, advantage=1.0)
        for n in lengths
    ]


@contextmanager
def out_of_memory_named(config: RunConfig, device: torch.device, what: str) -> Iterator[None]:
    """Turn running out of memory in the body into an error that names the key to change.

    Args:
        config: the recipe.
        device: of the model.
        what: was done in the body, for the message.

    Raises:
        ConfigError: see :func:`advice`.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        of_cpu = "can't allocate memory" in str(error)
        if not isinstance(error, torch.OutOfMemoryError) and not of_cpu:
            raise
        first = str(error).splitlines()[0]
        raise ConfigError(f"{what} does not fit on {device}: {advice(config)} ({first})") from error


def advice(config: RunConfig) -> str:
    """The key whose change frees most memory at the least cost, given what is set already."""
    longest = config.data.max_prompt_len + config.schedule.max_len
    budget = config.train.token_budget
    if budget > longest:
        smaller = max(longest, budget // 2)
        return (
            f"set train.token_budget to {smaller} (it is {budget}; {longest}, one sequence, is the "
            "least), which changes the speed and nothing else"
        )
    if not config.model.gradient_checkpointing:
        return "set model.gradient_checkpointing=true"
    if config.model.dtype == "float32" and config.distributed.compute_dtype is None:
        return "set distributed.compute_dtype=bfloat16, or model.dtype=bfloat16 on a single GPU"
    if not config.distributed.offload:
        return "start more ranks with torchrun, or set distributed.offload=true under it"
    return (
        "start more ranks with torchrun, take a smaller model, or lower schedule.max_len and "
        "train.token_budget with it"
    )


def _moments(optimizer: torch.optim.Optimizer) -> int:
    from siri_train.trainer.optimizer import MasterAdamW

    return 3 if isinstance(optimizer, MasterAdamW) else 2
