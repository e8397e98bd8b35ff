"""Rollouts: token-id prompts in, sampled responses with their log-probs out."""

from siri_train.rollout.data_parallel import SharedEngine
from siri_train.rollout.engine import (
    CANCELLED,
    Completion,
    Engine,
    EngineError,
    SamplingParams,
)
from siri_train.rollout.transformers_engine import TransformersEngine

__all__ = [
    "CANCELLED",
    "Completion",
    "Engine",
    "EngineError",
    "SamplingParams",
    "SharedEngine",
    "TransformersEngine",
]
