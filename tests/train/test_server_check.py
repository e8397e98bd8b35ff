"""The settings of a server against those of the recipe: the error names what does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from siri_train.config.base import ConfigError
from siri_train.model.policy import Policy
from siri_train.rollout import EngineError
from siri_train.rollout.vllm.handshake import check_settings, read_settings
from siri_train.rollout.vllm.http_client import JsonClient
from tests.train.fake_vllm import TOO_OLD, FakeVllm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vllm": TOO_OLD},
            rf"vLLM {re.escape(TOO_OLD)} runs at .*, supported are 0\.\d+ to 0\.\d+;",
        ),
        ({"missing": {"/version": 404}}, "is no vLLM server"),
        ({"missing": {"/server_info": 404}}, "VLLM_SERVER_DEV_MODE=1"),
        ({"missing": {"/inference/v1/generate": 403}}, "--tokens-only"),
        ({"missing": {"/inference/v1/generate": 401}}, "VLLM_API_KEY"),
        ({"logprobs_mode": "raw_logprobs"}, r"before the temperature \(0\.7\).*processed_logprobs"),
        ({"max_model_len": 79}, "takes 79 tokens.*= 80.*--max-model-len 80"),
        ({"dtype": "torch.bfloat16"}, "torch.bfloat16, expected is float32.*--dtype float32"),
        ({"load_format": "dummy"}, "without it"),
        ({"shape": {"num_attention_heads": 8}}, "num_attention_heads is 8 there and 4 here"),
        ({"shape": {"vocab_size": 50}}, "another model: vocab_size is 50 there and 37 here"),
        ({"device": "cpu"}, "head size of 8"),
        ({"sync": "nccl"}, "--weight-transfer-config"),
    ],
)
def test_the_wrong_server_is_refused_by_name(
    fake: FakeVllm, policy: Policy, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shape = policy.model.config
    for name, value in change.items():
        if name in ("vllm", "missing"):
            setattr(fake, name, value)
        elif name == "load_format":
            fake.config["load_config"][name] = value
        elif name == "device":
            fake.config["device_config"][name] = value
        elif name == "shape":
            other = type(shape)(**{**shape.to_dict(), **value})
            other.save_pretrained(tmp_path / "model")
        elif name != "sync":
            fake.config["model_config"][name] = value
    sync = change.get("sync", "disk")
    with pytest.raises(ConfigError, match=message):
        settings = read_settings(JsonClient(fake.url))
        check_settings(
            settings,
            fake.url,
            model_config=shape,
            longest=80,
            temperature=0.7,
            dtype="float32",
            sync=sync,
        )


def test_something_else_answers_there(fake: FakeVllm) -> None:
    client = JsonClient(fake.url)
    fake.hook = lambda route, body: b"<html>" if route == "/version" else None
    with pytest.raises(ConfigError, match="does not answer as a vLLM server does.*not JSON"):
        read_settings(client)
    fake.hook = lambda route, body: {"vllm_config": {}} if route == "/server_info" else None
    with pytest.raises(ConfigError, match="does not answer as a vLLM server does.*model_config"):
        read_settings(client)
    fake.die()
    with pytest.raises(EngineError, match="version: ConnectionRefusedError"):
        read_settings(client)
    fake.start()


def test_a_tied_head_on_a_cpu_is_refused_and_an_untied_copy_is_pushed(
    fake: FakeVllm, policy: Policy, tmp_path: Path
) -> None:
    """vLLM on a CPU in float32 keeps a tied head stale; see LOG.md."""
    shape = policy.model.config
    shape.head_dim = 32  # that vLLM's CPU kernels take
    shape.save_pretrained(tmp_path / "model")
    fake.config["device_config"]["device"] = "cpu"

    def check() -> bool:
        return check_settings(
            read_settings(JsonClient(fake.url)),
            fake.url,
            model_config=shape,
            longest=80,
            temperature=1.0,
            dtype="float32",
            sync="disk",
        )

    with pytest.raises(ConfigError, match="tie_word_embeddings false in config.json"):
        check()
    other = type(shape)(**{**shape.to_dict(), "tie_word_embeddings": False})
    other.save_pretrained(tmp_path / "model")
    assert check()


def test_a_model_that_cannot_be_read_here_is_said(
    fake: FakeVllm, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.config["model_config"]["model"] = "/elsewhere/model"
    assert not check_settings(
        read_settings(JsonClient(fake.url)),
        fake.url,
        model_config=policy.model.config,
        longest=80,
        temperature=1.0,
        dtype="float32",
        sync="disk",
    )
    assert "/elsewhere/model cannot be read here" in capsys.readouterr().out
