"""The agent loop and the reward manager, instantiated as verl does, with a scripted server."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.experimental.agent_loop import agent_loop as loops
from verl.protocol import DataProto
from verl.trainer.ppo.reward import load_reward_manager
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import get_dataset_class
from verl.workers.rollout.replica import TokenOutput

from siri_train.config.base import ConfigError
from siri_train.data.demo_task.questions import questions
from siri_train.model.demo_model import START_FOLDER
from siri_train.rewards import last_boxed


class ScriptedServer:
    """Answers with ``reply``, cut at ``max_tokens``; verl's vLLM server calls both "completed"."""

    def __init__(self, reply: list[int]) -> None:
        self.reply, self.asked = reply, []

    async def generate(self, prompt_ids, sampling_params, **rest):
        self.asked.append((list(prompt_ids), dict(sampling_params)))
        ids = self.reply[: sampling_params.get("max_tokens", 48)]
        return TokenOutput(token_ids=ids, log_probs=[-1.0] * len(ids), stop_reason="completed")


def tokenizer_of(config):
    return omega_conf_to_dataclass(config.actor_rollout_ref.model).tokenizer


def run_loop(config, server, name="siri_single_turn", **row):
    tokenizer = tokenizer_of(config)

    async def run():
        loop = hydra.utils.instantiate(
            config=loops._agent_loop_registry[name],
            trainer_config=loops.DictConfigWrap(config=config),
            server_manager=server,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=get_dataset_class(config.data),
            data_config=loops.DictConfigWrap(config.data),
            tools=loops.ToolListWrap([]),
        )
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True}
        return await loop.run(sampling, session_id=0, uid="u", index=0, **row)

    return asyncio.run(run())


def test_the_cap_follows_the_step(verl_config):
    """verl counts from 1, the schedule from 0; 48, 32, 16, 32 over a cycle of 4."""
    config, server = verl_config(), ScriptedServer([9] * 100)
    message = [{"role": "user", "content": questions(1, seed=5)[0].prompt}]
    caps = []
    for step in (0, 1, 2, 3, 4, 5, 6, np.int64(7)):
        out = run_loop(config, server, raw_prompt=message, global_steps=step)
        assert len(out.response_ids) == out.extra_fields["siri_cap"] == sum(out.response_mask)
        assert len(out.response_logprobs) == len(out.response_ids)
        caps.append(out.extra_fields["siri_cap"])
    assert caps == [48, 48, 32, 16, 32, 48, 32, 16]
    ids = tokenizer_of(config)(message[0]["content"])["input_ids"]
    assert all(prompt == ids for prompt, _ in server.asked)  # plain text through verl's template
    assert [p["max_tokens"] for _, p in server.asked] == caps
    assert all(p["temperature"] == 1.0 and p["logprobs"] for _, p in server.asked)


def test_validation_rows_keep_verls_own_loop(verl_config):
    import pyarrow.parquet

    config, server = verl_config(), ScriptedServer([9] * 100)
    agents = {
        kind: set(
            pyarrow.parquet.read_table(config.data[f"{kind}_files"])["agent_name"].to_pylist()
        )
        for kind in ("train", "val")
    }
    assert agents == {"train": {"siri_single_turn"}, "val": {"single_turn_agent"}}
    message = [{"role": "user", "content": questions(1, seed=5)[0].prompt}]
    out = run_loop(config, server, "single_turn_agent", raw_prompt=message, global_steps=3)
    assert len(out.response_ids) == 48 and "siri_cap" not in out.extra_fields


def test_a_cut_answer_without_a_step_is_refused(verl_config):
    message = [{"role": "user", "content": "1 + 1 ="}]
    with pytest.raises(ConfigError, match="no global_steps; takes trainer.use_v1=True"):
        run_loop(verl_config(), ScriptedServer([9]), raw_prompt=message)


@pytest.mark.parametrize(
    "key, error",
    [
        ("siri.schedule.max_len=64", "data.max_response_length: got 48; takes at least"),
        ("siri.schedule.cycle=3", "siri.schedule: .*cycle: got 3; takes an even number"),
        ("+siri.schedule.min=3", "siri.schedule.min: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_section_is_refused(recipe, key, error):
    from siri_train.integrations.verl import command
    from siri_train.integrations.verl.options import Machines

    with pytest.raises(ConfigError, match=error):
        command.prepare(recipe(), Machines(gpus=1), [key])


def test_a_reward_that_does_not_fit_the_caps_is_refused():
    from omegaconf import OmegaConf

    from siri_train.integrations.verl.settings import settings_of

    section = {
        "schedule": {"max_len": 48, "min_len": 24, "cycle": 4},
        "reward": {"function": "overlong", "options": {"buffer": 25}},
    }
    config = OmegaConf.create({"siri": section, "data": {"max_response_length": 48}})
    with pytest.raises(ConfigError, match="siri.reward.options.buffer: got 25; takes at most 24"):
        settings_of(config)
    config.siri.reward.options.buffer = 24
    assert settings_of(config).reward.options == {"buffer": 24}


def test_a_missing_section_is_named(verl_config):
    from omegaconf import open_dict

    config = verl_config()
    with open_dict(config):
        del config.siri
    message = [{"role": "user", "content": "1 + 1 ="}]
    with pytest.raises(Exception, match="siri: this section is missing; give .siri.schedule.max"):
        run_loop(config, ScriptedServer([9]), raw_prompt=message, global_steps=1)


def graded(config, manager, ids, gold, cap=None, padding=3):
    """One response through ``run_single``, as verl's agent-loop worker sends it."""
    responses = torch.tensor([[*ids, *[0] * padding]])
    prompts = torch.tensor([[5, 6]])
    mask = torch.tensor([[1] * (2 + len(ids)) + [0] * padding])
    fields = {} if cap is None else {"siri_cap": cap}
    data = DataProto(
        batch=TensorDict(
            {"prompts": prompts, "responses": responses, "attention_mask": mask}, batch_size=1
        ),
        non_tensor_batch={
            "reward_model": np.array([{"ground_truth": gold, "style": "rule"}], dtype=object),
            "data_source": np.array(["tiny"], dtype=object),
            "tool_extra_fields": np.array([fields], dtype=object),
        },
    )
    out = asyncio.run(manager.run_single(data))
    return out["reward_score"], out["reward_extra_info"]


@pytest.fixture
def judged(verl_config):
    config = verl_config("eval.budgets=[16,48]", "reward.think=optional")
    tokenizer = tokenizer_of(config)
    manager = load_reward_manager(config, tokenizer)
    assert type(manager).__name__ == "SiriRewardManager"
    question = questions(1, seed=5)[0]
    right = tokenizer(f" \\boxed{{ {question.answer} }}")["input_ids"]
    assert last_boxed(tokenizer.decode(right)).strip() == question.answer
    return config, manager, tokenizer, question.answer, right


@pytest.mark.parametrize("truncated", ["grade", "zero"])
def test_reward_is_one_for_a_right_answer_within_the_cap_alone(judged, truncated):
    config, manager, tokenizer, gold, right = judged
    reward = manager.settings.reward.model_copy(update={"truncated": truncated})
    manager.settings = manager.settings.model_copy(update={"reward": reward})
    cut = 1.0 if truncated == "grade" else 0.0  # no end token, and the answer stands there
    end = tokenizer.eos_token_id
    other = "1" if gold != "1" else "2"
    for ids, answer, cap, want in (
        ([*right, end], gold, 16, 1.0),
        ([*right, end], other, 16, 0.0),
        (right, gold, 16, cut),
        (right, gold, 48, cut),
        (right, other, 16, 0.0),
        ([*right, end], gold, len(right) + 1, 1.0),  # ends exactly at the cap
        ([], gold, 16, 0.0),
        ([end], gold, 16, 0.0),
    ):
        score, info = graded(config, manager, ids, answer, cap)
        assert score == info["acc"] == want
        assert info["siri_truncated"] == float(not ids or ids[-1] != end)
        assert info["siri_cap"] == cap and info["siri_length"] == len(ids)
        assert info["siri_correct"] == float(answer == gold and ids[: len(right)] == right)


def test_validation_is_told_at_every_budget(judged):
    config, manager, tokenizer, gold, right = judged
    filler = tokenizer(" wait")["input_ids"] * 20
    _, long = graded(config, manager, [*filler, *right, tokenizer.eos_token_id], gold)
    _, short = graded(config, manager, [*right, tokenizer.eos_token_id], gold)
    assert (long["siri_acc_at_16"], long["siri_acc_at_48"]) == (0.0, 1.0)
    assert (short["siri_acc_at_16"], short["siri_acc_at_48"]) == (1.0, 1.0)
    assert long["siri_cap"] == 48 and set(long) == set(short)


def test_math_verify_beside_hydra(verl_config):
    """hydra and math-verify want different ANTLR runtimes; verl's has to do."""
    config = verl_config("reward.verifier=math_verify", "reward.think=none", "reward.timeout=20")
    manager = load_reward_manager(config, tokenizer_of(config))
    answers = manager.verifier.verdicts([("\\frac{1}{2}", "0.5"), ("\\frac{1}{3}", "0.5")])
    assert answers == [True, False]
    manager.verifier.close()


@pytest.mark.parametrize(
    "extra, error",
    [
        ("reward.custom_reward_function.path=score.py", "reward.custom_reward_function.path: got"),
        ("reward.reward_model.enable=True", "reward.reward_model.enable: got True"),
    ],
)
def test_scores_that_would_be_ignored_are_refused(verl_config, extra, error):
    config = verl_config(extra=(extra,))
    from siri_train.integrations.verl import SiriRewardManager

    with pytest.raises(ConfigError, match=error):
        SiriRewardManager(config, tokenizer_of(config), None)


def saved(folder: Path, step: int) -> str:
    """What verl leaves at a step: its shards, and the weights for transformers."""
    actor = folder / f"global_step_{step}" / "actor"
    shutil.copytree(START_FOLDER, actor / "huggingface")
    (actor / "huggingface" / "step.txt").write_text(f"weights of {step}")
    (actor / "optim_world_size_1_rank_0.pt").write_text("moments")
    return str(actor.parent)


def test_ends_of_cycles_outlive_verls_retention(verl_config, tmp_path):
    from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback

    from siri_train.checkpoint.manifest import export

    config = verl_config("schedule.cycle=8", "train.steps=16", "checkpoint.lag=1")
    callback = build_checkpoint_callback(config)
    folder = Path(config.trainer.default_local_dir)
    for step in range(1, 14):
        made = saved(folder, step)
        callback.on_save(trainer=None, global_step=step, checkpoint_dir=made, async_save=False)
        shutil.rmtree(made)  # keep_last
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert kept == [f"step_{step:06d}" for step in (4, 5, 8, 9, 12, 13)]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["siri-low"] == {
        "step": 12, "path": "checkpoints/step_000012", "accuracy": None, "tokens": None,
    }  # fmt: skip
    assert manifest["siri-high"]["step"] == 8 and manifest["siri-high-lagged"]["step"] == 9
    assert [(e["which"], e["cycle"], e["step"]) for e in manifest["cycles"]] == [
        ("siri-low", 1, 4), ("siri-low-lagged", 1, 5), ("siri-high", 1, 8),
        ("siri-high-lagged", 1, 9), ("siri-low", 2, 12), ("siri-low-lagged", 2, 13),
    ]  # fmt: skip
    out = export(folder.parent, "siri-high")
    assert (out / "step.txt").read_text() == "weights of 8"
    assert (out / "model.safetensors").is_file()
    assert not list(out.glob("optim*"))


@pytest.mark.parametrize(
    "broken, error",
    [
        ("async", "async_save: got True"),
        ("elsewhere", "must be on a file system that all machines share"),
        ("shards", "save_contents must contain hf_model"),
    ],
)
def test_a_checkpoint_that_cannot_be_kept_stops_the_run(verl_config, broken, error):
    from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback

    config = verl_config()
    callback = build_checkpoint_callback(config)
    made = Path(saved(Path(config.trainer.default_local_dir), 2))
    if broken == "elsewhere":
        made = made.with_name("global_step_9")
    if broken == "shards":
        (made / "actor" / "huggingface" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=error):
        callback.on_save(None, 2, str(made), async_save=broken == "async")
    callback.on_save(None, 3, str(made), async_save=True)  # no end of a cycle: verl's business
