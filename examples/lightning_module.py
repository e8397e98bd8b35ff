"""GRPO as a LightningModule: ``python -m examples.lightning_module`` (needs lightning)."""

import lightning
import torch

from examples.rollouts import GROUP, load, question_batches, rollout
from siri_kernels import LogprobHead, group_advantages, policy_loss, varlen


class Grpo(lightning.LightningModule):
    """A batch is the number of a list of questions."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        model, self.tokenizer = load()
        self.model = LogprobHead.wrap(model)
        self.questions, self.history = list(question_batches(steps)), []

    def training_step(self, number: int, index: int) -> torch.Tensor:
        batch, rewards = rollout(self.model, self.tokenizer, self.questions[number])
        advantages = group_advantages(rewards, GROUP).advantages
        new = varlen.pack(self.model(**batch).logprobs, mask=batch["targets"] != -100)
        self.history.append(rewards.mean().item())
        loss, _ = policy_loss(new.values, new.values.detach(), advantages, new.cu_seqlens)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-4)


def train(steps: int = 20) -> list[float]:
    """Trains the small model; the mean reward of each step."""
    lightning.seed_everything(0)
    module = Grpo(steps).train()
    lightning.Trainer(max_epochs=1, gradient_clip_val=1.0, barebones=True).fit(module, range(steps))
    return module.history


if __name__ == "__main__":
    train()
