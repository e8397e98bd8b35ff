"""NaN log-probs from a vLLM server: the weights go there once more, the batch is sampled again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from siri_train.checkpoint.save_load import checkpoints
from siri_train.rollout import EngineError
from siri_train.train import train
from tests.train.fake_vllm import FakeVllm
from tests.train.test_vllm_server_run import fake as fake
from tests.train.test_vllm_server_run import recipe, rows, sampled

SYNC = [
    "/pause", "/update_weight_version", "/collective_rpc", "/reset_prefix_cache",
    "/update_weight_version", "/resume",
]  # fmt: skip


class Poison:
    """From one of the second step's responses on the server's cache holds NaN.

    Args:
        fake: the server.
        lasting: also after its prefix cache was reset.
    """

    def __init__(
        self, fake: FakeVllm, *, lasting: bool = False, value: float | None = None
    ) -> None:
        self.fake, self.lasting, self.value = fake, lasting, value
        self.clean, self.asked, self.ill = fake.sample, 0, False
        fake.sample, fake.hook = self.sample, self.watch
        fake.calls.clear()

    def sample(self, body: Any, weights: Any) -> Any:
        tokens, logprobs, reason = self.clean(body, weights)
        if self.ill:
            logprobs = [*logprobs[:-1], self.value]
        return tokens, logprobs, reason

    def watch(self, route: str, body: Any) -> None:
        if route == "/inference/v1/generate" and sampled(body):
            with self.fake.lock:  # requests come in threads
                self.asked += 1
                if self.asked == 8 + 5:  # of 2 x 4 a step
                    self.ill = True
        if route == "/reset_prefix_cache" and not self.lasting:
            self.ill = False

    def heal(self) -> None:
        """A restarted server."""
        self.fake.sample, self.fake.hook = self.clean, lambda route, body: None


def short(tiny: Any, fake: FakeVllm, folder: Path, *overrides: str) -> Any:
    """Three steps of 2 x 4 responses."""
    return recipe(
        tiny, fake, f"output={folder}", "schedule.max_len=24", "schedule.min_len=20",
        *overrides,
    )  # fmt: skip


@pytest.mark.costly
@pytest.mark.draw(1, "runs")
@pytest.mark.parametrize(("shards", "value"), [(0, None), (2, -9999.0)])
def test_weights_are_sent_again_and_the_run_goes_on_as_if_nothing_had_been(
    tiny: Any, fake: FakeVllm, tmp_path: Path, shards: int, value: float | None
) -> None:
    def config(name: str) -> Any:
        return short(tiny, fake, tmp_path / name, f"rollout.shards={shards}")

    undisturbed = rows(train(config("calm")))
    poison = Poison(fake, value=value)
    run = train(config("ill"))
    assert poison.asked > 3 * 8
    got = rows(run)
    assert [row.pop("rollout_retries") for row in got] == [0, 1, 0]
    assert [row.pop("rollout_retries") for row in undisturbed] == [0, 0, 0]
    assert got == undisturbed
    alarms = [json.loads(line) for line in (run / "alarms.jsonl").read_text().splitlines()]
    assert [a["step"] for a in alarms if a["alarm"] == "non-finite-logprobs"] == [1]
    syncs = [route for route, _ in fake.calls if route in SYNC]
    last = ["/update_weight_version"]  # the server is let go of
    assert syncs == SYNC * 5 + last  # at the start, after each of three updates, for the retry


@pytest.mark.costly
@pytest.mark.draw(1, "runs")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_is_bounded_and_the_state_is_safe(
    tiny: Any, fake: FakeVllm, tmp_path: Path, asynchronous: bool
) -> None:
    """Once more, and not at all beside an update, whose weights must not be sent."""

    def config(name: str) -> Any:
        return short(tiny, fake, tmp_path / name, f"rollout.asynchronous={asynchronous}")

    undisturbed = rows(train(config("calm")))
    poison = Poison(fake, lasting=True)
    with pytest.raises(EngineError) as caught:
        train(config("ill"))
    said = str(caught.value)
    assert said.startswith("step 1" + (": " if asynchronous else ", also after the weights were"))
    assert f"server at {fake.url} reports NaN log-probs (prompt" in said
    assert "has been trained on" in said and "with a restarted server" in said
    # At the start and after the first update; then, unless that update is still going on, again.
    assert len(fake.asked("/collective_rpc")) == (1 if asynchronous else 3)
    run = tmp_path / "ill"
    if asynchronous:
        assert not checkpoints(run)
    else:
        assert rows(run) == undisturbed[:1] and list(checkpoints(run)) == [1]
    poison.heal()
    assert rows(train(config("ill"))) == undisturbed
