"""GRPO as a LightningModule: ``python -m examples.lightning_module`` (needs lightning)."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from examples.rollouts import GROUP, load, question_batches, rollout
from siri_kernels import LogprobHead, group_advantages, policy_loss, varlen


class Grpo(lightning.LightningModule):
    """A batch is a list of questions."""

    def __init__(self) -> None:
        super().__init__()
        model, self.tokenizer = load()
        self.model = LogprobHead.wrap(model)
        self.history: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        inputs, rewards = rollout(self.model, self.tokenizer, batch)
        advantages = group_advantages(rewards, GROUP).advantages
        counted = inputs["targets"] != -100
        logprobs = varlen.pack(self.model(**inputs).logprobs, mask=counted)
        old = logprobs.values.detach()
        out = policy_loss(logprobs.values, old, advantages, logprobs.cu_seqlens)
        self.log("reward", rewards.mean(), prog_bar=True)
        self.history.append(rewards.mean().item())
        return out.loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch  # questions are text

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-4)


def train(steps: int = 20) -> list[float]:
    """Trains the small model; the mean reward of each step."""
    lightning.seed_everything(0)
    module = Grpo().train()
    data = torch.utils.data.DataLoader(list(question_batches(steps)), batch_size=None)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        gradient_clip_val=1.0, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return module.history


if __name__ == "__main__":
    train()
