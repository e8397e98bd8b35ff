"""Correctness out: the boxed answer of a response, its check, and the length-capping reward."""

from siri_train.rewards.exact import exact_match
from siri_train.rewards.extract import final_answer, last_boxed
from siri_train.rewards.length_cap import Grade, Response, length_capping_reward
from siri_train.rewards.verify import ExactVerifier, MathVerifier, Verifier, make_verifier

__all__ = [
    "ExactVerifier",
    "Grade",
    "MathVerifier",
    "Response",
    "Verifier",
    "exact_match",
    "final_answer",
    "last_boxed",
    "length_capping_reward",
    "make_verifier",
]
