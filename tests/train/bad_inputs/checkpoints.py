"""Runs whose checkpoints are damaged: resuming, exporting and grading them."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.train.bad_inputs.bed import RECIPE, Bad, write_recipe

STEP = "run/checkpoints/step_000002"


@functools.cache
def _run() -> Path:
    """A run of two steps with both checkpoints, and a supervised stage that is half done."""
    from siri_train.commands import sft
    from siri_train.config.recipe import load_config
    from siri_train.train import train

    home = Path(tempfile.mkdtemp(prefix="bad_input_run_"))
    write_recipe(home, train={"steps": 2, "token_budget": 1024}, schedule=_SCHEDULE)
    before, step = Path.cwd(), sft.supervised_step
    os.chdir(home)
    calls: list[int] = []

    def twice(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError
        return step(*args)

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train(load_config(RECIPE))
            sft.supervised_step = twice
            with contextlib.suppress(InterruptedError):
                sft.supervise(load_config(RECIPE, ["output=half", *_SFT]))
    finally:
        sft.supervised_step = step
        os.chdir(before)
    return home


_SCHEDULE = {"max_len": 24, "min_len": 12, "cycle": 2}
_SFT = ("sft.steps=4", "sft.batch_size=4")


def _bad(
    name: str, change: Callable[[Path], None], *words: str, argv: tuple[str, ...] | None = None
) -> Bad:
    def prepare(home: Path) -> None:
        shutil.copytree(_run(), home, dirs_exist_ok=True)
        change(home)

    resume = ("train", RECIPE, "train.steps=3")
    return Bad("checkpoints", name, argv or resume, words, prepare)


def _flip(path: Path, share: float) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(share * len(raw))] ^= 0x41
    path.write_bytes(raw)


DAMAGE: dict[str, Callable[[Path, float], Any]] = {
    "cut": lambda path, share: os.truncate(path, int(share * path.stat().st_size)),
    "empty": lambda path, share: path.write_bytes(b""),
    "gone": lambda path, share: path.unlink(),
    "flipped": _flip,
    "longer": lambda path, share: path.write_bytes(path.read_bytes() + b"\0"),
}

FILES = (
    "model.safetensors",
    "trainer_state.pt",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
)


class _Own:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def checkpoints() -> Iterator[Bad]:
    """Every kind of damage to drawn files; the index; other states; manifests that lead away."""
    draw = random.Random(11)
    for how, damage in DAMAGE.items():
        for file in draw.sample(FILES, 2):
            share = draw.random()

            def change(
                home: Path, damage: Any = damage, file: str = file, at: float = share
            ) -> None:
                damage(home / STEP / file, at)

            yield _bad(f"{file} {how}", change, file)
            if how in ("cut", "flipped"):
                export = ("export", "run", "--which", "2", "--out", "copy")
                yield _bad(f"export: {file} {how}", change, file, argv=export)
                yield _bad(f"eval: {file} {how}", change, file, argv=("eval", STEP))
    for name, raw in (
        ("gone", None), ("empty", b""), ("no JSON", b"{"), ("a list", b"[]"), ("a number", b"5"),
        ("no files", b'{"format": 1, "step": 2, "files": {}}'), ("deep", b"[" * 50_000),
        ("another format", b'{"format": 99, "step": 2, "files": {}}'),
        ("not UTF-8", b'{"\xff": 1}'),
        ("files as a list", b'{"format": 1, "step": 2, "files": [1]}'),
        ("a file outside", b'{"format": 1, "step": 2, "files": {"../../../tiny.yaml": [1, 2]}}'),
        ("sizes of text", b'{"format": 1, "step": 2, "files": {"config.json": "ab"}}'),
        ("no sizes", b'{"format": 1, "step": 2, "files": {"config.json": []}}'),
    ):  # fmt: skip

        def index(home: Path, raw: bytes | None = raw) -> None:
            path = home / STEP / "checkpoint.json"
            path.unlink() if raw is None else path.write_bytes(raw)

        yield _bad(f"checkpoint.json {name}", index, "step_000002")

    def state(name: str, make: Callable[[dict[str, Any]], Any]) -> Bad:
        def change(home: Path) -> None:
            path = home / STEP / "trainer_state.pt"
            made = make(torch.load(path, weights_only=True))
            path.write_bytes(made) if isinstance(made, bytes) else torch.save(made, path)
            from siri_train.checkpoint.save_load import size_and_crc

            index = json.loads((home / STEP / "checkpoint.json").read_text())
            index["files"]["trainer_state.pt"] = size_and_crc(path)
            (home / STEP / "checkpoint.json").write_text(json.dumps(index))

        return _bad(f"trainer_state.pt: {name}", change, "trainer_state.pt")

    yield state("a pickle that runs", lambda s: pickle.dumps(_Own()))
    yield state("an object in it", lambda s: {**s, "step": _Own()})
    yield state("a text", lambda s: b"hello")
    yield state("a list", lambda s: [1, 2])
    yield state("no optimiser", lambda s: {"step": 2, "rng": s["rng"]})
    yield state("no generators", lambda s: {k: v for k, v in s.items() if k != "rng"})
    yield state("generators of text", lambda s: {**s, "rng": "x"})
    yield state("a short generator", lambda s: {**s, "rng": {**s["rng"], "torch": torch.ones(3)}})
    yield state("a step of text", lambda s: {**s, "step": "two"})
    yield state("a negative step", lambda s: {**s, "step": -2})
    yield state("another step", lambda s: {**s, "step": draw.randrange(3, 10**9)})
    yield state("no step", lambda s: {k: v for k, v in s.items() if k != "step"})

    def manifest(path: str) -> Callable[[Path], None]:
        def change(home: Path) -> None:
            end = {"step": 1, "path": path, "accuracy": 0.0, "tokens": 1.0}
            made = {"siri-low": end, "siri-high": end, "cycles": []}
            (home / "run/checkpoints/manifest.json").write_text(json.dumps(made))

        return change

    low = ("export", "run", "--which", "low", "--out", "copy")
    for path in ("../half", "..", "/etc", "checkpoints/../../half", "checkpoints/none", "", "\0"):
        yield _bad(f"manifest leads to {path!r}", manifest(path), "siri-low", argv=low)
    for name, raw in (
        ("no JSON", b"{"),
        ("a list", b"[]"),
        ("deep", b"[" * 50_000),
        ("text", b'{"siri-low": 5}'),
    ):

        def spoilt(home: Path, raw: bytes = raw) -> None:
            (home / "run/checkpoints/manifest.json").write_bytes(raw)

        yield _bad(f"manifest: {name}", spoilt, "manifest.json", argv=low)
    for name, raw in (
        ("no YAML", b"{"),
        ("a list", b"[]"),
        ("not UTF-8", b"\xff"),
        ("deep", b"[" * 3000),
    ):

        def config(home: Path, raw: bytes = raw) -> None:
            (home / "run/config.yaml").write_bytes(raw)

        yield _bad(f"eval, config.yaml: {name}", config, "config.yaml", argv=("eval", STEP))

    keep = lambda home: None  # noqa: E731
    train = ("train", RECIPE)
    yield _bad(
        "another model",
        keep,
        "step_000002",
        argv=(*train, "model.scratch={layers: 2}", "train.steps=3"),
    )
    yield _bad("another seed", keep, "seed", argv=(*train, "seed=5", "train.steps=3"))
    yield _bad("fewer steps", keep, "train.steps", argv=(*train, "train.steps=1"))
    yield _bad("never", keep, "--resume", argv=(*train, "--resume", "never"))
    yield _bad("no such step", keep, "step", argv=("export", "run", "--which", "7"))
    yield _bad(
        "out is there", keep, "--out", argv=("export", "run", "--which", "2", "--out", "half")
    )
    sft = ("sft", RECIPE, "output=half", *_SFT)
    for how in draw.sample(sorted(DAMAGE), 3):
        file, share = draw.choice(FILES), draw.random()

        def half(home: Path, how: str = how, file: str = file, at: float = share) -> None:
            DAMAGE[how](home / "half/sft_stage/checkpoints/step_000002" / file, at)

        yield _bad(f"sft: {file} {how}", half, file, argv=sft)
    yield _bad("sft: never", keep, "--resume", argv=(*sft, "--resume", "never"))
    yield _bad("sft: another seed", keep, "seed", argv=(*sft, "seed=3"))
    yield _bad("sft: fewer steps", keep, "sft.steps", argv=(*sft, "sft.steps=1"))
    yield _bad(
        "train: half done", keep, "siri-train sft", argv=("train", RECIPE, "output=half", *_SFT)
    )
