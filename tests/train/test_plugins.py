"""Plug-ins: the code blocks of CONTRIBUTING as a user's modules, trained with; what is refused."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from siri_kernels.policy_loss.formulas import OBJECTIVES
from siri_train.checkpoint.resume import compare_with_before
from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.monitor import alarms
from siri_train.registry import names as registry
from siri_train.rewards import REWARDS, VERIFIERS, grade_responses
from siri_train.schedule import SHAPES, LengthSchedule
from tests.train.conftest import TINY

ROOT = Path(__file__).parents[2]
SECTIONS = ("A loss objective", "A reward", "A verifier", "A schedule shape", "An alarm")
OVERRIDES = [
    "schedule.shape=triangle",
    "schedule.options={power: 2.0}",
    "reward.function=length-share",
    "reward.options={weight: 0.25}",
    "reward.verifier=caseless",
    "loss.objective=half-square",
]
SMALL = ["data.eval.0.size=2", "eval.at_start=false", "rollout.prompts=2"]
# Raised at every step.
ALWAYS = """
from siri_train.monitor.alarms import Raised, alarm

@alarm("always", cause="step {step} of a run with a plug-in", action="nothing")
def always(row, history):
    return Raised(row["accuracy"], step=row["step"])
"""


def code_of(section: str) -> str:
    """The Python blocks of a how-to."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^### {section}\n(.*?)(?=^### |^## )", page, re.M | re.S)
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """``plugin(name, code)`` writes a module that can be imported; later all is as it was."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    entries = [(one, dict(one.data)) for one in registry._ALL]
    objectives, modules = dict(OBJECTIVES), set(sys.modules)

    def write(name: str, code: str) -> str:
        path = folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
        return name

    yield write
    forget(entries, objectives, modules)


def forget(entries: Any, objectives: Any, modules: set[str]) -> None:
    """As in a new process."""
    for one, data in entries:
        one.data = dict(data)
    OBJECTIVES.clear()
    OBJECTIVES.update(objectives)
    for name in set(sys.modules) - modules:
        if not name.startswith(("siri_", "torch", "transformers")):
            del sys.modules[name]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.costly
def test_train_with_one_of_each_kind(
    plugin: Callable[[str, str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps in a process of its own, by the how-tos alone; then all else that reads the run."""
    for section in SECTIONS:
        plugin(f"mine.{section.split()[-1]}", code_of(section))
    plugin("always", ALWAYS)
    modules = [f"mine.{section.split()[-1]}" for section in SECTIONS] + ["always"]
    recipe, run = tmp_path / "own.yaml", tmp_path / "run"
    tiny = copy.deepcopy(TINY) | {"plugins": modules, "output": str(run)}
    recipe.write_text(yaml.safe_dump(tiny))
    command = [sys.executable, "-m", "siri_train", "train", str(recipe), *SMALL, *OVERRIDES]
    path = os.pathsep.join([str(tmp_path / "plugins"), str(ROOT)])
    subprocess.run(
        [*command, "train.steps=2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
    )
    assert [row["cap"] for row in rows(run / "metrics.jsonl")] == [56, 48]  # 56 - (1/2)**2 * 32
    (always,) = [row for row in rows(run / "alarms.jsonl") if row["alarm"] == "always"]
    assert (always["step"], always["state"]) == (0, "raised")  # in the second step it is still on
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["plugins"] == modules and saved["reward"]["function"] == "length-share"
    for row in rows(run / "rollouts" / "step_000000.jsonl"):
        right = row["answer"] is not None and row["answer"] == row["gold"]
        assert row["reward"] == pytest.approx(right * (1 - 0.25 * row["tokens"] / 56))

    assert "triangle" not in SHAPES  # this process knows none of it yet
    assert main(["train", str(recipe), *SMALL, *OVERRIDES, "train.steps=3"]) == 0
    assert "continues from step 2" in capsys.readouterr().out
    checkpoint = run / "checkpoints" / "step_000003"
    assert SHAPES["triangle"] and REWARDS["length-share"] and VERIFIERS["caseless"]
    assert main(["eval", str(checkpoint)]) == 0  # by config.yaml
    assert main(["export", str(run), "--which", "low"]) == 0
    assert main(["schedule", str(run / "config.yaml"), "--svg", str(tmp_path / "cap.svg")]) == 0
    assert "triangle" in (tmp_path / "cap.svg").read_text()


def test_a_run_halts_on_the_alarm_of_a_plugin(
    plugin: Callable[[str, str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin("always", ALWAYS)
    recipe = tmp_path / "own.yaml"
    tiny = copy.deepcopy(TINY) | {"plugins": ["always"], "output": str(tmp_path / "run")}
    recipe.write_text(yaml.safe_dump(tiny))
    assert main(["train", str(recipe), *SMALL, "--halt-on", "always"]) == 1
    assert "always: step 0 of a run with a plug-in; nothing" in capsys.readouterr().err
    assert main(["train", str(recipe), *SMALL, "monitor.halt_on=[alwais]"]) == 1
    assert "did you mean always?" in capsys.readouterr().err


def test_eval_imports_the_plugins_of_the_run(
    plugin: Callable[[str, str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that reads a run's configuration imports first and then checks the names."""
    plugin("shapes", code_of("A schedule shape"))
    config = tmp_path / "config.yaml"
    tiny = copy.deepcopy(TINY) | {"plugins": ["shapes"]}
    tiny["schedule"] |= {"shape": "triangle"}
    config.write_text(yaml.safe_dump(tiny))
    (tmp_path / "plugins" / "shapes.py").rename(tmp_path / "plugins" / "gone.py")
    assert main(["train", str(config), "--dry-run"]) == 1
    said = capsys.readouterr().err
    assert "plugins.0: there is no module 'shapes' to import" in said and said.count("\n") == 1
    (tmp_path / "plugins" / "gone.py").rename(tmp_path / "plugins" / "shapes.py")
    assert main(["schedule", str(config), "--svg", str(tmp_path / "cap.svg")]) == 0


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("no_such_module", None, "there is no module 'no_such_module' to import"),
        ("siri_train.nothing", None, "there is no module 'siri_train.nothing' to import"),
        ("not/a/module.py", None, "got 'not/a/module.py'; takes the dotted name of a Python mod"),
        ("lacks", "import a_package_that_is_not", "lacks fails on import: ModuleNotFoundError: "),
        ("raises", "\n1 / 0", r"raises fails on import: ZeroDivisionError: .* \(raises.py, line 2"),
        ("leaves", "raise SystemExit(3)", "leaves fails on import: SystemExit: 3"),
        ("odd", "def f(:", r"odd fails on import: SyntaxError: .*\(odd.py, line 1\)"),
        (
            "taken",
            "from siri_train.rewards import *\nREWARDS['new'] = REWARDS['length-cap'] = 1",
            "taken: the reward 'length-cap' exists already; give yours another name",
        ),
        (
            "other",
            "from siri_kernels.policy_loss.formulas import OBJECTIVES as O\nO['clip'] = O['sapo']",
            "other: the objective 'clip' exists already",
        ),
        (
            "blank",
            "from siri_train.schedule import SHAPES\nSHAPES['a b'] = 1",
            "blank fails on import: ValueError: schedule shape 'a b': takes a name",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line(
    plugin: Callable[[str, str], str], name: str, code: str | None, said: str
) -> None:
    if code is not None:
        plugin(name, code)
    before = {one.kind: dict(one.data) for one in registry._ALL}, dict(OBJECTIVES)
    for _ in range(2):  # the second time as the first
        with pytest.raises(ConfigError, match=f"plugins.0: {said}") as error:
            parse_config(copy.deepcopy(TINY), [f"plugins=[{name}]"])
        assert "\n" not in str(error.value)
    assert before == ({one.kind: dict(one.data) for one in registry._ALL}, dict(OBJECTIVES))


def test_names_are_known_with_the_plugin_and_refused_without(
    plugin: Callable[[str, str], str],
) -> None:
    plugin("shapes", code_of("A schedule shape"))
    with pytest.raises(ConfigError, match="schedule.shape: got 'triangle'; takes one of cosine, "):
        parse_config(copy.deepcopy(TINY), ["schedule.shape=triangle"])
    near = "schedule.shape: got 'Stair_Cosine'; .*did you mean stair-cosine"
    with pytest.raises(ConfigError, match=near):
        parse_config(copy.deepcopy(TINY), ["schedule.shape=Stair_Cosine"])
    own = ["plugins=[shapes]", "schedule.shape=triangle"]
    config = parse_config(copy.deepcopy(TINY), own)
    assert [config.schedule.build()(t) for t in range(5)] == [56, 40, 24, 40, 56]
    assert RunConfig.model_validate(yaml.safe_load(config.to_yaml())) == config
    with pytest.raises(ConfigError, match=r"schedule.options.powr: unknown .*did you mean power"):
        parse_config(copy.deepcopy(TINY), [*own, "schedule.options={powr: 1}"])
    with pytest.raises(ConfigError, match=r"schedule.options.power: got 'x'; .*takes a number"):
        parse_config(copy.deepcopy(TINY), [*own, "schedule.options={power: x}"])
    with pytest.raises(ConfigError, match=r"reward.options.a: unknown option; the reward 'length-"):
        parse_config(copy.deepcopy(TINY), ["reward.options={a: 1}"])


def test_alarm_of_the_how_to(plugin: Callable[[str, str], str]) -> None:
    plugin("alarm_plugin", code_of("An alarm"))
    parse_config(copy.deepcopy(TINY), ["plugins=[alarm_plugin]"])
    row = {
        "step": 1, "cap": 1000, "response_len_mean": 10.0, "truncated_frac": 0.0,
        "groups_all_zero": 0.0, "grad_norm": 1.0,
    }  # fmt: skip
    assert alarms.check(row, []) == []
    (raised,) = alarms.check(row | {"response_len_mean": 9.0}, [])
    assert raised["alarm"] == "cap-unused" and "9 tokens" in raised["cause"]


LEARNS = """
from siri_train.schedule import SHAPES, Shape

def observe(row, schedule):
    seen = [] if schedule.state is None else schedule.state["seen"]
    return {"seen": [*seen, row["cap"]]}

def cap(step, schedule):
    seen = 0 if schedule.state is None else len(schedule.state["seen"])
    return schedule.max_len - 3 * seen

SHAPES["learns"] = Shape(cap, observe=observe, periodic=False)
"""


@pytest.mark.costly
def test_what_a_shape_has_learnt_is_in_the_checkpoint(
    plugin: Callable[[str, str], str], tmp_path: Path
) -> None:
    from siri_train.train import train

    plugin("learning", LEARNS)
    tiny = [*SMALL, "plugins=[learning]", "schedule.shape=learns"]

    def config(folder: str, steps: int) -> RunConfig:
        more = [f"output={tmp_path / folder}", f"train.steps={steps}"]
        return parse_config(copy.deepcopy(TINY), [*tiny, *more])

    train(config("whole", 4))
    train(config("parts", 2))
    train(config("parts", 4))
    for folder in ("whole", "parts"):
        caps = [row["cap"] for row in rows(tmp_path / folder / "metrics.jsonl")]
        assert caps == [56, 53, 50, 47]
        kept = tmp_path / folder / "checkpoints" / "step_000004" / "schedule.json"
        assert json.loads(kept.read_text()) == {"shape": "learns", "state": {"seen": caps}}
    with pytest.raises(ValueError, match="shape: got 'learns', whose cap depends on how the run"):
        LengthSchedule("learns", 56, 24, 4).require_stateless("TRL")


def test_graded_alone_a_function_that_compares_is_refused(
    plugin: Callable[[str, str], str],
) -> None:
    plugin(
        "compares",
        "from siri_train.rewards import REWARDS, Reward\n"
        "REWARDS['shortest'] = Reward(lambda g: [float(r.tokens == min(x.tokens for x in "
        "g.responses)) for r in g.responses], compares=True)",
    )
    parse_config(copy.deepcopy(TINY), ["plugins=[compares]", "reward.function=shortest"])
    from siri_train.rewards import ExactVerifier, Response, require_single

    responses = [Response("", "stop", tokens=n) for n in (5, 3, 4, 2)]
    grades = grade_responses(
        responses, ["1"] * 4, verifier=ExactVerifier(), function="shortest", group_size=2
    )
    assert [grade.reward for grade in grades] == [0.0, 1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="got 'shortest', which compares .* takes one of length-c"):
        grade_responses(responses, ["1"] * 4, verifier=ExactVerifier(), function="shortest")
    with pytest.raises(ValueError, match="reward.function: .* verl grades one response at a time"):
        require_single("shortest", "reward.function", "verl")


def test_a_run_of_before_there_were_plugins_resumes_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(copy.deepcopy(TINY), [f"output={tmp_path}"])
    saved = yaml.safe_load(config.to_yaml())
    del saved["plugins"], saved["reward"]["function"], saved["reward"]["options"]
    del saved["schedule"]["options"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    compare_with_before(config)
    assert capsys.readouterr().out == ""
    REWARDS["later"] = REWARDS["length-cap"]
    try:
        compare_with_before(
            parse_config(copy.deepcopy(TINY), [f"output={tmp_path}", "reward.function=later"])
        )
    finally:
        del REWARDS["later"]
    assert "reward.function was length-cap, is now later" in capsys.readouterr().out
