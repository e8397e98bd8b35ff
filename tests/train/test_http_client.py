"""The HTTP client: waiting requests can be broken off, wrong addresses are refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from siri_train.rollout.vllm.http_client import JsonClient, Unreachable
from tests.train.fake_vllm import FakeVllm


def test_waiting_requests_can_be_hung_up(fake: FakeVllm) -> None:
    arrived, answers = threading.Event(), threading.Event()

    def late(route: str, body: Any) -> Any:
        arrived.set()
        answers.wait(200)
        return {}

    fake.hook = late
    client, caught = JsonClient(fake.url), []

    def ask() -> None:
        try:
            client.get("/health", 100.0)
        except Unreachable as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert arrived.wait(100)
    client.hang_up()
    thread.join()
    assert caught and "timed out" not in str(caught[0])  # at once, not when its time is over
    with pytest.raises(Unreachable, match="health: TimeoutError"):
        client.get("/health", 0.2)
    answers.set()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "unix:/tmp/x"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="takes http://HOST:PORT"):
        JsonClient(url)
