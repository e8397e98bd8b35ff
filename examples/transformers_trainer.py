"""GRPO on the Trainer of transformers: one method. ``python -m examples.transformers_trainer``"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from examples.rollouts import GROUP, load, question_batches, rollout
from siri_kernels import LogprobHead, group_advantages, policy_loss, varlen


class GrpoTrainer(Trainer):
    """Batches are questions; answers are sampled where other trainers compute a loss."""

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
        sampler = self.accelerator.unwrap_model(model)
        batch, rewards = rollout(sampler, self.processing_class, inputs["questions"])
        advantages = group_advantages(rewards, GROUP).advantages
        counted = batch["targets"] != -100
        logprobs = varlen.pack(model(**batch).logprobs, mask=counted)
        old = logprobs.values.detach()
        out = policy_loss(logprobs.values, old, advantages, logprobs.cu_seqlens)
        self.log({"reward": rewards.mean().item()})
        return out.loss


def train(steps: int = 20) -> list[float]:
    """Trains the small model; the mean reward of each step."""
    model, tokenizer = load()
    args = TrainingArguments(
        tempfile.mkdtemp(), learning_rate=5e-4, lr_scheduler_type="constant", max_steps=steps,
        per_device_train_batch_size=8, remove_unused_columns=False, report_to="none", seed=0,
        save_strategy="no", disable_tqdm=True, logging_steps=steps,
    )  # fmt: skip
    trainer = GrpoTrainer(
        LogprobHead.wrap(model),
        args,
        lambda rows: {"questions": rows},
        [question for batch in question_batches(steps) for question in batch],
        processing_class=tokenizer,
    )
    trainer.train()
    return [row["reward"] for row in trainer.state.log_history if "reward" in row]


if __name__ == "__main__":
    train()
