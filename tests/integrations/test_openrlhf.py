"""OpenRLHF 0.11.2: its real single-turn executor, with a server that answers as told."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest

agent = pytest.importorskip("openrlhf.utils.agent", reason="OpenRLHF is not installed")

from siri_train.integrations.openrlhf import SiriAgentExecutor  # noqa: E402
from siri_train.rewards import ExactVerifier  # noqa: E402


class Tokenizer:
    """A letter a token."""

    def __call__(self, text, **_):
        import torch

        return {"input_ids": torch.tensor([[ord(c) for c in text]])}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(i) for i in ids)


class Engine:
    def __init__(self, text, reason):
        self.output = SimpleNamespace(
            token_ids=[ord(c) for c in text], text=text, finish_reason=reason, logprobs=None
        )

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        self.asked = prompt_token_ids, sampling_params.max_tokens
        return SimpleNamespace(outputs=[self.output])


@pytest.mark.parametrize(
    ("text", "reason", "reward", "correct"),
    [
        ("so \\boxed{4}", "stop", 1.0, 1.0),
        ("so \\boxed{4}", "length", 1.0, 1.0),  # the answer is before the end
        ("so \\boxed{5}", "stop", 0.0, 0.0),
        ("\\boxed{5", "length", 0.0, 0.0),
    ],
)
def test_reward_of_one_response(text, reason, reward, correct):
    engine, executor = Engine(text, reason), SiriAgentExecutor(ExactVerifier(), think="optional")
    params = SimpleNamespace(max_tokens=20, logprobs=None)
    out = asyncio.run(executor.execute("2+2 in \\boxed{4}?", "4", params, 64, Tokenizer(), engine))
    assert engine.asked == ([ord(c) for c in "2+2 in \\boxed{4}?"], 20)
    assert out["reward"] == out["scores"] == reward
    assert out["extra_logs"] == {"siri/correct": correct}
    assert out["truncated"] == (reason == "length")
    strict = SiriAgentExecutor(ExactVerifier(), think="optional", truncated="zero")
    out = asyncio.run(strict.execute("2+2 in \\boxed{4}?", "4", params, 64, Tokenizer(), engine))
    assert out["reward"] == (0.0 if reason == "length" else reward)


def test_it_is_what_openrlhf_loads():
    """``_load_agent_executor``: a subclass, made without arguments, executed with these names."""
    assert issubclass(SiriAgentExecutor, agent.AgentExecutorBase)
    ours, theirs = (
        list(inspect.signature(cls.execute).parameters)
        for cls in (SiriAgentExecutor, agent.SingleTurnAgentExecutor)
    )
    assert ours == theirs
    inspect.signature(SiriAgentExecutor).bind()
