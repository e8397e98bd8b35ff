"""``LogprobHead``, the LM head that scores targets, and ``LogprobHead.wrap`` for whole models."""

from siri_kernels.linear_logprob.head.module import LogprobHead

__all__ = ["LogprobHead"]
