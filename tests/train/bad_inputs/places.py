"""Places that cannot be written or read: files where folders are wanted, loops, names too long."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.train.bad_inputs.bed import RECIPE, Bad, write_recipe


def _a_file(home: Path) -> None:
    (home / "taken").write_text("mine\n")


def _links(home: Path) -> None:
    os.symlink("nowhere/at/all", home / "dangling")
    os.symlink("loop", home / "loop")
    _a_file(home)


PLACES: tuple[tuple[str, str, str], ...] = (
    ("a file", "taken", "taken"),
    ("under a file", "taken/run", "taken"),
    ("deep under a file", "taken/a/b/c", "taken"),
    ("a dangling link", "dangling", "dangling"),
    ("under a dangling link", "dangling/run", "dangling"),
    ("a loop of links", "loop", "loop"),
    ("under a loop of links", "loop/run", "loop"),
    ("a long name", "n" * 300, "nnn"),
    ("a long name inside", f"runs/{'n' * 300}/run", "nnn"),
    ("a long path", "/".join(["part"] * 1500), "part"),
    ("a device", "/dev/null", "/dev/null"),
    ("under a device", "/dev/null/run", "/dev/null"),
    ("no such process", "/proc/self/nowhere/run", "/proc"),
    ("a file of the system", "/proc/version", "/proc/version"),
)


def places() -> Iterator[Bad]:
    """Every command that writes, into every such place."""
    draw = random.Random(7)
    commands: dict[str, Callable[[str], tuple[str, ...]]] = {
        "train": lambda place: ("train", RECIPE, f"output={place}"),
        "sft": lambda place: ("sft", RECIPE, f"output={place}"),
        "demo": lambda place: ("demo", "--out", place),
        "svg": lambda place: ("schedule", RECIPE, "--svg", place + "/cap.svg"),
    }

    def prepare(home: Path) -> None:
        write_recipe(home, sft={"steps": 2, "batch_size": 4})
        _links(home)

    for name, place, word in PLACES:
        for command in draw.sample(sorted(commands), 2):
            if command == "svg" and name == "a dangling link":
                continue
            yield Bad("places", f"{command}: {name}", commands[command](place), (word,), prepare)
    # In a recipe a name may hold what a shell cannot pass on.
    for what, text in (("a zero", "a\0b"), ("lines", "run\nning"), ("a lone surrogate", "\ud800")):

        def written(home: Path, text: str = text) -> None:
            recipe = yaml.safe_load((home / RECIPE).read_text())
            dumped = yaml.safe_dump({**recipe, "output": "HERE"})
            quoted = '"' + text.replace("\0", "\\0").replace("\n", "\\n") + '"'
            quoted = quoted.replace("\ud800", "\\ud800")
            (home / RECIPE).write_text(dumped.replace("HERE", quoted))

        yield Bad("places", f"output with {what}", ("train", RECIPE), ("output",), written)


def sources() -> Iterator[Bad]:
    """Recipes, models, data and runs in places where nothing can be read."""

    def prepare(home: Path) -> None:
        _links(home)
        (home / "empty").mkdir()
        (home / "binary.jsonl").write_bytes(bytes(range(256)))

    file = "data.train=[{{kind: file, path: {}}}]"
    for name, argv, word in (
        ("recipe: a loop", ("train", "loop"), "loop"),
        ("recipe: dangling", ("train", "dangling"), "dangling"),
        ("recipe: under a file", ("train", "taken/x.yaml"), "taken"),
        ("recipe: a long name", ("train", "n" * 300), "nnn"),
        ("recipe: a folder", ("train", "empty"), "empty"),
        ("recipe: empty folder and name", ("train", "empty/x.yaml"), "empty/x.yaml"),
        ("model: a file", ("train", RECIPE, "model.path=taken"), "model.path"),
        ("model: empty", ("train", RECIPE, "model.path=empty"), "empty"),
        ("model: a loop", ("train", RECIPE, "model.path=loop"), "loop"),
        ("model: missing", ("train", RECIPE, "model.path=models/none"), "models/none"),
        ("model: a long name", ("train", RECIPE, f"model.path={'n' * 300}"), "model.path"),
        ("model: no hub", ("train", RECIPE, "model.path=nobody/nothing"), "nobody/nothing"),
        ("model: nothing to convert",
         ("train", RECIPE, "model.path=m", "model.convert_from=no:x.gguf"), "convert_from"),
        ("data: a file without rows", ("train", RECIPE, file.format("taken")), "taken"),
        ("data: empty", ("train", RECIPE, file.format("empty")), "empty"),
        ("data: a loop", ("train", RECIPE, file.format("loop")), "loop"),
        ("data: dangling", ("train", RECIPE, file.format("dangling")), "dangling"),
        ("data: binary", ("train", RECIPE, file.format("binary.jsonl")), "binary.jsonl"),
        ("data: none of several", ("train", RECIPE, file.format("[a.jsonl, b.jsonl]")), "b.jsonl"),
        ("data: an empty list", ("train", RECIPE, file.format("[]")), "path"),
        ("data: no hub", ("train", RECIPE, file.format("'hub:nobody/nothing'")),
        "hub:nobody/nothing"),
        ("data: no hub name", ("train", RECIPE, file.format("'hub:a b'")), "hub:a b"),
        ("data: a device", ("train", RECIPE, file.format("/dev/null")), "/dev/null"),
        ("report: a loop", ("report", "loop"), "loop"),
        ("report: a file", ("report", "taken"), "taken"),
        ("report: an empty folder", ("report", "empty"), "empty"),
        ("export: a file", ("export", "taken", "--which", "low"), "taken"),
        ("eval: an empty folder", ("eval", "empty"), "empty"),
        ("eval: a loop", ("eval", "loop"), "loop"),
        ("convert: an empty folder", ("convert", "empty", "model"), "empty"),
        ("convert: a text", ("convert", "taken", "model"), "taken"),
        ("resume: a file", ("train", RECIPE, "--resume", "taken"), "taken"),
        ("resume: an empty folder", ("train", RECIPE, "--resume", "empty"), "empty"),
        ("resume: a loop", ("train", RECIPE, "--resume", "loop"), "loop"),
        ("resume: a long name", ("train", RECIPE, "--resume", "n" * 300), "--resume"),
    ):  # fmt: skip
        given_by = {"model": "model.", "data": "data.train", "resume": "--resume"}
        key = given_by.get(name.partition(":")[0], "")
        yield Bad("sources", name, argv, (word, key), prepare)
