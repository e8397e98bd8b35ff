"""GRPO in plain PyTorch: two updates a rollout. ``python -m examples.plain_pytorch``"""

import torch

from examples.rollouts import GROUP, load, question_batches, rollout
from siri_kernels import LogprobHead, group_advantages, policy_loss, varlen


def train(steps: int = 20) -> list[float]:
    """Trains the small model; the mean reward of each step."""
    torch.manual_seed(0)
    model, tokenizer = load()
    model = LogprobHead.wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    history = []
    for questions in question_batches(steps):
        inputs, rewards = rollout(model, tokenizer, questions)
        advantages = group_advantages(rewards, GROUP).advantages
        unmasked = inputs["targets"] != -100
        old = None
        for _ in range(2):
            logprobs = varlen.pack(model(**inputs).logprobs, mask=unmasked)
            old = logprobs.values.detach() if old is None else old
            loss, metrics = policy_loss(logprobs.values, old, advantages, logprobs.cu_seqlens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        history.append(rewards.mean().item())
        print(f"reward {history[-1]:.2f}, clipped {metrics['clip_frac_high']:.3f}")
    return history


if __name__ == "__main__":
    train()
