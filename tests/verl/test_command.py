"""``siri-train verl``: the generated command, every key of a recipe, and what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from pydantic import BaseModel
from verl.utils.config import omega_conf_to_dataclass

from siri_train import cli
from siri_train.commands.parser import parse
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config, parse_config
from siri_train.config.run import RunConfig
from siri_train.integrations.verl import command
from siri_train.integrations.verl.options import (
    ELSEWHERE,
    LEFT_OUT,
    PLAIN_TEMPLATE,
    Machines,
    verl_options,
)
from siri_train.integrations.verl.settings import settings_of

ROOT = Path(__file__).parents[2]
FILES = {"model": "m", "train_file": "t", "eval_file": "e"}


# Another valid value for each key whose type alone does not give one.
OTHER = {
    "output": "runs/other",
    "device": "cpu",
    "threads": 3,
    "model.path": "x/y",
    "model.convert_from": "p:f.gguf",
    "model.scratch": {},
    "model.lora": {},
    "data.train": [{"kind": "embedded", "size": 64, "seed": 5}],
    "data.eval": [{"kind": "embedded", "size": 8, "seed": 6}],
    "data.system": "s",
    "data.instruction": "i",
    "model.lora.targets": ["q_proj"],
    "plugins": ["json"],  # any module
    "schedule.shape": "stair",
    "schedule.options": {},  # the shapes of the paper have none
    "reward.function": "length-cap",  # the others have options, which go with it
    "reward.options": {},
    "reward.verifier": "math_verify",
    "sft": {},
    "monitor.halt_on": ["grad-norm-spike"],
    "train.betas": [0.8, 0.9],
    "eval.budgets": [16, 24],
    "monitor.token_groups": {"doubt": ["maybe"]},
    "loss.objective": "sapo",
    "loss.dual_clip": 3.0,
    "loss.delta": 3.0,
    "loss.cispo_bounds": "trl",
    "loss.sapo_tau": [2.0, 3.0],
    "loss.ratio": "sequence",
    "loss.aggregation": "seq-mean-token-mean",
    "loss.off_policy_threshold": 0.1,
    "loss.kl_estimator": "k1",
    "loss.kl_limit": 10.0,
    "loss.reference": "x/y",
    "monitor.price_per_gpu_hour": 2.5,
    "monitor.wandb": "w",
    "monitor.trackio": "t",
    "distributed.compute_dtype": "bfloat16",
    "checkpoint.best": "accuracy",
    "loss.rollout_correction": {"mode": "mask", "low": 0.5, "high": 5.0},
    "rollout.vllm.gpu_memory_utilization": 0.7,
    "rollout.vllm.cache_gib": 1.0,
    "rollout.vllm.dtype": "bfloat16",
    "rollout.vllm.tensor_parallel_size": 1,  # it takes no other
    "rollout.probe.every": 3,
    "rollout.server.args": ["--x"],
    "rollout.server.url": "http://h:1",
    "loss.clip_low": 0.3,
    "advantage.eps": 1e-3,
    "train.tail": 0.1,
    "train.screen": "auto",
    "train.logprob_tol": 1e-3,
    "rollout.engine": "vllm-server",
    "rollout.probe.threshold": 0.5,
    "advantage.sas": {"share": 0.2},
    "loss.compression": {"entropy_coef": 0.1},
    "loss.expansion": {"clip_high": 0.5},
    "train.max_tokens": 1000,
    "eval.select": "held-out",
    "checkpoint.lag_window": 4,
}

# Another key without which a key has no effect, and a value of it with which it has one.
NEEDS = {
    "loss.cispo_bounds": ("loss.objective", "cispo"),
    "loss.sapo_tau": ("loss.objective", "sapo"),
    **{f"loss.{name}": ("loss.kl_coef", 0.1) for name in (
        "kl_estimator", "kl_unbiased", "kl_limit", "reference")},
}  # fmt: skip


def keys(model: type[BaseModel] = RunConfig, prefix: str = ""):
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def other(key, field, value):
    """A valid value that is not the default."""
    if key in OTHER:
        return OTHER[key]
    if key.startswith("monitor.alarms."):  # each has bounds of its own
        return type(value)(0.9 * value)
    choices = getattr(field.annotation, "__args__", ())
    names = [choice for choice in choices if isinstance(choice, str)]
    if names:
        return next((name for name in names if name != value), value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return {"train.mini_batches": 4, "schedule.cycle": 16, "schedule.min_len": 8,
                "checkpoint.every": 2, "rollout.top_p": 0.5, "train.token_budget": 512,
                "eval.top_p": 0.5, "schedule.max_len": 64, "checkpoint.lag": 2,
                "data.max_prompt_len": 20, "rollout.prompts": 8}.get(key, value + 1)  # fmt: skip
    return "other"


@pytest.mark.parametrize("key, field", list(keys()), ids=[key for key, _ in keys()])
def test_no_key_is_dropped_in_silence(key, field, recipe):
    """Changed, it changes verl's keys, or is refused by name, or a note says it is left out; or
    verl has nothing for what it needs."""
    dtype = "bfloat16" if key == "train.master_weights" else "float32"
    base = recipe("schedule.cycle=8", "train.steps=8", f"model.dtype={dtype}").model_dump()
    if key == "loss.rollout_correction":
        base["loss"]["old_logprobs"] = "recompute"
    if key == "eval.select":
        base["data"]["eval"][0]["name"] = "held-out"
    before = verl_options(parse_config(base), Machines(1), **FILES)

    def change(key, new):
        *path, name = key.split(".")
        section = base
        for part in path:
            section = section[part]
        value, section[name] = section[name], new(section[name])
        return value

    value = change(key, lambda value: other(key, field, value))
    needed, needed_value = NEEDS.get(key, (key, None))
    if key in NEEDS:
        change(needed, lambda _: needed_value)
    config = parse_config(base)
    try:
        after = verl_options(config, Machines(1), **FILES)
    except ConfigError as error:
        named = (f"{key}: got ", f"{key}.", f"{needed}: got ")  # of a section the key in it
        assert str(error).startswith(named), error
        return
    if key in set(ELSEWHERE) - {"output", "eval.budgets"}:
        return
    left_out = [name for name in LEFT_OUT if f"{key}.".startswith(f"{name}.")]
    noted = [note for note in after.notes if note.split(" = ")[0] in left_out]
    assert after.values != before.values or noted or value == other(key, field, value), key
    assert bool(noted) == bool(left_out)


@pytest.mark.parametrize(
    "overrides, machines, error",
    [
        (["train.mini_batches=3"], {}, "train.mini_batches: got 3; .* rollout.prompts = 4"),
        (["train.mini_batches=4"], {"gpus": 3}, "rollout.prompts: .* = 4 responses .* over 3 GPUs"),
        (["checkpoint.every=3", "schedule.cycle=8"], {}, "checkpoint.every: got 3; .* 4: verl"),
        (["checkpoint.lag=1", "checkpoint.every=2", "schedule.cycle=8"], {}, "of the lag, 1"),
        (
            ["loss.old_logprobs=recompute", "loss.rollout_correction={mode: reject}"],
            {},
            "loss.rollout_correction: got mode=reject",
        ),
        (["model.lora={dropout: 0.1}"], {}, "model.lora.dropout: got 0.1"),
        (["monitor.wandb=a", "monitor.trackio=b"], {}, "verl has one project"),
        (["loss.overlong_filter=true"], {}, "loss.overlong_filter: got True"),
        (["loss.expansion.overlong_filter=true"], {}, "loss.expansion.overlong_filter: got True"),
        (["loss.compression.overlong_buffer=4"], {}, "loss.compression.overlong_buffer: got 4"),
        (
            ["loss.compression.advantage_scale=batch_std"],
            {},
            "loss.compression.advantage_scale: got 'batch_std'",
        ),
    ],
)
def test_refusals_name_the_key(recipe, overrides, machines, error):
    with pytest.raises(ConfigError, match=error):
        verl_options(recipe(*overrides), Machines(**{"gpus": 1, **machines}), **FILES)


def test_a_key_that_nobody_reads_is_refused(recipe, monkeypatch):
    """So that one that recipes get later is not lost before somebody maps it."""
    from siri_train.integrations.verl import options

    monkeypatch.setattr(options, "_algorithm", lambda config: {})
    verl_options(recipe("loss.old_logprobs=rollout"), Machines(1), **FILES)
    with pytest.raises(ConfigError, match="loss.old_logprobs: got 'recompute'; .* has nothing for"):
        verl_options(recipe("loss.old_logprobs=recompute"), Machines(1), **FILES)


def test_dtypes_are_what_verl_calls_them(recipe):
    def made(*overrides):
        values = verl_options(recipe(*overrides), Machines(1), **FILES).values
        key = "actor_rollout_ref.actor.fsdp_config"
        return (
            values[f"{key}.model_dtype"],
            values.get(f"+{key}.mixed_precision.param_dtype"),
            values["actor_rollout_ref.rollout.dtype"],
        )

    assert made() == ("fp32", "fp32", "float32")
    assert made("distributed.compute_dtype=bfloat16") == ("fp32", None, "bfloat16")
    assert made("model.dtype=bfloat16") == ("fp32", None, "bfloat16")  # the float32 copy
    assert made("model.dtype=bfloat16", "train.master_weights=false") == ("bf16", None, "bfloat16")


@pytest.mark.parametrize(
    "value",
    [None, True, -3, 1e-6, 1e9, "a/b.parquet", "hub/name@1", "", "null", "True", "a b", "it's",
     'say "x"', 'end\\', 'a\\"b', "${x}", "1", PLAIN_TEMPLATE, ["a b", 1, None], []],
)  # fmt: skip
def test_values_survive_hydras_grammar(value):
    (override,) = OverridesParser.create().parse_overrides([f"k={command.hydra_value(value)}"])
    read = override.value()
    assert read == value and isinstance(read, type(value))


def test_the_command_prints_writes_and_starts(recipe, tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe("threads=2").to_yaml())
    started = []
    monkeypatch.setattr(command.os, "execv", lambda path, words: started.append((path, words)))
    argv = ["verl", str(path), "seed=3", "--gpus", "2", "--engine", "sglang",
            "--set", "actor_rollout_ref.rollout.gpu_memory_utilization=0.8"]  # fmt: skip
    assert cli.main(argv) == 0 and not started
    out, err = capsys.readouterr()
    words = shlex.split(out.replace("#!/bin/sh\nexec ", "").replace("\\\n", ""))
    assert words[1:3] == ["-m", "verl.trainer.main_ppo"] and "data.seed=3" in words
    assert "trainer.n_gpus_per_node=2" in words and "actor_rollout_ref.rollout.name=sglang" in words
    assert "actor_rollout_ref.rollout.gpu_memory_utilization=0.8" in words
    assert "threads = 2 is left out" in err
    folder = tmp_path / "run" / "verl"
    assert (folder / "command.sh").read_text() == out
    assert {p.name for p in folder.iterdir()} == {"command.sh", "train.parquet", "eval.parquet"}
    assert cli.main([*argv, "--launch"]) == 0 and started == [(words[0], words)]


def test_verl_reads_the_rows(recipe):
    """Through verl's own dataset: messages, gold answers, and who samples them."""
    from verl.trainer.ppo.utils import create_rl_dataset

    config = command.prepare(recipe("data.system=Add."), Machines(1)).config
    tokenizer = omega_conf_to_dataclass(config.actor_rollout_ref.model).tokenizer
    rows = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    assert len(rows) == 16
    row = rows[3]
    assert [m["role"] for m in row["raw_prompt"]] == ["system", "user"]
    assert row["raw_prompt"][0]["content"] == "Add." and row["agent_name"] == "siri_single_turn"
    assert row["reward_model"]["ground_truth"].isdigit() and row["index"] == 3


@pytest.mark.parametrize(
    "overrides, extra, error",
    [
        (["data.train.0.size=3"], [], "rollout.prompts.*: 4 questions a step, .* holds only 3"),
        (["data.max_prompt_len=2"], [], "data.max_prompt_len: 16 of 16 prompts are longer"),
        ([], ["trainer.nodes=2"], "verl refuses the configuration: .*trainer.nodes"),
        ([], ["trainer.save_freq=3"], "trainer.save_freq: got 3; takes a divisor of half"),
        ([], ["lonely"], "--set 'lonely': expected KEY=VALUE"),
        ([], ["actor_rollout_ref.actor.loss_agg_mode=mean"], "Invalid loss_agg_mode: mean"),
    ],
)
def test_nothing_is_started_that_would_fail(recipe, overrides, extra, error):
    with pytest.raises(ConfigError, match=error):
        command.prepare(recipe(*overrides), Machines(1), extra)


def test_a_registry_without_us_is_explained(monkeypatch, recipe):
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    with monkeypatch.context() as patch:
        patch.delitem(POLICY_LOSS_REGISTRY, "siri")
        with pytest.raises(ConfigError, match="verl has not registered policy loss 'siri'"):
            command.prepare(recipe(), Machines(1))
    with monkeypatch.context() as patch:
        patch.setenv("VERL_USE_EXTERNAL_PLUGINS", "other,siri_train")
        with pytest.raises(ConfigError, match="PLUGINS: got .*; takes auto, or .*siri_kernels"):
            command.prepare(recipe(), Machines(1))
    with monkeypatch.context() as patch:
        patch.setattr(command.importlib.metadata, "entry_points", lambda group: [])
        with pytest.raises(ConfigError, match="siri_train: no entry point .*only on the path"):
            command.prepare(recipe(), Machines(1))


def test_a_prompt_that_verl_would_tokenise_otherwise_is_refused(recipe, llama, monkeypatch):
    checked = command.preflight(recipe("device=cpu"))
    command.check_prompts(recipe(), checked, str(llama))
    monkeypatch.setattr(command, "PLAIN_TEMPLATE", "{{ messages[0]['content'] }} =")
    with pytest.raises(ConfigError, match="data.template: got 'plain'; verl would make other"):
        command.check_prompts(recipe(), checked, str(llama))


def test_a_model_that_verl_cannot_prompt_is_refused(recipe):
    """The embedded start is a Qwen without a newline; verl would fail at the first rollout."""
    with pytest.raises(ConfigError, match="model.path: got .* cannot build prompts .*newline"):
        command.prepare(recipe("model.path=embedded"), Machines(1))


def test_without_verl_it_says_what_is_needed(monkeypatch, capsys, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "verl" else found(name, *a)
    )
    assert cli.main(["verl", "demo.yaml", f"output={tmp_path}"]) == 1
    assert "needs verl 0.9.1 with its own transformers" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


def test_what_the_page_says_is_taken():
    """docs/drop-in.md, section verl: its commands parse, its keys compose in verl."""
    page = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8")
    section = page.split("\n## verl 0.9.1\n")[1].split("\n## ")[0]
    shell, keys, _ = (block.split("\n```")[0] for block in section.split("```")[1::2])
    lines = [shlex.split(line, comments=True) for line in shell.splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["siri-train"]]
    assert len(commands) >= 2
    for words in commands:
        arguments = parse(words)
        assert arguments.command == "verl" and load_config(arguments.recipe)
    needed = ["data.max_response_length=16384", "trainer.save_freq=320",
              "actor_rollout_ref.rollout.name=vllm",
              "actor_rollout_ref.actor.use_dynamic_bsz=True"]  # fmt: skip
    made = command.check_config([*keys.split(), *needed])
    cap = settings_of(made).schedule.build()(79)
    assert f'"siri_single_turn: step 80, responses of at most {cap} tokens"' in section
    assert made.actor_rollout_ref.rollout.agent.default_agent_loop == "siri_single_turn"
    assert made.trainer.checkpoint_callback_class.endswith(".SiriCheckpoints")


def test_rollout_corrections_are_verls(recipe):
    """TIS and IcePop by our names; the weights by verl's own reading of the thresholds."""
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    for name, kept in (("tis", [0.1, 1.0, 2.0]), ("icepop", [0.0, 1.0, 3.0])):
        options = recipe("loss.old_logprobs=recompute", f"loss.rollout_correction={name}")
        values = verl_options(options, Machines(1), **FILES).values
        made = command.check_config(command.merged(values, ())).algorithm.rollout_correction
        assert made.rollout_is == "token" and not made.bypass_mode
        ratio = torch.tensor([[0.1, 1.0, 3.0]])
        weights, _ = compute_rollout_correction_weights(
            ratio.log(), torch.ones(1, 3), made.rollout_is, made.rollout_is_threshold
        )
        assert torch.allclose(weights, torch.tensor([kept]))
