"""The packaged recipes: the paper's values, a mark for every other one, and enough memory."""

from __future__ import annotations

import random
import re
import shlex
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from siri_train.ablate.plan import Asked, build_plan
from siri_train.ablate.presets import METHODS
from siri_train.commands.parser import parse
from siri_train.config.recipe import RECIPES, load_config
from siri_train.config.run import RunConfig
from siri_train.plan.fitting import USABLE
from siri_train.plan.gpus import gpu_of
from siri_train.plan.memory import GB, Memory, Sizes, estimate
from siri_train.plan.text import verdict

FAMILY = sorted(path.stem for path in RECIPES.glob("siri-*.yaml"))

# The paper: arXiv 2509.25176, sections 4.3 and 5.1. Written from it, not from the recipes.
PAPER: dict[str, Any] = {
    "data.train.0.path": "data/deepscaler",
    "schedule.shape": "cosine",
    "schedule.max_len": 16384,
    "schedule.min_len": 8192,
    "schedule.cycle": 640,
    "rollout.prompts": 128,
    "rollout.temperature": 1.0,
    "reward.function": "length-cap",
    "advantage.baseline": "mean",
    "advantage.scale": "group_std",
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.28,
    "loss.kl_coef": 0.0,
    "train.steps": 3 * 640,
    "train.lr": 1e-6,
    "eval.samples": 32,
    "eval.temperature": 0.6,
    "eval.budgets": [8192, 16384],
}
# verl at 2bbd092 (15 August 2025); verl/trainer/config/ and the call of AdamW in fsdp_workers.py.
VERL: dict[str, Any] = {
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "loss.dual_clip": 3.0,
    "loss.aggregation": "token-mean",
    "loss.entropy_coef": 0.0,
    "train.lr_warmup_steps": 0,
    "train.betas": (0.9, 0.999),
    "train.weight_decay": 0.01,
    "train.grad_clip": 1.0,
}
# What the paper leaves open beside verl's defaults: DeepScaleR at 874daa4, AdaptThink at 84cf948.
NEIGHBOURS: dict[str, Any] = {
    "data.max_prompt_len": 1024,
    "rollout.group_size": 16,
    "reward.think": "required",
    "train.mini_batches": 2,
    "eval.top_p": 0.95,
}
OURS = ("data.template", "reward.verifier", "eval.every", "eval.select", "checkpoint.lag_window")
# Keys that change where and how fast a run runs, and what it keeps; not what it learns.
MACHINE = (
    "name", "model.dtype", "model.gradient_checkpointing", "distributed.", "rollout.engine",
    "rollout.vllm.", "rollout.server.", "reward.workers", "train.token_budget", "checkpoint.every",
    "checkpoint.keep_last", "checkpoint.best", "data.eval.",
)  # fmt: skip
SOURCES = ("verl", "DeepScaleR", "AdaptThink", "ours", "the paper's lengths")


def qwen(kind: Any, hidden: int, intermediate: int, layers: int, heads: int, kv: int, ids: int,
         tied: bool = False, **other: int) -> Any:  # fmt: skip
    return kind(
        vocab_size=ids, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
        tie_word_embeddings=tied, max_position_embeddings=40960, **other,
    )  # fmt: skip


SHAPES = {
    "DeepSeek-R1-Distill-Qwen-1.5B": qwen(Qwen2Config, 1536, 8960, 28, 12, 2, 151936),
    "DeepSeek-R1-Distill-Qwen-7B": qwen(Qwen2Config, 3584, 18944, 28, 28, 4, 152064),
    "DeepSeek-R1-Distill-Qwen-14B": qwen(Qwen2Config, 5120, 13824, 48, 40, 8, 152064),
    "DeepSeek-R1-Distill-Qwen-32B": qwen(Qwen2Config, 5120, 27648, 64, 40, 8, 152064),
    "DeepSeek-R1-Distill-Llama-70B": qwen(LlamaConfig, 8192, 28672, 80, 64, 8, 128256),
    "Qwen3-4B": qwen(Qwen3Config, 2560, 9728, 36, 32, 8, 151936, tied=True, head_dim=128),
}


@cache
def sizes(path: str) -> Sizes:
    return Sizes.of(SHAPES[path.rpartition("/")[2]])


def text(name: str) -> str:
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def leaves(node: yaml.Node, path: str = "") -> list[tuple[str, int]]:
    """Every key of a recipe that holds a value, with its line, counted from 0."""
    if isinstance(node, yaml.MappingNode):
        return [
            leaf
            for key, value in node.value
            for leaf in leaves(value, f"{path}.{key.value}" if path else key.value)
        ]
    if isinstance(node, yaml.SequenceNode) and node.value[0].tag == "tag:yaml.org,2002:map":
        return [leaf for i, item in enumerate(node.value) for leaf in leaves(item, f"{path}.{i}")]
    return [(path, node.start_mark.line)]


def marks(name: str) -> dict[str, str]:
    """The comment beside each key of a recipe, without its ``#``."""
    lines = text(name).splitlines()
    return {
        key: lines[line].partition(" # ")[2].strip()
        for key, line in leaves(yaml.compose(text(name)))
    }


def value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


def planned(name: str) -> tuple[int, int]:
    """Ranks that train and GB of a GPU, from the recipe's comment."""
    found = re.search(r"^# GPUs: (\d+) of (\d+) GB", text(name), re.MULTILINE)
    assert found is not None, f"{name}: no line '# GPUs: N of M GB'"
    return int(found[1]), int(found[2])


def memory_of(config: RunConfig, ranks: int, gpu: int) -> Memory:
    return estimate(config, sizes(config.model.path), ranks=ranks, memory_gb=gpu)


def commands(name: str) -> list[list[str]]:
    """The words of every ``siri-train`` command in a recipe's comments, torchrun's too."""
    head = re.sub(r"\\\n# +", "", text(name))
    shell = re.search(r'ALL="(.+)"', head)
    found = re.findall(r"^#.*?(?:siri-train|-m siri_train) (\S.*)$", head, re.MULTILINE)
    said = [re.split(r" {2,}|;", line)[0] for line in found]
    return [
        shlex.split(line.replace("$ALL", shell[1] if shell else ""))
        for line in said
        if not line.startswith("data ")
    ]


@pytest.mark.parametrize("name", FAMILY)
def test_values_are_the_papers_or_marked(name: str) -> None:
    """Every key: the paper's value, or a mark that says where it is from, or about the machine."""
    config, seen = load_config(name), marks(name)
    for key, mark in seen.items():
        if mark == "paper" or re.match(r"paper[:;,]", mark):
            if key not in PAPER:
                assert key == "model.path" or key.startswith(("data.train.", "data.eval.")), key
            elif isinstance(PAPER[key], float):
                assert value(config, key) == pytest.approx(PAPER[key], rel=1e-12), key
            else:
                assert value(config, key) == PAPER[key], key
        elif mark.startswith("not stated: "):
            assert any(source in mark for source in SOURCES), f"{key}: {mark}"
            assert key not in PAPER
        elif not mark.startswith("ours"):
            assert key.startswith(MACHINE), f"{key}: no mark: {mark!r}"
    # What decides a run's result stands in the file, whatever the library's defaults become.
    assert {*PAPER, *VERL, *NEIGHBOURS, *OURS} <= set(seen)
    for key in (*VERL, *NEIGHBOURS, *OURS):
        assert seen[key].startswith(("not stated: ", "ours")), key
    for key in VERL:
        assert seen[key].startswith("not stated: verl") and value(config, key) == VERL[key], key
    for key, wanted in NEIGHBOURS.items():
        if seen[key].startswith("not stated: DeepScaleR at 8K"):
            wanted = 8
        assert value(config, key) == wanted, key


def test_the_papers_own_runs_have_all_of_its_values() -> None:
    for name, model in (("siri-1.5b", "1.5B"), ("siri-1.5b-1gpu", "1.5B"), ("siri-7b", "7B")):
        config, seen = load_config(name), marks(name)
        assert config.model.path == f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{model}"
        assert seen["model.path"] == "paper"
        for key, wanted in PAPER.items():
            assert value(config, key) == pytest.approx(wanted) if isinstance(wanted, float) else (
                value(config, key) == wanted
            ), key  # fmt: skip
        assert config.schedule.build().compressed_ends(config.train.steps) == [320, 960, 1600]
        assert config.data.set_names == ["aime24", "aime25", "amc", "math500", "validation"]
    assert planned("siri-1.5b")[0] == 8 and planned("siri-7b")[0] == 16


@pytest.mark.parametrize("name", FAMILY)
def test_a_recipe_differs_where_it_says_so(name: str) -> None:
    if name == "siri-1.5b":
        return
    said = re.search(r"^# Differs from siri-1.5b in: ((?:.|\n#   )+)", text(name), re.MULTILINE)
    assert said is not None
    stated = set(re.split(r",\s*", said[1].replace("\n#  ", "")))

    def flat(section: Any, path: str = "") -> dict[str, Any]:
        if isinstance(section, dict) and section:
            parts = [flat(v, f"{path}.{k}" if path else k) for k, v in section.items()]
            return {key: leaf for part in parts for key, leaf in part.items()}
        return {path: section}

    mine = flat(load_config(name).model_dump())
    base = flat(load_config("siri-1.5b").model_dump())
    differing = {key for key in mine.keys() | base.keys() if mine.get(key) != base.get(key)}
    top = {key if key in stated else ".".join(key.split(".")[:2]) for key in differing} - {"name"}
    assert top == stated


@pytest.mark.parametrize("name", FAMILY)
def test_it_fits_the_gpus_it_names(name: str) -> None:
    config, (ranks, gpu) = load_config(name), planned(name)
    memory = memory_of(config, ranks, gpu)
    assert verdict(config, memory, gpu).startswith("fits: "), verdict(config, memory, gpu)
    whole = 2 * sizes(config.model.path).parameters
    if config.rollout.engine == "vllm":
        # Its share holds the weights, and keys and values of some of the longest responses.
        layer = sizes(config.model.path)
        token = 4 * layer.layers * layer.kv_heads * layer.head_dim
        share = config.rollout.vllm.gpu_memory_utilization * gpu * GB - whole
        assert share > 6 * token * config.longest_sequence
    else:
        # Why it has a server: beside the weights there is not room for a few of the longest.
        assert whole > 0.75 * USABLE * gpu * GB


def test_what_the_comments_say_about_other_gpus_holds() -> None:
    one = load_config(
        "siri-1.5b-1gpu", ["rollout.vllm.gpu_memory_utilization=0.65", "train.token_budget=131072"]
    )
    assert "gpu_memory_utilization=0.65 train.token_budget=131072" in text("siri-1.5b-1gpu")
    assert memory_of(one, 1, 141).peak < USABLE * 141 * GB < 1.2 * memory_of(one, 1, 141).peak
    assert "else 48 GPUs are needed" in text("siri-70b")
    here = load_config("siri-70b", ["distributed.offload=false"])
    assert memory_of(here, 48, 80).peak < USABLE * 80 * GB < memory_of(here, 40, 80).peak
    for name, width, said in (("14b", 4, 480), ("32b", 4, 1050), ("70b", 2, 1130)):
        config = load_config(f"siri-{name}")
        each = width * sizes(config.model.path).parameters / GB
        assert 8 * each == pytest.approx(said, rel=0.02)
        assert f"{each:.0f} GB" in text(f"siri-{name}")
        assert (f"{said} GB" if said < 1000 else f"{said / 1000:.2f} TB") in text(f"siri-{name}")


@pytest.mark.parametrize("name", FAMILY)
def test_the_commands_in_the_comments_are_commands(name: str) -> None:
    """Parsed as the command line is; those of ``eval`` with their overrides, which fit a GPU."""
    ranks, gpu = planned(name)
    seen = set()
    for words in commands(name):
        asked = parse(words)
        seen.add(asked.command)
        if asked.command in ("train", "verl"):
            assert asked.recipe == name
            load_config(asked.recipe, getattr(asked, "overrides", []))
        if asked.command == "train" and asked.dry_run:
            memory = gpu_of(asked.gpu).memory_gb if asked.gpu else asked.gpu_memory
            assert (asked.ranks or 1, memory) == (ranks, gpu)
        if asked.command == "verl":
            assert asked.gpus * asked.nodes == ranks
        if asked.command == "eval":
            config = load_config(name, asked.overrides)
            if "eval.samples=64" in asked.overrides:  # Table 1: all of its four sets
                wanted = {"aime24": 64, "aime25": 64, "amc": 64, "math500": 64, "validation": 4}
                assert {s: config.samples_of(s) for s in wanted} == wanted
                assert all(source.limit is None for source in config.data.eval)
            if config.device != "cpu":  # the model beside the sampler, in one process
                width = 2 if config.model.dtype == "bfloat16" else 4
                share = config.rollout.vllm.gpu_memory_utilization
                vllm = share * gpu * GB if config.rollout.engine == "vllm" else 0
                need = width * sizes(config.model.path).parameters + vllm
                assert need < 0.95 * gpu * GB, f"{need / GB:.1f} GB"
            step = re.search(r"step_(\d+)", str(asked.checkpoint))
            if step is not None:
                schedule, steps = config.schedule.build(), config.train.steps
                ends = schedule.compressed_ends(steps)[-1], schedule.expanded_ends(steps)[-1]
                assert int(step[1]) in ends
    assert seen == {"train", "eval", "compare", "verl"}


@pytest.mark.parametrize("name", FAMILY)
def test_evaluation_costs_what_the_comment_says(name: str) -> None:
    """Questions of the sets: AIME 30 each, AMC 83, MATH-500 500, the validation split 512."""
    config = load_config(name)
    count = {"aime24": 30, "aime25": 30, "amc": 83, "math500": 500, "validation": 512}
    each = sum(count[s] * config.samples_of(s) for s in config.data.set_names)
    between = config.eval.every * config.rollout.prompts * config.rollout.group_size
    share = f"{each} responses each {config.eval.every} steps, which sample {between}"
    assert f"{share}: {100 * each / between:.0f} % more" in text(name)
    assert each < 0.15 * between
    assert config.eval.select == "validation" and config.data.set_names[0] == "aime24"


@pytest.mark.parametrize("name", FAMILY)
def test_a_server_holds_the_longest_sequence(name: str) -> None:
    config = load_config(name)
    assert config.train.token_budget >= config.longest_sequence
    served = re.findall(r"--max-model-len (\d+)", text(name))
    if config.rollout.engine == "vllm-server":
        assert list(map(int, served)) == [config.longest_sequence]
        assert config.rollout.server.concurrency * planned(name)[0] == 256
    else:
        assert not served
    if name == "siri-qwen3-4b":
        assert f"longest response are {config.longest_sequence} tokens" in text(name)
        assert config.longest_sequence <= 40960  # the positions in its config.json


@pytest.mark.parametrize("cycle", [320, 480, 640])
def test_any_cycle_of_the_paper_runs_with_any_lag(cycle: int) -> None:
    draw = random.Random(seed := time.time_ns())
    for lag in (0, 1, cycle // 2, cycle, draw.randint(2, 2000), draw.randint(2, 2000)):
        keys = [f"schedule.cycle={cycle}", f"checkpoint.lag={lag}"]
        config = load_config(draw.choice(FAMILY), keys)
        assert config.checkpoint.lag == lag and config.schedule.cycle == cycle, f"seed {seed}"
    name, lag = draw.choice(FAMILY), draw.randint(1, 2000)
    asked = Asked(
        name, Path("x"), overrides=[f"checkpoint.lag={lag}"], methods=[draw.choice([*METHODS])],
        vary=["schedule.cycle=320,480,640"],
    )  # fmt: skip
    assert len({run.config.schedule.cycle for run in build_plan(asked).runs}) == 3, (
        f"seed {seed}: {asked}"
    )


def test_the_page_lists_every_recipe() -> None:
    """The table of docs/recipes.md against the files."""
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| (.+) \|$", page, re.MULTILINE))
    assert sorted(rows) == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    for name, row in rows.items():
        config = load_config(name)
        model, gpus, engine, _, run = row.split(" | ")
        assert model.strip("`") == config.model.path.rpartition("/")[2]
        assert engine == config.rollout.engine
        if name in FAMILY:
            ranks, gpu = planned(name)
            assert gpus.startswith(f"{ranks} of {gpu} GB")
            assert ("and 8 of 80 GB" in gpus) == ("and 8 of 80 GB" in text(name))
            assert run == "no" and "Not run by this project" in text(name)
        else:
            assert "Not run by this project" not in text(name) and run != "no"
