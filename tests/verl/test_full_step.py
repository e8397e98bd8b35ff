"""verl's own trainer on a CPU, from ``siri-train verl --launch``: two steps, one cycle."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from siri_train.rewards import last_boxed

from .cpu import ENVIRONMENT

ROOT = Path(__file__).parents[2]
# One process of each kind, a GPU that Ray believes in, and what wants CUDA kernels left out.
VERL = [
    "actor_rollout_ref.rollout.name=test",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "ray_kwargs.ray_init.num_cpus=16",
    "+ray_kwargs.ray_init.num_gpus=1",
    "+ray_kwargs.ray_init.include_dashboard=False",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "data.dataloader_num_workers=0",
    "trainer.rollout_data_dir=rollouts",
    "actor_rollout_ref.model.use_remove_padding=False",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.actor.use_torch_compile=False",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
]


pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, llama):
    """The run's folder, verl's log, and the metrics of its two steps."""
    import copy

    from siri_train.config.recipe import parse_config

    from .conftest import TINY

    folder = tmp_path_factory.mktemp("verl")
    overrides = ["schedule.cycle=2", "train.steps=2", "eval.every=2", "eval.at_start=false"]
    overrides += ["schedule.min_len=24", "train.lr=1e-4", "reward.workers=1"]
    overrides += [f"output={folder / 'run'}", f"model.path={llama}"]
    (folder / "tiny.yaml").write_text(parse_config(copy.deepcopy(TINY), overrides).to_yaml())
    argv = [sys.executable, "-m", "siri_train", "verl", "tiny.yaml", "--gpus", "1", "--launch"]
    with (folder / "log").open("w") as log:
        verl = subprocess.Popen(
            [*argv, *(word for key in VERL for word in ("--set", key))],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            verl.wait(timeout=3000)
        finally:
            with contextlib.suppress(ProcessLookupError):  # Ray's daemons, if it had to be stopped
                os.killpg(verl.pid, signal.SIGKILL)
    text = (folder / "log").read_text()
    assert verl.returncode == 0, text[-6000:]
    lines = re.findall(r"step:(\d+) - (.*)", text)
    steps = {
        int(step): {
            name: float(value)
            for name, value in re.findall(r"([\w/@.\-]+):(?:np\.\w+\()?(-?[\d.e+\-]+|nan)", line)
        }
        for step, line in lines
    }
    return folder, text, steps


def test_it_learns_from_what_it_samples(finished):
    _, _, steps = finished
    assert sorted(steps) == [1, 2]
    assert 0 < steps[1]["critic/score/mean"] < 1 and steps[1]["actor/grad_norm"] > 0
    assert steps[1]["actor/lr"] == 1e-4


def test_our_loss_and_head_were_in_use(finished):
    _, text, steps = finished
    assert "verl's fused head (impl_backend=triton) is linear_logprob" in text
    for metrics in steps.values():
        assert 0 <= metrics["actor/siri_clip_frac_low"] <= 1
        # The old log-probs are the server's: the first update's ratio is 1, the second's nearly.
        assert metrics["actor/siri_ratio_mean"] == pytest.approx(1, abs=0.02)
        assert 0 < metrics["actor/siri_approx_kl"] < 0.02


def test_responses_follow_the_cap(finished):
    """48 tokens at the first step, 24 at the second; validation at 48 in any case."""
    folder, text, steps = finished
    for step, cap in ((1, 48), (2, 24)):
        assert f"siri_single_turn: step {step}, responses of at most {cap} tokens" in text
        rows = [json.loads(line) for line in (folder / "rollouts" / f"{step}.jsonl").open()]
        assert len(rows) == 16 and {row["score"] for row in rows} <= {0.0, 1.0}
        for row in rows:
            assert not row["score"] or last_boxed(row["output"]).strip() == row["gts"]
        assert steps[step]["response_length/max"] <= cap
        assert steps[step]["critic/score/mean"] == sum(row["score"] for row in rows) / 16
    assert steps[1]["response_length/max"] > 24
    assert steps[2]["val-aux/tiny/siri_cap/mean@1"] == 48
    short, long = (steps[2][f"val-aux/tiny/siri_acc_at_{n}/mean@1"] for n in (24, 48))
    assert 0 <= short <= long == steps[2]["val-core/tiny/acc/mean@1"]


def test_siri_low_and_high_are_kept(finished, llama):
    folder, _, _ = finished
    checkpoints = folder / "run" / "checkpoints"
    manifest = json.loads((checkpoints / "manifest.json").read_text())
    assert (manifest["siri-low"]["step"], manifest["siri-high"]["step"]) == (1, 2)
    assert not (checkpoints / "global_step_1" / "actor").exists()  # verl keeps the last one
    start, low, high = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
        for path in (llama, checkpoints / "step_000001", checkpoints / "step_000002")
    )
    for before, after in ((start, low), (low, high)):
        assert any(not torch.equal(before[name], after[name]) for name in before)
