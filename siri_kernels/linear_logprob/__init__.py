"""Hidden states x LM head -> log-prob of the target and entropy, without storing logits."""

from siri_kernels.linear_logprob.api import linear_logprob
from siri_kernels.linear_logprob.error_bound import BackwardStats, take_backward_stats
from siri_kernels.linear_logprob.head import LogprobHead
from siri_kernels.linear_logprob.screen.kept import release_screens
from siri_kernels.linear_logprob.screen.stats import ForwardStats, take_forward_stats
from siri_kernels.linear_logprob.selective import selective_logprob
from siri_kernels.linear_logprob.types import LogprobOutput

__all__ = [
    "BackwardStats",
    "ForwardStats",
    "LogprobHead",
    "LogprobOutput",
    "linear_logprob",
    "release_screens",
    "selective_logprob",
    "take_backward_stats",
    "take_forward_stats",
]
