"""The recipe's screen of the head: what it takes, which calls have it, what a row of metrics says.

The calls are watched and compute exactly, so that nothing here depends on where there is a screen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from siri_kernels import linear_logprob, take_forward_stats
from siri_kernels.linear_logprob.head import scoring
from siri_kernels.linear_logprob.screen.stats import report
from siri_train.config.base import ConfigError
from siri_train.config.loss import LossConfig
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig, TrainConfig
from siri_train.model.policy import Policy
from siri_train.train import train, update
from siri_train.trainer import preflight
from siri_train.trainer import update as parts
from siri_train.trainer.optimizer import make_optimizer
from siri_train.trainer.update import score
from tests.train.test_step import samples

Report = tuple[int, int, float, float | None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``calls(reports)``: the list of the head's calls, which grows: screen, tolerance, gradient.

    Each call reports the next of ``reports``: tokens, screened ones, estimate, error.
    """

    def start(reports: list[Report] | None = None) -> list[Any]:
        seen: list[Any] = []

        def watch(*tensors: Any, screen: Any, logprob_tol: Any, **options: Any) -> Any:
            seen.append((screen, logprob_tol, torch.is_grad_enabled()))
            if reports is not None:
                report(*reports[(len(seen) - 1) % len(reports)], False)
            return linear_logprob(*tensors, **options)

        monkeypatch.setattr(scoring, "linear_logprob", watch)
        return seen

    take_forward_stats()
    return start


@pytest.mark.parametrize("screen", ["null", "int8", "fp8", "auto"])
def test_what_a_recipe_takes(screen: str) -> None:
    config = parse_config({}, [f"train.screen={screen}"])
    assert config.train.screen == (None if screen == "null" else screen)
    assert config.train.logprob_tol == 1e-4
    assert RunConfig().train.screen is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.screen=int4"], "train.screen: got .*int4.*takes.*int8, fp8, auto"),
        (["train.screen=true"], "train.screen: got 'true'"),
        (["train.logprob_tol=0"], "train.logprob_tol: got 0; takes a number above 0"),
        (["train.logprob_tol=null"], "train.logprob_tol: got null"),
    ],
)
def test_other_values_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({}, overrides)


def test_a_head_sharded_by_vocabulary_has_no_screen() -> None:
    sharded = "distributed.vocabulary_parallel_head=true"
    for screen in ("int8", "fp8"):
        message = f"train.screen \\({screen}\\) needs a whole head.*false, or train.screen to null"
        with pytest.raises(ConfigError, match=message):
            parse_config({}, [sharded, f"train.screen={screen}"])
    for screen in ("null", "auto"):
        parse_config({}, [sharded, f"train.screen={screen}"])


@pytest.mark.draw(3, "runs")
@pytest.mark.parametrize("overrides", [[], ["loss.kl_coef=0.1"], ["loss.old_logprobs=recompute"]])
def test_every_pass_of_a_run_has_it(
    tiny: Any, calls: Callable[..., list[Any]], overrides: list[str]
) -> None:
    reports: list[Report] = [(8, 4, 1e-5, None), (8, 4, 3e-5, 2e-5), (8, 4, 2e-5, 5e-5)]
    seen = calls(reports)
    screened = ["train.screen=int8", "train.logprob_tol=0.003", "train.steps=2"]
    config = tiny(*screened, "train.rehearse=always", *overrides)
    folder = train(config)
    assert {call[:2] for call in seen} == {("int8", 0.003)}
    assert {call[2] for call in seen} == {True, False}  # the probe of the weights too
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["grad_norm"] is not None]
    assert trained
    for row in trained:
        assert row["screened_frac"] == 0.5
        assert row["screen_error_max"] in (1e-5, 3e-5, 5e-5)


def test_without_one_the_row_has_no_value(tiny: Any, calls: Callable[..., list[Any]]) -> None:
    seen = calls()
    folder = train(tiny("train.steps=1"))
    assert {call[:2] for call in seen} == {(None, 1e-4)}
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert row["screened_frac"] is None and row["screen_error_max"] is None


def updated(policy: Policy) -> Any:
    batch = samples(16)
    score(policy, batch, 1024, 1.0)
    config = TrainConfig(mini_batches=2, token_budget=60)
    return update(
        policy, make_optimizer(policy.model, config), batch, config, LossConfig(),
        temperature=1.0, constant_length=24, seed=0,
    )  # fmt: skip


def drawn(count: int) -> list[Report]:
    reports: list[Report] = []
    for _ in range(count):
        tokens = random.randrange(1, 300)
        error = random.choice([None, random.uniform(0, 1e-3)])
        reports.append((tokens, random.randrange(tokens + 1), random.uniform(0, 1e-3), error))
    return reports


def expected(reports: list[Report]) -> tuple[float, float]:
    errors = [x for _, _, estimate, error in reports for x in (estimate, error) if x is not None]
    return sum(r[1] for r in reports) / sum(r[0] for r in reports), max(errors)


def test_share_and_largest_error_are_those_of_the_updates_alone(
    policy: Policy, calls: Callable[..., list[Any]]
) -> None:
    """Not of the pass before them, which has reported the largest error of all."""
    take_forward_stats()
    reports = drawn(50)
    before = len(list(parts.own_micro_batches(policy, samples(16), 1024)))
    reports[:before] = [(10, 10, 7.0, 9.0)] * before
    seen = calls(reports)
    stats = updated(policy)
    assert before < len(seen) < 50
    share, error = expected(reports[before : len(seen)])
    assert stats.screened_frac == pytest.approx(share)
    assert stats.screen_error_max == error
    assert take_forward_stats() is None


@pytest.mark.parametrize("screens", [(True, True), (True, False), (False, True), (False, False)])
def test_ranks_are_weighed_by_their_tokens(
    policy: Policy,
    calls: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    screens: tuple[bool, bool],
) -> None:
    """``auto`` may be a screen on one rank and none on another, whose tokens are then left out."""
    reports = [*drawn(50)]
    seen = calls(reports if screens[0] else None)
    gather, tokens = parts.distributed.gather, random.randrange(1, 500)
    share, error = random.random(), random.uniform(0, 1e-3)

    def two(mine: Any) -> list[Any]:
        if not isinstance(mine, tuple):
            return gather(mine)
        sums, largest = {"tokens": tokens, "loss": 0.0}, {"ratio_max": 2.0}
        if screens[1]:
            sums |= {"screened_tokens": share * tokens, "screen_tokens": tokens}
            largest["screen_error_max"] = error
        return [mine, (sums, largest)]

    monkeypatch.setattr(parts.distributed, "gather", two)
    before = len(list(parts.own_micro_batches(policy, samples(16), 1024)))
    stats = updated(policy)
    own_tokens = stats.trained_tokens - tokens
    own_share, own_error = expected(reports[before : len(seen)])
    weights = (own_tokens * screens[0], tokens * screens[1])
    if not any(screens):
        assert stats.screened_frac is None and stats.screen_error_max is None
        return
    want = (own_share * weights[0] + share * weights[1]) / sum(weights)
    assert stats.screened_frac == pytest.approx(want)
    errors = (own_error * screens[0], error * screens[1])
    assert stats.screen_error_max == pytest.approx(max(errors))
    assert stats.ratio_max >= 2.0 and not set(stats.means) & {"screened_tokens", "screen_tokens"}


@pytest.mark.parametrize("screen", ["int8", "fp8", "auto"])
def test_it_is_refused_before_the_model_is_loaded_where_the_head_would_refuse_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, screen: str
) -> None:
    hidden, weight, targets = torch.randn(2, 8), torch.randn(9, 8), torch.tensor([1, 2])
    try:
        linear_logprob(hidden, weight, targets, screen=screen)
        taken = True
    except ValueError:
        taken = False
    assert taken or screen == "fp8"
    loaded: list[Any] = []

    class Loaded(Exception):
        pass

    def load(*arguments: Any, **options: Any) -> None:
        loaded.append(options)
        raise Loaded

    monkeypatch.setattr("siri_train.trainer.run.load_policy", load)
    if taken:
        with pytest.raises(Loaded):
            train(tiny(f"train.screen={screen}", "device=cpu"))
        assert loaded[0]["train"].screen == screen
        return
    with pytest.raises(ConfigError, match="train.screen: screen='fp8' .*CPU.*null or auto"):
        train(tiny(f"train.screen={screen}", "device=cpu"))
    assert not loaded


@pytest.mark.parametrize("screen", ["null", "auto"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_is_taken_on_every_device(tiny: Any, device: str, screen: str) -> None:
    preflight.check_screen(tiny(f"train.screen={screen}"), torch.device(device))
