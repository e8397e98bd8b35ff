"""GRPO with accelerate, any number of processes: ``accelerate launch -m`` this module."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from examples.rollouts import GROUP, load, question_batches, rollout
from siri_kernels import LogprobHead, group_advantages, policy_loss, varlen


def train(steps: int = 20, mixed_precision: str = "no") -> list[float]:
    """Train the small model; returns the mean reward of each step, over all processes."""
    accelerator = Accelerator(mixed_precision=mixed_precision)
    set_seed(0, device_specific=True)
    model, tokenizer = load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    model, optimizer = accelerator.prepare(LogprobHead.wrap(model), optimizer)
    history = []
    for questions in question_batches(steps, 8 * accelerator.num_processes):
        mine = questions[accelerator.process_index :: accelerator.num_processes]
        inputs, rewards = rollout(accelerator.unwrap_model(model), tokenizer, mine)
        advantages = group_advantages(rewards, GROUP).advantages
        unmasked = inputs["targets"] != -100
        # Gradients are averaged over processes, so each divides by its share of all tokens.
        share = accelerator.reduce(unmasked.sum().float(), "mean")
        new = varlen.pack(model(**inputs).logprobs, mask=unmasked)
        old = new.values.detach()
        loss, _ = policy_loss(new.values, old, advantages, new.cu_seqlens, denominator=share)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append(accelerator.reduce(rewards.mean(), "mean").item())
        accelerator.print(f"reward {history[-1]:.2f}")
    return history


if __name__ == "__main__":
    train()
