"""The server engine against a fake server: its requests, which answers it accepts, and what it does
when the server fails, is lost or comes back without weights."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from siri_train.model.policy import Policy
from siri_train.rollout import EngineError, SamplingParams
from siri_train.rollout.vllm.handshake import read_settings
from siri_train.rollout.vllm.http_client import JsonClient, Unreachable
from siri_train.rollout.vllm.server import VllmServerEngine
from siri_train.rollout.vllm.weight_sync import DiskTransfer, NcclTransfer
from tests.train.fake_vllm import FakeVllm, HangUp, Status, draw
from tests.train.test_weight_transfer import FakeGroup
from tests.train.test_weight_transfer import group as group

PROMPTS = [[1, 12, 25, 8, 3], [1, 14, 8, 3], [1, 10, 30, 31, 32, 8, 3]]


@pytest.fixture
def connect(fake: FakeVllm, policy: Policy, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made = []

    def make(**changes: Any) -> VllmServerEngine:
        client = JsonClient(fake.url)
        values: dict[str, Any] = {"untie": False, "concurrency": 8, "patience": 200.0, **changes}
        transfer = values.pop("transfer", None) or DiskTransfer(tmp_path / "weights")
        engine = VllmServerEngine(
            policy.model,
            client,
            read_settings(client),
            transfer,
            vocab_size=policy.model.config.vocab_size,
            **values,
        )
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()
    assert not (tmp_path / "weights").exists()


def params(**changes: object) -> SamplingParams:
    values = {"max_tokens": 12, "n": 5, "stop_token_ids": frozenset({2, 0}), "seed": 3, **changes}
    return SamplingParams(**values)  # type: ignore[arg-type]


def ids(groups: Any) -> list[list[list[int]]]:
    return [[c.token_ids for c in group] for group in groups]


def test_what_is_asked_for_and_what_comes_back(fake: FakeVllm, connect: Any) -> None:
    engine = connect()
    asked, together = itertools.count(), threading.Barrier(8)

    def meet(body: Any, weights: Any) -> Any:
        if next(asked) < 8:
            together.wait(200)
        return draw(body, weights)

    fake.sample = meet
    seen: list[int] = []
    counts: list[tuple[int, int]] = []
    groups = engine.generate(
        PROMPTS,
        params(temperature=0.7, top_p=0.9, top_k=5),
        lambda done, total: counts.append((done, total)),
        on_finish=lambda index, c: seen.append(index),
    )
    assert (
        counts == [(k + 1, 15) for k in range(15)] and sorted(seen) == [0] * 5 + [1] * 5 + [2] * 5
    )
    bodies = fake.asked("/inference/v1/generate")[1:]  # the first asks whether the route is there
    assert len({body["request_id"] for body in bodies}) == 15
    assert len({body["sampling_params"]["seed"] for body in bodies}) == 15
    for body in bodies:
        wanted = body["sampling_params"]
        assert wanted["max_tokens"] == 12 and wanted["stop_token_ids"] == [0, 2]
        assert (wanted["temperature"], wanted["top_p"], wanted["top_k"]) == (0.7, 0.9, 5)
        index, k = map(int, body["request_id"].split("-")[1:])
        assert body["token_ids"] == PROMPTS[index]
        tokens, logprobs, reason = draw(body, fake.weights)
        c = groups[index][k]
        assert (c.token_ids, c.logprobs, c.finish_reason) == (tokens, logprobs, reason)
        assert c.truncated == (reason == "length") and c.error is None
    assert {c.finish_reason for g in groups for c in g} == {"stop", "length"}
    assert fake.most_in_flight == 8
    assert ids(engine.generate(PROMPTS, params())) == ids(engine.generate(PROMPTS, params()))
    assert ids(engine.generate(PROMPTS, params(seed=4))) != ids(engine.generate(PROMPTS, params()))
    with pytest.raises(ValueError, match=r"prompts\[1\]"):
        engine.generate([[1], []], params())
    assert engine.generate([], params()) == []


def test_a_prompt_that_fails_does_not_take_the_others_with_it(fake: FakeVllm, connect: Any) -> None:
    """An id beyond the vocabulary crashes a real vLLM: it must not even be sent."""
    engine = connect()
    groups = engine.generate([PROMPTS[0], [5] * 200, [1, 37], [-1], PROMPTS[1]], params(n=2))
    assert [[c.finish_reason == "abort" for c in g] for g in groups] == [
        [False] * 2, [True] * 2, [True] * 2, [True] * 2, [False] * 2,
    ]  # fmt: skip
    assert "128" in groups[1][0].error and "[0, 37)" in groups[2][1].error
    sent = [body["token_ids"] for body in fake.asked("/inference/v1/generate")[1:]]
    assert [1, 37] not in sent and [-1] not in sent


@pytest.mark.parametrize("value", [None, -9999.0])
def test_nan_logprobs_end_the_rollout(fake: FakeVllm, connect: Any, value: float | None) -> None:
    def broken(body: Any, weights: Any) -> Any:
        tokens, logprobs, reason = draw(body, weights)
        return tokens, [*logprobs[:-1], value], reason

    engine = connect()
    fake.sample = broken
    with pytest.raises(EngineError, match="NaN log-probs.*has been trained on"):
        engine.generate(PROMPTS, params())


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {"choices": [{"index": 0, "finish_reason": "stop", "token_ids": [5]}]},
        {"choices": [{"index": 0, "token_ids": [], "logprobs": None}]},
        {"id": "x"},
        [],
    ],
)
def test_an_answer_of_another_form_ends_the_rollout(
    fake: FakeVllm, connect: Any, answer: Any
) -> None:
    engine = connect()
    fake.hook = lambda route, body: answer if route == "/inference/v1/generate" else None
    with pytest.raises(EngineError, match="an unknown form"):
        engine.generate(PROMPTS, params())


@pytest.mark.draw(2)
@pytest.mark.parametrize(
    "fault", [Status(500), Status(503), Status(429), HangUp(), b"<html>proxy</html>"]
)
def test_passing_faults_cost_nothing_but_time(fake: FakeVllm, connect: Any, fault: Any) -> None:
    engine = connect()
    undisturbed = ids(engine.generate(PROMPTS, params()))
    asked, failures = itertools.count(), []

    def sometimes(route: str, body: Any) -> Any:
        if route == "/inference/v1/generate" and next(asked) < 3:
            failures.append(route)
            if isinstance(fault, Exception):
                raise fault
            return fault
        return None

    fake.hook = sometimes
    assert ids(engine.generate(PROMPTS, params())) == undisturbed
    assert len(failures) == 3 and len(fake.asked("/collective_rpc")) == 1  # the weights were there


def test_lasting_faults_end_the_rollout(fake: FakeVllm, connect: Any) -> None:
    engine = connect(retries=2)

    def always(route: str, body: Any) -> None:
        if route == "/inference/v1/generate":
            raise Status(500, "EngineCore encountered an issue")

    fake.hook = always
    with pytest.raises(EngineError, match="failed 3 times.*EngineCore encountered.*checkpoint"):
        engine.generate([PROMPTS[0]], params(n=1))
    assert len(fake.asked("/inference/v1/generate")) == 1 + 3


@pytest.mark.costly
def test_unreachable(fake: FakeVllm, connect: Any) -> None:
    engine = connect(patience=0.6)
    fake.die()
    with pytest.raises(EngineError, match=f"no vLLM server at {fake.url} for 1 s.*start_minutes"):
        engine.generate(PROMPTS, params())
    with pytest.raises(EngineError, match="did not take the new weights: .*no vLLM server"):
        engine.sync()
    fake.start()
    engine.sync()  # it came back later
    assert fake.label == engine.version


def test_a_killed_and_restarted_server_changes_nothing(
    fake: FakeVllm,
    connect: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = connect()
    undisturbed = ids(engine.generate(PROMPTS, params(n=20)))
    done: list[int] = []
    get = engine.client.get

    def missed(route: str, timeout: float) -> Any:
        """It comes back once it has been looked for."""
        try:
            return get(route, timeout)
        except Unreachable:
            fake.start()
            raise

    def finish(index: int, c: Any) -> None:
        done.append(index)
        if len(done) == 10:
            fake.die()
            monkeypatch.setattr(engine.client, "get", missed)

    assert ids(engine.generate(PROMPTS, params(n=20), on_finish=finish)) == undisturbed
    assert len(done) == 60  # nothing twice
    assert len(fake.asked("/collective_rpc")) == 2 and fake.label == engine.version
    said = capsys.readouterr().out
    assert "waiting for it" in said and "with the newest weights" in said


@pytest.mark.parametrize("names_weights", [True, False])
def test_answers_of_other_weights_are_not_taken(
    fake: FakeVllm, connect: Any, names_weights: bool
) -> None:
    """Somebody restarts the server between two requests: nothing fails, but the weights are old."""
    fake.names_weights = names_weights  # a vLLM that does not say is asked
    engine = connect(concurrency=1)
    undisturbed = ids(engine.generate(PROMPTS, params()))
    done: list[int] = []

    def finish(index: int, c: Any) -> None:
        done.append(index)
        if len(done) == 7:
            fake._forget()

    assert ids(engine.generate(PROMPTS, params(), on_finish=finish)) == undisturbed
    assert len(done) == 15 and fake.label == engine.version


def test_cancelled(fake: FakeVllm, connect: Any) -> None:
    """Four responses finish; the server goes on with the others until it is told to drop them."""
    asked = itertools.count(1)

    def slow(body: Any, weights: Any) -> Any:
        until = time.monotonic() + 60
        name = f"generate-tokens-{body['request_id']}"
        late = next(asked) > 4
        while late and name not in fake.aborted and time.monotonic() < until:
            time.sleep(0.01)
        return draw(body, weights)

    engine = connect()
    undisturbed = engine.generate(PROMPTS, params(n=8))
    done: list[int] = []
    fake.sample = slow
    groups = engine.generate(
        PROMPTS,
        params(n=8),
        on_finish=lambda index, c: done.append(index),
        cancelled=lambda: len(done) >= 4,
    )
    flat = [c for g in groups for c in g]
    finished = [c for c in flat if c.finish_reason != "abort"]
    assert len(finished) == len(done) == 4
    assert all(c.cancelled for c in flat if c.finish_reason == "abort")
    started = [c for c in flat if c.finish_reason == "abort" and c.token_ids]
    assert started  # what was being decoded comes back with the tokens it had
    for c, whole in zip(flat, [c for g in undisturbed for c in g], strict=True):
        assert c.token_ids == whole.token_ids[: len(c.token_ids)]
    fake.sample = draw
    assert ids(engine.generate(PROMPTS, params(n=8))) == ids(undisturbed)


@pytest.mark.costly
def test_cancelled_while_the_server_is_away(fake: FakeVllm, connect: Any) -> None:
    engine = connect(patience=60.0)
    fake.die()
    looks = itertools.count()
    groups = engine.generate(PROMPTS, params(), cancelled=lambda: next(looks) > 3)
    assert all(c.cancelled for g in groups for c in g)


def test_a_sync_in_its_order(fake: FakeVllm, connect: Any, policy: Policy, tmp_path: Path) -> None:
    engine = connect()
    first = fake.weights
    assert first is not None and "lm_head.weight" not in first  # tied, and not told to untie
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(first[name], parameter)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)
    fake.calls.clear()
    before = engine.version
    engine.sync()
    assert fake.weights is not None and engine.version != before
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(fake.weights[name], parameter)
    steps = [route for route, _ in fake.calls if route != "/health"]
    assert steps == [
        "/pause", "/update_weight_version", "/collective_rpc", "/reset_prefix_cache",
        "/update_weight_version", "/resume",
    ]  # fmt: skip
    assert not fake.paused
    assert len(list((tmp_path / "weights").glob("weights_*"))) == 1  # as large as the model


def test_a_failed_sync_is_never_taken_for_a_good_one(fake: FakeVllm, connect: Any) -> None:
    engine = connect()

    def fail(route: str, body: Any) -> None:
        if route == "/collective_rpc":
            raise Status(500, "Worker failed with error 'No space'")

    fake.hook = fail
    with pytest.raises(EngineError, match="No space.*sync_dir.*state is untouched"):
        engine.sync()
    assert fake.paused and fake.label.endswith(" loading")


def test_a_server_that_dies_during_a_sync_gets_the_weights_again(
    fake: FakeVllm, connect: Any
) -> None:
    engine = connect()
    deaths = []

    def die(route: str, body: Any) -> None:
        if route == "/collective_rpc" and not deaths:
            deaths.append(route)
            fake._forget()
            raise HangUp

    fake.hook = die
    engine.sync()
    assert deaths and fake.label == engine.version and fake.weights is not None


def test_weights_by_nccl(fake: FakeVllm, connect: Any, policy: Policy, group: FakeGroup) -> None:
    """With a fake communicator: the engine's part of it. It has not run on a GPU."""
    # Few at a time: most are asked for after the server has lost its weights.
    engine = connect(transfer=NcclTransfer(torch.device("cpu")), concurrency=2)
    weights = dict(policy.model.named_parameters())
    assert group.received.keys() == weights.keys()
    assert len(fake.asked("/init_weight_transfer_engine")) == 1
    undisturbed = ids(engine.generate(PROMPTS, params()))
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)
    engine.sync()
    assert all(torch.equal(group.received[name], value) for name, value in weights.items())
    assert len(fake.asked("/init_weight_transfer_engine")) == 1

    done: list[int] = []

    def finish(index: int, c: Any) -> None:
        done.append(index)
        if len(done) % 15 == 7:
            fake._forget()

    assert ids(engine.generate(PROMPTS, params(), on_finish=finish)) == undisturbed
    assert len(fake.asked("/init_weight_transfer_engine")) == 2  # its workers were others
    assert fake.label == engine.version

    caught = []

    def beside() -> None:  # rollouts beside the update: weights in the middle of it
        try:
            engine.generate(PROMPTS, params(), on_finish=finish)
        except EngineError as error:
            caught.append(str(error))

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert caught and "weights by nccl cannot be sent again now" in caught[0]
