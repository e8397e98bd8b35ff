"""GRPO on the Trainer of transformers: ``python -m examples.transformers_trainer``."""

from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from examples.rollouts import GROUP, load, questions, rollout
from siri_kernels import LogprobHead, group_advantages, policy_loss, varlen


class GrpoTrainer(Trainer):
    """A batch is a list of questions; the answers are sampled in ``compute_loss``."""

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
        """Roll out the questions and return the policy loss."""
        sampler = self.accelerator.unwrap_model(model)
        batch, rewards = rollout(sampler, self.processing_class, inputs)
        advantages = group_advantages(rewards, GROUP).advantages
        logprobs = varlen.pack(model(**batch).logprobs, mask=batch["targets"] != -100)
        old = logprobs.values.detach()
        self.log({"reward": rewards.mean().item()})
        loss, _ = policy_loss(logprobs.values, old, advantages, logprobs.cu_seqlens)
        return loss


def train(steps: int = 20, folder: str = "runs/transformers") -> list[float]:
    """Train the small model; returns the mean reward of each step."""
    model, tokenizer = load()
    args = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=5e-4, seed=0,
        lr_scheduler_type="constant", remove_unused_columns=False, save_strategy="no",
    )  # fmt: skip
    data = questions(8 * steps)
    trainer = GrpoTrainer(LogprobHead.wrap(model), args, list, data, processing_class=tokenizer)
    trainer.train()
    return [row["reward"] for row in trainer.state.log_history if "reward" in row]


if __name__ == "__main__":
    train()
