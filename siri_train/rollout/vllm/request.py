"""The request to a `vllm serve` for one response, and its answer: token ids, no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from siri_train.rollout.engine import Completion, SamplingParams
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.engine import response_seed


def request_body(
    name: str, prompt: Sequence[int], params: SamplingParams, index: int, k: int
) -> dict[str, Any]:
    """The request for one response, with its own seed.

    Args:
        name: unique on the server.
        prompt: token ids.
        params: how to sample.
        index: of the prompt in the call.
        k: of the response in its group.
    """
    return {
        "request_id": name,
        "token_ids": list(prompt),
        "sampling_params": {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "stop_token_ids": sorted(params.stop_token_ids),
            "ignore_eos": True,  # the ids above decide, not the server's folder
            "seed": response_seed(params.seed, index, k),
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        },
    }


def read_answer(answer: Any) -> tuple[Completion, set[str] | None]:
    """Read the answer to a request for one response.

    Returns:
        The response, with NaN where vLLM has no log-prob, and the names of the weights it was
        sampled with; None where the server's version does not say.

    Raises:
        KeyError, TypeError, ValueError, IndexError: an answer of another form.
    """
    (choice,) = answer["choices"]
    ids = [int(token) for token in choice["token_ids"]]
    logprobs = versions.logprobs_of(choice)
    reason = choice["finish_reason"]
    if len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probs")
    weights = versions.names_of_weights(choice)
    if reason not in ("stop", "length"):
        error = None if reason == "abort" else f"vLLM ended it with {reason!r}"
        return Completion(ids, logprobs, "abort", error=error), weights
    return Completion(ids, logprobs, reason), weights
