"""Bad values of every key, bad YAML, bad overrides, bad options of the command line."""

from __future__ import annotations

import itertools
import random
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from siri_train.config.run import RunConfig
from tests.train.bad_inputs.bed import RECIPE, Bad, write_recipe

TRAIN = ("train", RECIPE)


def keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field; of a list of sections the first item's."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        for kind in _parts(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                item = "0." if typing.get_origin(field.annotation) is list else ""
                yield from keys(kind, f"{prefix}{name}.{item}")


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of an annotation; of a list of sections the section."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _parts(annotation.__origin__)
    if origin in (typing.Union, types.UnionType):
        return [part for inner in annotation.__args__ for part in _parts(inner)]
    if origin is list and issubclass(object_of(annotation.__args__[0]), BaseModel):
        return [annotation.__args__[0]]
    return [annotation]


def object_of(annotation: Any) -> type:
    """The annotation if it is a class, else ``object``."""
    return annotation if isinstance(annotation, type) else object


def wrong_kinds(key: str, field: FieldInfo) -> list[str]:
    """Values, as YAML writes them, that no alternative of the field's annotation takes."""
    parts = _parts(field.annotation)
    origins = {typing.get_origin(part) or part for part in parts}
    wrong = ["[[1]]", "{of: {some: use}}"]
    if typing.Literal in origins:
        choices = [c for part in parts for c in getattr(part, "__args__", ())]
        wrong += [f"{choices[0]}x", "77"]
    if origins <= {int, type(None)}:
        wrong += ["seven", "1.5", "true", ".nan", "[1]"]
    if origins <= {float, type(None)}:
        wrong += ["seven", "true", ".nan", ".inf", "[1.0]"]
    if origins <= {bool}:
        wrong += ["perhaps", "2", "[true]"]
    if origins <= {tuple}:
        wrong += ["[0.5]", "[0.5, 0.6, 0.7]", "0.5", "[a, b]"]
    if type(None) not in origins and typing.Literal not in origins:
        wrong += ["null"]
    if any(issubclass(object_of(origin), BaseModel) for origin in origins) or list in origins:
        wrong += ["5", "1.5"]
    if dict in origins:
        wrong = ["5", "[1]", "null"]
    return wrong


def out_of_bounds(field: FieldInfo) -> list[str]:
    """Values just past each bound that the field declares."""
    found = []
    whole = int in _parts(field.annotation)
    for bound in field.metadata:
        for name, step in (("gt", 0), ("ge", -1), ("lt", 0), ("le", 1)):
            limit = getattr(bound, name, None)
            if isinstance(limit, (int, float)):
                found.append(repr(limit + step if whole else float(limit) + step * 0.5))
    return found


def values() -> Iterator[Bad]:
    """Two drawn values of a wrong kind for every key, by override or in the recipe."""
    draw = random.Random(1)
    for key, field in keys():
        wrong = wrong_kinds(key, field)
        for value in draw.sample(wrong, min(2, len(wrong))):
            command = draw.choice(("train", "train", "schedule"))
            # An override of a text is taken as it is written, whatever it looks like.
            if str in _parts(field.annotation) or draw.random() < 0.3:
                yield _in_the_recipe("values", command, key, value)
            else:
                argv = (command, RECIPE, f"{key}={value}")
                yield Bad("values", f"{key}={value}", argv, (key.split(".0.")[-1],))


def bounds() -> Iterator[Bad]:
    """Past every declared bound, and values of which only a library used to know the bound."""
    for key, field in keys():
        for value in out_of_bounds(field):
            yield Bad(
                "bounds", f"{key}={value}", (*TRAIN, f"{key}={value}"), (key.split(".0.")[-1],)
            )
    for override in (
        "train.betas=[2, 3]", "train.betas=[-0.1, 0.9]", "train.betas=[0.9, 1.0]",
        "loss.clip_low=2", "loss.clip_low=-0.1", "loss.clip_high=-1",
        "device=meta", "device=gpu", "device=cuda:99", "device=cuda:-1", "device=cpu:x",
        "device=''",
        "threads=100000000", "threads=3000000000", "seed=1000000000000000000000",
        "seed=-100000000000000000000000", "data.train.0.size=100000000", "data.eval.0.size=5000000",
        "train.lr=1.0e300", "eval.budgets=[0]", "eval.budgets=[-3, 5]", "eval.budgets=[x]",
        "schedule.cycle=7", "schedule.min_len=57", "schedule.max_len=99999",
        "train.mini_batches=17", "train.token_budget=79",
        "schedule.shape=toggle", "reward.function=toggle",
        "name=a/b", "name=.hidden", "name=''", 'name="a\\nb"', 'name="a\\0b"', f"name={'n' * 300}",
        "rollout.server.url='not a url'", "rollout.server.url=ftp://somewhere",
        "rollout.engine=vllm", "data.max_prompt_len=3",
        "rollout.prompts=65", "model.scratch.heads=3", "model.scratch.max_position_embeddings=20",
        "data.train.0.params={nonesuch: 1}", "data.train.0.params={min_operations: 40}",
        "data.train.0.params={slip_rate: much}", "data.train.0.params={max_operations: -2}",
        "data.eval.0.seed=100000000000000000000000000x", "reward.workers=1000000000",
        "rollout.server.concurrency=1.5",
        "data.train=[]", "data.train.0.kind=file", "data.train.0.kind=reasoning_gym",
    ):  # fmt: skip
        key = override.partition("=")[0].split(".")[-1]
        named = {"kind": "data.train", "engine": "vllm", "prompts": "rollout"}
        word = named.get(key, key)
        if override.startswith("data.train.0.params={"):
            word = override.partition("{")[2].partition(":")[0]
        if override.startswith("model.scratch.max_position"):
            word = "positions"
        yield Bad("bounds", override[:60], (*TRAIN, override), (word,))


def unknown_keys() -> Iterator[Bad]:
    """A key with a letter lost, added or swapped, in every section; the right one is named."""
    draw = random.Random(2)
    everything = [key for key, _ in keys()]
    for key in draw.sample([k for k in everything if len(k.split(".")[-1]) > 5], 30):
        section, _, name = key.rpartition(".")
        at = draw.randrange(1, len(name) - 1)
        misspelt = draw.choice(
            (name[:at] + name[at + 1 :], name[:at] + "q" + name[at:], f"{name[:at]}-{name[at:]}")
        )
        wrong = f"{section}.{misspelt}" if section else misspelt
        yield Bad("unknown keys", wrong, (*TRAIN, f"{wrong}=1"), (misspelt, name))


def _in_the_recipe(family: str, command: str, key: str, value: str) -> Bad:
    def prepare(home: Path) -> None:
        recipe = yaml.safe_load((home / RECIPE).read_text())
        node: Any = recipe
        *way, last = key.split(".")
        for part in way:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                node[part] = node.get(part) or {}
                node = node[part]
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(value)
        else:
            node[last] = yaml.safe_load(value)
        (home / RECIPE).write_text(yaml.safe_dump(recipe))

    name = f"{key}: {value}"
    return Bad(family, name, (command, RECIPE), (key.split(".0.")[-1], RECIPE), prepare)


def _recipe(name: str, text: str | bytes, *words: str, command: str = "train") -> Bad:
    def prepare(home: Path) -> None:
        raw = text if isinstance(text, bytes) else text.encode()
        (home / RECIPE).write_bytes(raw)

    return Bad("yaml", name, (command, RECIPE), (RECIPE, *words), prepare)


def recipes() -> Iterator[Bad]:
    """Files that are no recipe, or whose meaning YAML 1.1 and a user disagree about."""
    yield _recipe("twice a section", "train: {steps: 2}\nseed: 1\ntrain: {lr: 1.0}\n", "train")
    yield _recipe("twice a key", "train:\n  steps: 2\n  lr: 0.1\n  steps: 3\n", "steps")
    yield _recipe("twice in a flow", "rollout: {prompts: 4, prompts: 8}\n", "prompts")
    yield _recipe("twice in a list", "data: {train: [{kind: embedded, kind: file}]}\n", "kind")
    for text in (
        "yes",
        "on",
        "Off",
        "y",
        "0o9",
        "1_0x",
        "1:30",
        "2024-01-01",
        "0x",
        "~x",
        "!!int x",
    ):
        yield _recipe(f"steps: {text}", f"train:\n  steps: {text}\n")
    for text in ("yes", "no", "ON", "y"):
        yield _recipe(f"at_start: {text}", f"eval:\n  at_start: {text}\n", "at_start")
    yield _recipe("a tab", "train:\n\tsteps: 3\n")
    yield _recipe("open bracket", "train: {steps: 3\n")
    yield _recipe("open quote", "name: 'tiny\nseed: 1\n")
    yield _recipe("bad indentation", "train:\n  steps: 3\n lr: 1\n")
    yield _recipe("two documents", "seed: 1\n---\nseed: 2\n")
    yield _recipe("a list", "- train\n- eval\n")
    yield _recipe("a text", "just words\n")
    yield _recipe("a number", "5\n")
    yield _recipe("a tag", "name: !!python/object/apply:os.getcwd []\n")
    yield _recipe("an own tag", "train: !mine {steps: 3}\n")
    yield _recipe("an unknown anchor", "train: *nowhere\n")
    yield _recipe("a loop", "train: &a {steps: *a}\n")
    yield _recipe("a list in itself", "data: {train: &a [*a]}\n")
    yield _recipe("laughs", "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in itertools.pairwise("abcdefgh")
    ))  # fmt: skip
    yield _recipe("deep lists", "train: " + "[" * 5000 + "]" * 5000 + "\n")
    yield _recipe("deep mappings", "".join(f"{' ' * n}a:\n" for n in range(1500)))
    yield _recipe("a number as key", "1: {steps: 3}\n")
    yield _recipe("null as key", "? \n: 3\n")
    yield _recipe("a list as key", "? [a, b]\n: 3\n")
    yield _recipe("a number as key inside", "train: {1: 3}\n")
    yield _recipe("a directive", "%YAML 9.9\n---\nseed: 1\n")
    yield _recipe("not UTF-8", b"name: caf\xe9\n")
    yield _recipe("UTF-16", "name: tiny\n".encode("utf-16-be"))
    yield _recipe("zeros", b"\0" * 64)
    yield _recipe("a control character", b"name: a\x07b\n")
    yield _recipe("a lone surrogate", 'name: "\\ud800"\n')
    yield _recipe("a gzip", b"\x1f\x8b\x08\x00" + bytes(range(200)))
    yield _recipe("a merge of a number", "train: {<<: 5, steps: 3}\n")
    draw = random.Random(3)
    for number in range(8):
        whole = yaml.safe_dump({"train": {"steps": 4, "lr": 0.1}, "eval": {"budgets": [2, 3]}})
        at = draw.randrange(8, len(whole) - 8)
        spoilt = whole[:at] + draw.choice("[]{}:'\"`@%&*\t") * 2 + whole[at:]
        yield _recipe(f"drawn {number}: {spoilt[at - 3 : at + 4]!r}", spoilt)


def overrides() -> Iterator[Bad]:
    """Overrides that are none, lead nowhere, or cannot be read."""
    for text, *words in (
        ("=5",), ("train.=5", "train"), (".steps=5", "steps"), ("train..steps=5", "train"),
        (" =5",), ("train.steps=[", "train.steps"), ("train.steps={a: ", "train.steps"),
        ("train.steps=", "steps"), ("train=5", "train"), ("train.steps.more=5", "train.steps"),
        ("name.x=1", "name"), ("model.path.x.y=1", "model.path"), ("train.betas.5=1", "betas"),
        ("data.train.9.size=4", "data.train"), ("data.train.x.size=4", "data.train"),
        ("data.train.-1.size=4", "data.train"), ("data.train.0=4", "data.train"),
        ("data.train.0.0=4", "data.train"), ("rollout.nonesuch=3", "nonesuch"),
        ("nonesuch.steps=3", "nonesuch"), ("train.steps='7", "train.steps"),
        ("train.steps==5", "steps"),
        ("train.steps=*a", "train.steps"), ("train.steps=!!python/name:os.system", "train.steps"),
        ("train.lr=&a", "train.lr"), ("train.lr=1e", "train.lr"), ("train.lr=--1", "train.lr"),
        ("train.lr=0,1", "train.lr"), ("train.steps=1 000", "train.steps"),
        ("train.lr=1/3", "train.lr"),
        ("train.steps=4 # four", "steps"), ("rollout={prompts: 4, prompts: 5}", "prompts"),
        ("train.steps=\t", "steps"), ("TRAIN.steps=4", "TRAIN"), ("train/steps=4", "train/steps"),
        ("train:steps=4", "train:steps"), ("train.steps:=4", "steps"),
        ("+train.steps=4", "+train"),
        ("++a=4", "a"), ("~train.steps=4", "~train"), ("sft.steps=x", "sft.steps"),
        ("model.scratch.layers=x", "model.scratch.layers"), ("train.steps=٣x", "train.steps"),
        ("eval.budgets=3,4", "eval.budgets"), ("eval.budgets.0=3", "budgets"),
        ("loss.rollout_correction=nonesuch", "rollout_correction"),
        ("train.steps=" + "9" * 400, "train.steps"), ("train.steps=" + "[" * 3000, "train.steps"),
        ("train." * 500 + "steps=1", "train"), ("1.2.3=4", "1"),
    ):  # fmt: skip
        yield Bad("overrides", text[:50], (*TRAIN, text), tuple(words))
    draw = random.Random(4)
    for number in range(12):
        junk = "".join(draw.choices("[]{}'\"&*!|>%@`", k=draw.randrange(1, 4)))
        key = draw.choice(("train.steps", "train.lr", "rollout.top_p", "sft.batch_size", "seed"))
        value = draw.choice((junk + "5", "5" + junk))
        yield Bad("overrides", f"drawn {number}: {key}={value}", (*TRAIN, f"{key}={value}"), (key,))


def options() -> Iterator[Bad]:
    """Options and arguments of every command."""
    for argv, *words in (
        ((), "COMMAND"), (("nonesuch",), "nonesuch"), (("trian", RECIPE), "trian"),
       
        (("train",), "recipe"), ((*TRAIN, "--nonesuch"), "--nonesuch"), ((*TRAIN, "oops"), "oops"),
        ((*TRAIN, "-x"), "-x"), ((*TRAIN, "--resume"), "--resume"), ((*TRAIN, "--dry-run=3"),
        "--dry-run"),
        ((*TRAIN, "--resume", "nowhere"), "--resume"), ((*TRAIN, "--resume", ""), "--resume"),
        ((*TRAIN, "--resume", RECIPE), "--resume"), ((*TRAIN, "--resume", "."), "checkpoint"),
        ((*TRAIN, "--dry-run", "--ranks", "0"), "--ranks"),
        ((*TRAIN, "--dry-run", "--ranks", "-3"), "--ranks"),
        ((*TRAIN, "--dry-run", "--ranks", "two"), "--ranks"),
        ((*TRAIN, "--dry-run", "--ranks", "1.5"), "--ranks"),
        ((*TRAIN, "--dry-run", "--gpu-memory", "much"), "--gpu-memory"),
        ((*TRAIN, "--dry-run", "--gpu-memory", "-5"), "--gpu-memory"),
        ((*TRAIN, "--dry-run", "--gpu-memory", "0"), "--gpu-memory"),
        ((*TRAIN, "--dry-run", "--gpu-memory", "nan"), "--gpu-memory"),
        ((*TRAIN, "--dry-run", "--gpu-memory", "inf"), "--gpu-memory"),
        ((*TRAIN, "--dry-run", "--rates", "nowhere"), "nowhere"),
        ((*TRAIN, "--dry-run", "--rates", RECIPE), RECIPE),
        ((*TRAIN, RECIPE), RECIPE), (("train", "nowhere.yaml"), "nowhere.yaml"), (("train", ""),
        "recipe"),
        (("train", "."), "recipe"), (("train", "demo.yml"), "demo.yml"),
        (("train", "recipes/none.yaml"), "none.yaml"),
        (("sft", RECIPE), "sft"), (("sft", RECIPE, "--resume", "sometimes"), "--resume"),
        (("sft", RECIPE, "--dry-run"), "--dry-run"),
        (("demo", "--seed", "x"), "--seed"), (("demo", "--seed", "1.5"), "--seed"),
        (("demo", "--seed", "1" + "0" * 40), "seed"),
        (("demo", "more"), "more"), (("demo", "a.b=c"), "a.b=c"), (("demo", "--out"), "--out"),
        (("eval", "nowhere"), "nowhere"), (("eval", RECIPE), RECIPE), (("eval", "."), "."),
        (("eval",), "checkpoint"),
        (("eval", ".", "--recipe", "nowhere.yaml"), "."), (("report", "nowhere"), "nowhere"),
        (("report", RECIPE), RECIPE),
        (("report",), "folder"), (("report", "."), "."), (("report", ".", "a.b=c"), "a.b=c"),
        (("schedule", "nowhere.yaml"), "nowhere.yaml"),
        (("schedule", RECIPE, "--svg"), "--svg"), (("export", "nowhere", "--which", "low"),
        "nowhere"),
        (("export", "."), "--which"), (("export", ".", "--which", "lowest"), "lowest"),
        (("export", ".", "--which", "-1"), "--which"),
        (("export", ".", "--which", "1.5"), "1.5"), (("export", ".", "--which", ""), "--which"),
        (("export", ".", "--which", "7"), "."),
        (("convert",), "source"), (("convert", "nowhere.gguf"), "out"),
        (("convert", "nowhere.gguf", "model"), "nowhere.gguf"),
        (("convert", "no_such_package:x.gguf", "model"), "no_such_package"),
        (("convert", RECIPE, "model"), RECIPE),
        (("convert", "torch:nowhere.gguf", "model"), "nowhere.gguf"),
        (("convert", "x.gguf", "model", "--dtype", "int8"), "--dtype"),
        (("verl", RECIPE, "--engine", "none"), "--engine"), (("verl", RECIPE, "--gpus", "0"),
        "--gpus"),
        (("verl", RECIPE, "--nodes", "x"), "--nodes"), (("verl", "nowhere.yaml"),
        "nowhere.yaml"), (("doctor", "more"), "more"),
        (("--version=3",), "--version"),
    ):  # fmt: skip
        yield Bad("options", " ".join(argv)[:60], argv, tuple(words))


def terminals() -> Iterator[Bad]:
    """The same kinds of input on terminals that are narrow or write other letters."""
    draw = random.Random(5)
    inputs = (
        (("train", "tïny.yaml"), ("no such file",)),
        ((*TRAIN, "train.stéps=3"), ("steps",)),
        ((*TRAIN, "name=naïve/ñ"), ("name",)),
        ((*TRAIN, "--ranks", "zwölf"), ("--ranks",)),
        ((*TRAIN, "train.steps=\x1b[31mred\x1b[0m"), ("train.steps",)),
        ((*TRAIN, "train.steps=two\nlines"), ("train.steps",)),
        ((*TRAIN, "train.steps=\r\rover"), ("train.steps",)),
        (("train", "no\x1b]0;title\x07where.yaml"), ("recipe",)),
        (("report", "no\nwhere"), ("where",)),
        ((*TRAIN, "--nonesuch\x07"), ("--nonesuch",)),
        ((*TRAIN, "--resume", "a\u202eb\u200b"), ("--resume",)),
        ((*TRAIN, "rollout.group_size=one"), ("rollout.group_size",)),
    )  # fmt: skip
    for argv, words in inputs:
        for encoding in draw.sample(("ascii", "latin-1", "utf-8"), 2):
            environment = {"COLUMNS": draw.choice(("1", "20", "-5", "many", "0")), "TERM": "dumb"}
            name = f"{argv[-1]!r} in {encoding}, {environment['COLUMNS']} columns"
            yield Bad("terminals", name, argv, words, None, environment, encoding)


def supervised() -> Iterator[Bad]:
    """The supervised stage's own values."""

    def with_sft(home: Path) -> None:
        write_recipe(home, sft={"steps": 2, "batch_size": 4}, model={"scratch": {"layers": 1}})

    draw = random.Random(6)
    for override, word in (
        (f"sft.max_len={draw.randrange(1, 9)}", "sft.max_len"),
        ("sft.batch_size=5000", "sft.batch_size"),
        ("sft.steps=0", "sft.steps"), (f"sft.lr=1.0e{draw.randrange(15, 36)}", "sft.lr"),
        ("sft.lr=0", "sft.lr"),
        ("sft.betas=[1.5, 0.9]", "betas"), ("sft.min_lr_ratio=1.01", "sft.min_lr_ratio"),
        ("sft.grad_clip=-1", "sft.grad_clip"),
        ("sft=5", "sft"), ("sft=null", "sft"), ("sft.stps=3", "sft.steps"),
        ("model.scratch.max_position_embeddings=24", "positions"),
        ("device=cuda:77", "device"),
        ("data.train=[{kind: file, path: nowhere.jsonl}]", "data.train.0.path: no such file"),
        ("seed=1000000000000000000000", "seed"), ("sft.batch_size=true", "sft.batch_size"),
    ):  # fmt: skip
        if not override.startswith("sft.lr=1.0e"):  # known only after a step has been made
            yield Bad("supervised", override, ("sft", RECIPE, override), (word,), with_sft)
    for ranks in (2, draw.randrange(3, 99)):
        yield Bad(
            "supervised", f"{ranks} ranks", ("sft", RECIPE), ("sft", str(ranks)), with_sft,
            {"WORLD_SIZE": str(ranks), "RANK": "0"},
        )  # fmt: skip
