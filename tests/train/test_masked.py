"""What looks like a password is not shown, and what does not is shown as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.checkpoint.resume import compare_with_before
from siri_train.cli import main
from siri_train.config.masked import masked, masked_settings
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.report import write_report
from tests.train.conftest import TINY

SECRET = "TOPSECRET"
KEYS = st.sampled_from(["api_key", "api-key", "password", "hf_token", "token", "secret", "passwd",
                        "credentials", "auth_token", "passphrase"])  # fmt: skip
FLAGS = st.sampled_from(["--api-key", "--api_key", "--hf-token", "--ssl-keyfile-password",
                         "--API-KEY", "--kv.config-token"])  # fmt: skip
VALUES = st.text("ab1/.-_+", max_size=4).map(lambda text: f"x{text}{SECRET}")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(KEYS, FLAGS, VALUES, st.sampled_from([None, True, False]))
def test_settings_lose_their_secrets_and_nothing_else(
    key: str, flag: str, value: str, flow: bool | None
) -> None:
    plain = {"model": {"path": "/x/token_y"}, "eos_token": "</s>", "tokens": [1, 2], "seed": 0}
    secret = {"server": {key: value, "args": [flag, value, "--max-num-seqs", "8"],
                         "url": f"http://u:{value}@h:1/v"}}  # fmt: skip
    for write in (
        lambda data: yaml.safe_dump(data, default_flow_style=flow, width=1000),
        lambda data: json.dumps(data),
        str,
    ):
        assert masked_settings(write(plain)) == write(plain)
        shown = masked_settings(write({**plain, **secret}))
        assert SECRET not in shown
        for kept in ("/x/token_y", "</s>", "--max-num-seqs", "@h:1/v"):
            assert kept in shown
    assert SECRET not in masked_settings(f"[{flag}={value}]")


def test_a_recipe_of_this_version_is_shown_as_it_is() -> None:
    for config in (RunConfig(), parse_config(TINY, ["rollout.server.url=http://h:1"])):
        assert masked_settings(config.to_yaml()) == config.to_yaml()


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text("aZ9/_-. :@", max_size=30))
def test_messages_stay_as_they_are_but_for_addresses(text: str) -> None:
    assert "://" in text or masked(f"--token is not taken: {text}").endswith(text)
    assert SECRET not in masked(f"model.path: 'https://u:a/{SECRET}@h/{text}' does not exist")
    assert SECRET not in masked(f"{text} hf_{SECRET * 3} {text}")


def test_a_run_of_an_older_version_shows_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml may hold what is refused today."""
    config = parse_config(TINY, [f"output={tmp_path}"])
    old = yaml.safe_load(config.to_yaml())
    old["rollout"]["server"] |= {"url": f"http://u:{SECRET}@h:1", "args": ["--api-key", SECRET]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    compare_with_before(config)
    out = capsys.readouterr().out
    assert "rollout.server.url was http://***@h:1" in out and SECRET not in out
    page = write_report(tmp_path).read_text()
    assert "***@h:1" in page and SECRET not in page


def test_the_command_line_repeats_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo.yaml", f"model.path=https://u:{SECRET}@h/x", "--dry-run"]) == 1
    err = capsys.readouterr().err
    assert "model.path: 'https://***@h/x'" in err and SECRET not in err
