"""Log-probs and advantages of packed answers -> loss and its metrics."""

from siri_kernels.policy_loss.api import policy_loss
from siri_kernels.policy_loss.compiled import compile_loop
from siri_kernels.policy_loss.types import ROLLOUT_CORRECTIONS, PolicyLoss, RolloutCorrection

__all__ = ["ROLLOUT_CORRECTIONS", "PolicyLoss", "RolloutCorrection", "compile_loop", "policy_loss"]
