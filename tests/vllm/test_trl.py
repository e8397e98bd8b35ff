"""TRL 1.16 with vLLM colocated: its own rollouts and weight sync, our head, loss, cap, reward."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
import trl.generation.vllm_generation as trl_vllm
import vllm._custom_ops as vllm_ops

from siri_kernels.integrations._grpo import LOSS_TYPES
from siri_kernels.integrations.trl import fused_lm_head
from siri_train.data.demo_task.questions import questions
from siri_train.integrations.trl import SiriGRPOTrainer, length_capped_reward
from siri_train.rewards import ExactVerifier
from siri_train.schedule import LengthSchedule
from tests.vllm.conftest import tiny_policy

SCHEDULE = LengthSchedule("cosine", 14, 6, 6)
STEPS = 7


class Recording(SiriGRPOTrainer):
    """Keeps what vLLM sampled, the weights it did so under, and stock TRL's loss beside ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.longest: list[int] = []
        self.cut: list[float] = []
        self.differences: list[float] = []
        self.weights: list[torch.Tensor] = []
        self.pairs: list[tuple[str, Any, Any]] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        out = super()._generate_and_score_completions(inputs)
        mask = out["completion_mask"].bool()
        apart = (out["sampling_per_token_logps"] - out["old_per_token_logps"])[mask].abs()
        last = out["completion_ids"].gather(1, mask.sum(1, keepdim=True) - 1)
        self.cut.append((last != self.processing_class.eos_token_id).float().mean().item())
        self.longest.append(int(mask.sum(1).max()))
        self.differences.append(apart.max().item())
        self.weights.append(self.model.lm_head.weight.detach().clone())
        return out

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        chosen = self.loss_type
        parameters = list(model.parameters())
        for kind in LOSS_TYPES:
            self.loss_type = kind
            both = []
            for loss_of in (trl.GRPOTrainer._compute_loss, SiriGRPOTrainer._compute_loss):
                loss = loss_of(self, model, inputs)
                both.append((loss.detach(), torch.autograd.grad(loss, parameters)))
            self.pairs.append((kind, *both))
        self.loss_type = chosen
        return super()._compute_loss(model, inputs)


@pytest.fixture
def trl_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What TRL's ``LLM(...)`` and its weight sync need where there is no GPU.

    vLLM 0.32 on a CPU packs each matrix for oneDNN when it loads and leaves an empty ``Parameter``
    without ``weight_loader``, so TRL's ``model.load_weights([(name, tensor)])`` fails at the first
    sync (``vllm/model_executor/layers/utils.py``, ``dispatch_cpu_unquantized_gemm``). Without
    oneDNN the matrices stay where they are and a tied head is never a stale copy. And vLLM rounds
    float32 models to bfloat16 unless told otherwise, which TRL has no option for.
    """
    kept = dict(os.environ)  # TRL sets RANK, WORLD_SIZE and more
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(vllm_ops, "_supports_onednn", False)
    exact = functools.partial(trl_vllm.LLM, dtype="float32", enforce_eager=True)
    monkeypatch.setattr(trl_vllm, "LLM", exact)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(kept)


def trainer_of(folder: Path, **options: Any) -> Recording:
    policy = tiny_policy()
    policy.model.save_pretrained(folder / "model")
    rows = questions(32, seed=3)
    data = {"prompt": [q.prompt for q in rows], "answer": [q.answer for q in rows]}
    args = trl.GRPOConfig(
        output_dir=str(folder / "out"), max_completion_length=SCHEDULE.max_len, num_generations=8,
        per_device_train_batch_size=16, max_steps=STEPS, learning_rate=3e-3, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
        logging_steps=1, disable_tqdm=True, temperature=0.9, lr_scheduler_type="constant",
        use_vllm=True, vllm_mode="colocate", vllm_max_model_length=64, **options,
    )  # fmt: skip
    siri = length_capped_reward(sorted(policy.eos_ids), verifier=ExactVerifier(), think="optional")

    def early(completion_ids: list[list[int]], **_: Any) -> list[float]:
        """So that there is something to learn: this model's answers are never right."""
        return [float(sum(ids) % 5) for ids in completion_ids]

    return Recording(
        model=str(folder / "model"), reward_funcs=[siri, early], args=args,
        train_dataset=datasets.Dataset.from_dict(data), processing_class=policy.tokenizer,
        length_schedule=SCHEDULE,
    )  # fmt: skip


@pytest.mark.usefixtures("trl_on_a_cpu")
def test_trl_samples_with_vllm_under_the_cap_and_with_the_new_weights(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, vllm_importance_sampling_mode="token_truncate")
    with fused_lm_head(tail=0.0) as head:
        trainer.train()
    caps = [SCHEDULE(step) for step in range(STEPS)]
    assert trainer.length_callback is not None and trainer.length_callback.caps == caps
    assert len(set(caps)) > 3 and trainer.longest == caps
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["siri/cap"] for row in rows] == caps
    assert [row["siri/truncated"] for row in rows] == pytest.approx(trainer.cut)
    assert 0 < min(trainer.cut) and sum(trainer.cut) < STEPS  # both kinds of answers
    assert head.calls > STEPS
    # Every step's samples are of the weights that the step before left: 1e-5; stale ones are 10
    # and more apart (measured with a sync that does nothing).
    steps = itertools.pairwise(trainer.weights)
    moved = [(after - before).abs().max().item() for before, after in steps]
    assert min(moved) > 1e-3 and max(trainer.differences) < 1e-4
    for kind, (want, theirs), (got, ours) in trainer.pairs:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6, msg=kind)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * theirs[0].abs().max().item())
