"""Rewards: extraction of the answer, its verification, and the reward functions."""

from siri_train.rewards import length, relative  # noqa: F401 - they fill REWARDS
from siri_train.rewards.code.sandbox import SandboxError
from siri_train.rewards.code.verifier import CodeVerifier
from siri_train.rewards.exact import exact_match
from siri_train.rewards.extract import final_answer, last_boxed
from siri_train.rewards.functions import (
    REWARDS,
    JudgedResponse,
    Reward,
    RewardGroup,
    require_fit,
    require_no_cap,
    reward_options,
)
from siri_train.rewards.grading import Grade, Response, grade_responses, require_single
from siri_train.rewards.toggle import TOGGLE
from siri_train.rewards.verify import (
    VERIFIERS,
    ExactVerifier,
    Limits,
    MathVerifier,
    Verifier,
    make_verifier,
)

__all__ = [
    "REWARDS",
    "VERIFIERS",
    "CodeVerifier",
    "ExactVerifier",
    "Grade",
    "JudgedResponse",
    "Limits",
    "MathVerifier",
    "Response",
    "Reward",
    "RewardGroup",
    "SandboxError",
    "Verifier",
    "exact_match",
    "final_answer",
    "grade_responses",
    "last_boxed",
    "make_verifier",
    "require_fit",
    "require_no_cap",
    "require_single",
    "reward_options",
]

REWARDS["toggle"] = TOGGLE
