"""``loss`` in a recipe: every option of ``policy_loss``, and what does not go together."""

from __future__ import annotations

import inspect
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from siri_kernels import policy_loss
from siri_kernels.policy_loss import validate
from siri_kernels.policy_loss.formulas import OBJECTIVES, Objective
from siri_train.config.base import ConfigError
from siri_train.config.loss import LossConfig
from siri_train.config.recipe import parse_config
from siri_train.train import train

TENSORS = ("logprobs", "old_logprobs", "advantages", "cu_seqlens", "mask", "rollout_logprobs",
           "ref_logprobs", "entropy", "denominator", "backend")  # fmt: skip


def test_every_option_of_policy_loss_is_a_key_with_its_default() -> None:
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(policy_loss).parameters.items()
        if name not in TENSORS
    }
    given = LossConfig().options()
    assert given == options
    assert set(options) <= set(LossConfig.model_fields)


@pytest.mark.parametrize("key", validate.CHOICES)
def test_names_are_those_of_policy_loss(key: str) -> None:
    with_key = {"cispo_bounds": ["loss.objective=cispo"], "kl_estimator": ["loss.kl_coef=1"]}
    others = with_key.get(key, [])
    for name in validate.CHOICES[key]:
        assert getattr(parse_config({}, [*others, f"loss.{key}={name}"]).loss, key) == name
        wrong = f"{name}x"
        with pytest.raises(ConfigError) as refused:
            parse_config({}, [*others, f"loss.{key}={wrong}"])
        assert str(refused.value) == (
            f"config: loss.{key}: got '{wrong}'; takes one of {', '.join(validate.CHOICES[key])}; "
            f"did you mean {name}?"
        )
    with pytest.raises(ConfigError, match=f"takes one of {[*validate.CHOICES[key]][0]}, "):
        parse_config({"loss": {key: 3}})


def test_a_name_that_siri_kernels_gains_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        parse_config({}, ["loss.ratio=chapter"])
    monkeypatch.setattr(validate, "RATIOS", (*validate.RATIOS, "chapter"))
    assert parse_config({}, ["loss.ratio=chapter"]).loss.ratio == "chapter"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("dual_clip=3 delta=4", "delta: got 4.0 beside dual_clip (3.0)"),
        ("delta=1.27", "delta: got 1.27; takes a number from 1 + clip_high = 1.28, or null"),
        ("clip_low=1.5", "clip_low: got 1.5; takes a number from 0 to 1 with objective clip"),
        ("objective=cispo dual_clip=3", "dual_clip: got 3.0, which has no effect with objective c"),
        ("objective=sapo delta=3", "delta: got 3.0, which has no effect with objective sapo"),
        ("cispo_bounds=trl", "cispo_bounds: got trl, which has no effect with objective clip"),
        ("sapo_tau=[1,2]", "sapo_tau: got (1.0, 2.0), which has no effect with objective clip"),
        ("kl_estimator=k1", "kl_estimator: got k1, which has no effect while kl_coef is 0"),
        ("kl_unbiased=true", "kl_unbiased: got true, which has no effect while kl_coef is 0"),
        ("kl_limit=10", "kl_limit: got 10.0, which has no effect while kl_coef is 0"),
        ("reference=x", "reference: got x, which has no effect while kl_coef is 0"),
        ("rollout_correction=tis", "rollout_correction compares the trainer's old log-probs"),
        ("reference=", "reference: got ''; takes start, or a path that is not empty"),
    ],
)
def test_what_does_not_go_together_is_one_line(keys: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({}, [f"loss.{key}" for key in keys.split()])
    text = str(refused.value)
    assert said in text and "config: loss" in text and "\n" not in text


def test_what_is_accepted_policy_loss_accepts() -> None:
    rng = random.Random(4)
    values: dict[str, list[Any]] = {
        **{name: list(accepted) for name, accepted in validate.CHOICES.items()},
        "clip_low": [0.0, 0.4, 1.0, 3.0, 20.0], "clip_high": [0.0, 0.3, 5.0, 1e3],
        "dual_clip": [None, 1.5, 1e6], "delta": [None, 1.0, 1.4, 1e6],
        "sapo_tau": [[1.0, 1.05], [1e-3, 1e3]], "off_policy_threshold": [None, 0.0, 20.0],
        "kl_coef": [0.0, 1e-3, 1e3], "kl_unbiased": [False, True], "kl_limit": [None, 1e-9, 1e9],
        "entropy_coef": [0.0, 1e3], "reference": ["start", "x"], "old_logprobs": ["recompute"],
        "rollout_correction": [None, "tis", "mis", "icepop", {"mode": "reject", "high": 1.0}],
    }  # fmt: skip
    taken = 0
    for _ in range(3000):
        keys = rng.sample(sorted(values), rng.randrange(1, 7))
        given = {"old_logprobs": "recompute", **{key: rng.choice(values[key]) for key in keys}}
        try:
            loss = parse_config({"loss": given}).loss
        except ConfigError:
            continue
        taken += 1
        checked = validate.checked_options(**loss.options(), denominator=1.0)
        assert checked.objective == loss.objective
    assert taken > 500


def test_an_objective_that_is_registered_trains(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the how-to: a formula in the registry, and a recipe that names it."""
    with pytest.raises(ConfigError, match="got 'plain'; takes one of clip, cispo"):
        tiny("loss.objective=plain")
    monkeypatch.setitem(OBJECTIVES, "plain", Objective(lambda _, ratio, a, __: -a * ratio))
    run = train(tiny("loss.objective=plain", "train.steps=2"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(row["grad_norm"] for row in rows) and rows[0]["clip_frac_high"] == 0
    assert "objective: plain" in (run / "config.yaml").read_text()


def test_the_recipes_of_the_page_are_accepted() -> None:
    """docs/losses.md, "In a recipe": every cell in code type is a list of overrides."""
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    table = page.partition("## In a recipe")[2].partition("\n\n**KL.**")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    seen = [parse_config({})]
    for paper, cell in rows:
        for text in re.findall("`([^`]+)`", cell):
            if "=" not in text:
                continue  # a name of a key or of a choice
            config = parse_config({}, shlex.split(text))
            assert config not in seen, (paper, text)
            seen.append(config)
    assert len(seen) > 12
