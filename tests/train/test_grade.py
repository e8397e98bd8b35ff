"""``siri-train eval``: with the recipe's engine or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import siri_train.commands.eval
from siri_train.cli import main
from siri_train.rollout import TransformersEngine
from siri_train.rollout.build import build_engine
from siri_train.rollout.vllm.http_client import JsonClient
from siri_train.train import train
from siri_train.trainer.run import Run
from tests.train.damage import model_folder
from tests.train.fake_vllm import FakeVllm
from tests.train.test_engine_choice import installed
from tests.train.test_vllm_server_run import fake as fake
from tests.train.test_vllm_server_run import own as own
from tests.train.test_vllm_server_run import recipe


def last_evaluation(run: Path) -> dict[str, Any]:
    """The run's own, less its time and what a checkpoint on its own does not have."""
    row = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    return {key: value for key, value in row.items() if key not in ("step", "name", "seconds")}


def graded(checkpoint: Path) -> dict[str, Any]:
    """What ``eval`` wrote, less its time."""
    row = json.loads((checkpoint / "eval.json").read_text())
    assert row.pop("seconds") > 0
    return dict(row)


def asked(fake: FakeVllm) -> int:
    """Responses that were asked for at the largest budget, as an evaluation's are."""
    bodies = [b for b in fake.asked("/inference/v1/generate") if "sampling_params" in b]
    return sum(b["sampling_params"]["max_tokens"] == 24 for b in bodies)


@pytest.fixture
def trained(tiny: Any, fake: FakeVllm) -> Path:
    """The last checkpoint of a run that sampled on a server."""
    small = ("schedule.max_len=24", "schedule.min_len=20", "train.steps=1")
    checkpoint = train(recipe(tiny, fake, *small)) / "checkpoints" / "step_000001"
    assert fake.label == "siri-released"
    fake.calls.clear()
    return checkpoint


@pytest.mark.draw(2, "servers")
def test_it_samples_on_the_recipes_server(fake: FakeVllm, trained: Path) -> None:
    fake._forget()  # somebody restarts it
    assert main(["eval", str(trained)]) == 0
    assert graded(trained) == last_evaluation(trained.parents[1])
    assert asked(fake) == 2 and len(fake.asked("/collective_rpc")) == 1
    assert main(["eval", str(trained)]) == 0  # it has let go of the server
    assert asked(fake) == 4


@pytest.mark.draw(2, "servers")
def test_the_weights_of_a_run_are_not_replaced_unasked(
    fake: FakeVllm, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = JsonClient(fake.url)
    client.post("/update_weight_version", {"new_version": "siri-ab12cd34-7"}, 5.0)
    assert main(["eval", str(trained)]) == 1
    said = capsys.readouterr().err
    assert f"rollout.server.url: {fake.url} holds the weights siri-ab12cd34-7 of a run" in said
    assert f"rollout.server.url={fake.url}" in said and "rollout.engine=transformers" in said
    assert not fake.asked("/pause") and not (trained / "eval.json").exists()

    assert main(["eval", str(trained), "rollout.engine=transformers"]) == 0
    assert not fake.asked("/pause") and asked(fake) == 0
    (trained / "eval.json").unlink()
    assert main(["eval", str(trained), f"rollout.server.url={fake.url}"]) == 0
    assert asked(fake) == 2 and graded(trained) == last_evaluation(trained.parents[1])


@pytest.mark.costly
@pytest.mark.draw(2, "servers")
def test_a_server_with_other_weights_is_not_believed(
    fake: FakeVllm, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = fake.sample
    fake.sample = lambda body, weights: real(body, None)  # the update did not reach it
    assert main(["eval", str(trained)]) == 1
    assert "sync probe" in capsys.readouterr().err
    assert asked(fake) == 0 and not (trained / "eval.json").exists()


@pytest.mark.draw(2, "servers")
def test_a_server_that_is_not_there(
    fake: FakeVllm, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.die()
    assert main(["eval", str(trained), "rollout.server.start_minutes=0.01"]) == 1
    said = capsys.readouterr().err
    assert f"no vLLM server at {fake.url}" in said and "rollout.engine=transformers" in said
    assert "trained on" not in said  # as it would say of a run
    assert not (trained / "eval.json").exists()
    fake.start()


@pytest.mark.costly
@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ("vllm", "rollout.engine: vLLM is not installed"),
        ("vllm-server", "rollout.server.python: no vLLM in the environment"),
    ],
)
def test_without_vllm_no_other_engine_is_taken(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    reason: str,
) -> None:
    run = train(tiny("train.steps=1"))
    checkpoint = run / "checkpoints" / "step_000001"
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\nexit 1\n")
    nothing.chmod(0o755)
    installed(monkeypatch, None)
    options = [f"rollout.engine={engine}", f"rollout.server.python={nothing}"]
    assert main(["eval", str(checkpoint), *options]) == 1
    said = capsys.readouterr().err
    assert f"the recipe's rollout.engine, {engine}, which does not work here: {reason}" in said
    assert said.count("rollout.engine=transformers") == 1
    assert not (checkpoint / "eval.json").exists()
    assert main(["eval", str(checkpoint), *options, "rollout.engine=transformers"]) == 0
    assert graded(checkpoint) == last_evaluation(run)


@pytest.fixture
def alone(tiny: Any, tmp_path: Path) -> Path:
    """A model folder of no run, beside a recipe for its questions, ``recipe.yaml``."""
    (tmp_path / "recipe.yaml").write_text(tiny().to_yaml())
    return model_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "template",
    [None, "{{ 1 / 0 }}", "{{ messages[0].a.b }}", "{{ '' }}", "{{ raise_exception('a\\nb') }}"],
)
def test_a_template_that_cannot_ask_is_refused_before_weights_are_loaded(
    alone: Path, template: str | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if template is not None:
        (alone / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(siri_train.commands.eval, "load_policy", None)
    recipe = str(alone.parent / "recipe.yaml")
    assert main(["eval", str(alone), "--recipe", recipe, "data.template=chat"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("siri-train eval: data.template: chat") and said.count("\n") == 1
    assert "data.template=plain" in said and not (alone / "eval.json").exists()


@pytest.mark.slow
def test_a_server_of_its_own_keeps_out_of_the_runs_folder(own: Any, tmp_path: Path) -> None:
    run = train(own(f"output={tmp_path / 'run'}", "train.steps=1"))
    checkpoint = run / "checkpoints" / "step_000001"
    (run / "server").mkdir()
    (run / "server" / "weights").touch()  # as if it went on
    log = (run / "server.log").read_text()
    assert main(["eval", str(checkpoint)]) == 0
    assert graded(checkpoint) == last_evaluation(run)
    assert (run / "server" / "weights").exists() and (run / "server.log").read_text() == log
    assert [path.name for path in (checkpoint / "eval").iterdir()] == ["server.log"]


def copies(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[bool]:
    """For each engine built: whether it has a copy of the model."""
    found: list[bool] = []

    def build(*args: Any, **kwargs: Any) -> Any:
        engine = build_engine(*args, **kwargs)
        assert isinstance(engine, TransformersEngine)
        found.append(engine.model is not args[1].model)
        return engine

    monkeypatch.setattr(module, "build_engine", build)
    return found


@pytest.mark.costly
@pytest.mark.draw(2, "servers")
def test_the_model_is_copied_only_to_sample_ahead(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (
        copies(monkeypatch, siri_train.commands.eval),
        copies(monkeypatch, siri_train.trainer.run),
    )
    run = train(tiny("rollout.asynchronous=true", "train.steps=1"))
    assert there == [False]  # nothing comes after it
    train(tiny("rollout.asynchronous=true", "train.steps=3"))
    with Run.open(tiny("rollout.asynchronous=true", "train.steps=3")):
        pass
    assert there == [False, True, False]
    assert main(["eval", str(run / "checkpoints" / "step_000003")]) == 0
    assert here == [False]
    assert graded(run / "checkpoints" / "step_000003") == last_evaluation(run)
    assert torch.get_num_threads() == 1
