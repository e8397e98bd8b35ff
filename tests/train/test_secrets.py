"""Passwords and keys are refused where they would be written down, and are never repeated."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.files import written_aside
from siri_train.rollout.vllm import server_process
from siri_train.rollout.vllm.http_client import JsonClient
from tests.train.conftest import TINY

SECRET = "TOPSECRET"
AROUND = st.text("ab1/:@%?#&= '\"\\", max_size=4)


@pytest.mark.costly
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(["http", "https", "HTTP", "ftp", "", "h"]),
    st.sampled_from(["{}@h", "u:{}@h", "{}:p@h:1", "u:{}@h:99999", "u:{}@", "h:1/?key={}",
                     "h/#{}", "u:{}@[::1]:8", "u@x:{}@h", "[{}@h", "u:{}@h:x"]),
    AROUND,
    AROUND,
)  # fmt: skip
def test_an_address_with_a_password_is_refused_and_not_repeated(
    scheme: str, form: str, before: str, after: str
) -> None:
    url = f"{scheme}://" + form.format(before + SECRET + after)
    for value in (url, [url], {"a": url}):
        raw = {**TINY, "rollout": {**TINY["rollout"], "server": {"url": value}}}
        with pytest.raises(ConfigError, match="^config: rollout.server.url: ") as caught:
            parse_config(raw)
        assert SECRET not in str(caught.value) and str(caught.value).isprintable()
    with pytest.raises(ConfigError) as caught:
        parse_config(TINY, [f"rollout.server.url={url}"])
    assert SECRET not in str(caught.value)
    if "@" in url.partition("//")[2].partition("/")[0]:
        with pytest.raises(ValueError) as refused:
            JsonClient(url)
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://h:1", "https://gpu-1.example:8000/", "http://[::1]:8", "http://10.0.0.1:1/vllm"]
)
def test_an_address_without_is_taken(url: str) -> None:
    assert parse_config(TINY, [f"rollout.server.url={url}"]).rollout.server.url == url


KEY_FLAGS = st.sampled_from(["--api-key", "--api_key", "--API-KEY", "--api-k", "--api-ke",
                             "--hf-token", "--hf_token", "--ssl-keyfile-password", "--hf-tok",
                             "--ssl-keyfile-pass", "--kv-transfer-config.token"])  # fmt: skip
OPEN_FLAGS = st.sampled_from(["--host", "--port", "--hos", "--uds", "--trust-remote-code", "--ho",
                              "--trust", "--config", " --host", "--Trust_Remote"])  # fmt: skip
GOOD = st.sampled_from(["--tensor-parallel-size", "2", "--tokenizer", "--max-num-batched-tokens",
                        "--ssl-keyfile", "--return-tokens-as-token-ids", "key", "-O1",
                        "--allow-credentials", "--config-format", "--no-trust-remote-code",
                        '{"eos_token": "</s>"}', "--data-parallel-address"])  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(GOOD, max_size=3), st.one_of(KEY_FLAGS, OPEN_FLAGS), st.booleans(),
       st.lists(GOOD, max_size=3))  # fmt: skip
def test_flags_that_show_a_key_or_open_the_server_are_refused(
    before: list[str], flag: str, joined: bool, after: list[str]
) -> None:
    assert parse_config(with_args([*before, *after])).rollout.server.args == [*before, *after]
    given_ = [f"{flag}={SECRET}"] if joined else [flag, SECRET]
    with pytest.raises(ConfigError) as caught:
        parse_config(with_args([*before, *given_, *after]))
    message = str(caught.value)
    assert message.startswith("config: rollout.server.args: --") and "is not taken: " in message
    assert SECRET not in message and message.isprintable()


def with_args(args: Any) -> dict[str, Any]:
    return {**TINY, "rollout": {**TINY["rollout"], "server": {"args": args}}}


@pytest.mark.parametrize(
    "value",
    ["https://u:S@h", '{"password": "S"}', '{"a": {"api_key": "S"}}', "--endpoint=h://u:S@h"],
)
def test_values_that_hold_a_key_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="holds a password, a token or a key") as caught:
        parse_config(with_args(["--otlp-traces-endpoint", value.replace("S", SECRET)]))
    assert SECRET not in str(caught.value)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(["[--api-key, S", "--api-key S", "{--api-key: S}", "[[--api-key, S]]", "S",
                        "[--api-key, 'S", "[!!str S]", "[--api-key, *S]"]))  # fmt: skip
def test_spoilt_arguments_are_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TINY, ["rollout.server.args=" + text.replace("S", SECRET)])
    assert SECRET not in str(caught.value)


def test_nothing_of_it_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for override in (f"url=http://u:{SECRET}@h:1", f"args=[--api-key, {SECRET}]"):
        for options in ([], ["--dry-run"]):
            assert main(["train", "demo.yaml", f"rollout.server.{override}", *options]) == 1
            out = capsys.readouterr()
            assert not out.out and SECRET not in out.err and out.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    assert SECRET not in RunConfig().to_yaml()


def test_an_own_server_listens_here_only_and_has_a_random_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    class Popen:
        def __init__(self, command: list[str], **options: Any) -> None:
            started.append((command, options["env"]))

    monkeypatch.setenv("VLLM_API_KEY", "of another server")
    monkeypatch.setattr(subprocess, "Popen", Popen)
    servers = [
        server_process.ServerProcess(tmp_path, [], tmp_path / "log", python="p") for _ in range(3)
    ]
    keys = {server.key for server in servers}
    assert len(keys) == 3 and min(map(len, keys)) >= 40
    for server, (command, environment) in zip(servers, started, strict=True):
        assert environment["VLLM_API_KEY"] == server.key
        assert server.key not in " ".join(command)  # which the log and `ps` show
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert server.key not in server.log.read_text() + server.url
        assert server.key not in repr(server)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_weights_are_as_readable_as_other_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with written_aside(tmp_path / "folder") as aside:
            (aside / "inner").mkdir()
            for folder in (aside, aside / "inner"):
                save_file({"a": torch.ones(2)}, folder / "model.safetensors")
            (aside / "config.json").write_text("{}")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(
        [
            "",
            "a" * 64,
            "a" * 63 + "." * 2,
            ".".join(["ab"] * 100),
            "ä",
            "a b",
            "[::1",
            "a%",
            "h:",
            "h:x",
            "h:-1",
            "h:65536",
            "h:99999999999",
            "h:0",
            "h/a b",
            "h/ä",
            "h/%0a",
        ]
    ),
    st.sampled_from(
        ["http://", "https://", "http:/", "", "ftp://", "file:///", "unix://", "http:"]
    ),
)
def test_what_is_no_address_is_refused(rest: str, scheme: str) -> None:
    if (scheme, rest) in [("http://", "h:"), ("https://", "h:")]:  # the scheme's own port
        return
    with pytest.raises(ConfigError, match="^config: rollout.server.url: got .*; takes ") as caught:
        parse_config(TINY, [f"rollout.server.url={scheme}{rest}"])
    assert str(caught.value).isprintable()
