"""Log-probs and advantages of packed answers -> loss and its metrics."""

from siri_kernels.policy_loss.api import policy_loss
from siri_kernels.policy_loss.types import PolicyLoss

__all__ = ["PolicyLoss", "policy_loss"]
