"""``siri-train verl`` with the packaged recipes; sets, cycles and lags of any size."""

from __future__ import annotations

import math
import random
import re
import shlex
import time
from collections import Counter
from pathlib import Path

import pytest
from verl.utils.config import omega_conf_to_dataclass

from siri_train.commands.parser import parse
from siri_train.config.base import ConfigError
from siri_train.config.recipe import RECIPES, load_config
from siri_train.data.sources import EncodedQuestion
from siri_train.integrations.verl import command
from siri_train.integrations.verl.held_out import repeated
from siri_train.integrations.verl.options import PLAIN_TEMPLATE, Machines, verl_options
from siri_train.integrations.verl.settings import settings_of

FILES = {"model": "m", "train_file": "t", "eval_file": "e"}


def asked_for(name):
    """Machines and --set of the command that the recipe's comment gives; else four GPUs."""
    said = re.search(r"# verl +siri-train verl (.+)", (RECIPES / name).read_text())
    if said is None:
        return Machines(gpus=4), []
    asked = parse(["verl", *shlex.split(said[1])])
    assert asked.recipe == Path(name).stem
    return Machines(gpus=asked.gpus, nodes=asked.nodes), asked.set


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_every_packaged_recipe_loads_in_verl(name):
    """Composed and validated by verl itself; then what verl will read, against the recipe."""
    config = load_config(name)
    config = config.model_copy(update={"output": "/tmp/run"})
    machines, extra = asked_for(name)
    options = verl_options(config, machines, **FILES)
    words = command.merged(options.values, extra)
    if config.model.lora is not None:  # verl looks for its sampler then, which is not here
        assert "actor_rollout_ref.model.lora_rank=32" in words
        with pytest.raises(ConfigError, match="vllm version None not supported"):
            command.check_config(words)
        return
    made = command.check_config(words)
    assert (made.trainer.n_gpus_per_node, made.trainer.nnodes) == (machines.gpus, machines.nodes)
    assert settings_of(made).schedule == config.schedule
    actor = omega_conf_to_dataclass(made.actor_rollout_ref.actor)
    assert type(actor).__name__ == "FSDPActorConfig" and actor.strategy == "fsdp2"
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)
    assert actor.optim.lr == config.train.lr and tuple(actor.optim.betas) == config.train.betas
    assert actor.ppo_mini_batch_size * config.train.mini_batches == config.rollout.prompts
    assert actor.ppo_max_token_len_per_gpu == config.train.token_budget
    rollout = omega_conf_to_dataclass(made.actor_rollout_ref.rollout)
    assert rollout.response_length == config.schedule.max_len == made.data.max_response_length
    assert rollout.prompt_length == config.data.max_prompt_len and rollout.n > 1
    assert made.algorithm.adv_estimator == "siri_grpo"
    assert actor.policy_loss.loss_mode == "siri"
    assert made.reward.reward_manager.name == "siri_capped"
    plain = config.data.template == "plain"
    template = made.actor_rollout_ref.model.custom_chat_template
    assert template == (PLAIN_TEMPLATE if plain else None)


def test_any_cycle_and_lag_has_an_interval_of_checkpoints(recipe):
    """The one that a refusal names is taken, and what does not divide it is refused."""
    draw = random.Random(seed := time.time_ns())
    for cycle in (320, 480, 640, 2 * draw.randint(2, 400)):
        lag = draw.randint(0, 2 * cycle)
        keys = f"schedule.cycle={cycle}", f"checkpoint.lag={lag}", f"train.steps={3 * cycle}"
        largest = math.gcd(cycle // 2, lag)
        verl_options(recipe(*keys, f"checkpoint.every={largest}"), Machines(1), **FILES)
        said = f", so of {largest}" if lag else f"half the cycle, {cycle // 2}"
        with pytest.raises(ConfigError, match=f"checkpoint.every: got .*{said}:"):
            every = f"checkpoint.every={cycle // 2 + 1}"
            verl_options(recipe(*keys, every), Machines(1), **FILES)
            pytest.fail(f"seed {seed}: {keys}")


def test_sets_with_more_samples_are_repeated_in_the_file(recipe):
    """verl has one val_kwargs.n: with it every question gets as many responses as here."""
    draw = random.Random(seed := time.time_ns())
    wanted = {name: draw.randint(1, 48) for name in "abc"}
    sources = ", ".join(
        f"{{kind: embedded, name: {name}, seed: {i}, size: {draw.randint(1, 5)}, samples: {n}}}"
        for i, (name, n) in enumerate(wanted.items(), start=1)
    )
    config = recipe(f"data.eval=[{sources}]", "eval.samples=2")
    found = verl_options(config, Machines(1), **FILES)
    n = found.values["actor_rollout_ref.rollout.val_kwargs.n"]
    asked = [EncodedQuestion(id="q", prompt_ids=(1,), answer="1", prompt="?", set=s) for s in "abc"]
    rows = Counter(question.set for question in repeated(config, asked))
    assert {name: n * rows[name] for name in "abc"} == wanted, f"seed {seed}: n = {n}"
    more = {f"{name} {rows[name]} times" for name in "abc" if rows[name] > 1}
    noted = [note for note in found.notes if note.startswith("data.eval.N.samples")]
    assert bool(noted) == bool(more) and all(text in noted[0] for text in more), f"seed {seed}"
