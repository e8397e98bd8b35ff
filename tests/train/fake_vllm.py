"""The routes of a `vllm serve` that the trainer uses, in this process, with faults on demand.

It behaves as the tested version of vLLM was seen to: the weights' name in every answer, `default`
after a start, weights that come by path, aborted requests returned with the tokens they had.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from siri_train.rollout import SamplingParams, TransformersEngine
from siri_train.rollout.vllm import versions

TESTED = versions.CPU_BUILD.split("==")[1]
"""The version of vLLM that ``make test-vllm`` runs."""
LOWEST, HIGHEST = min(versions.SUPPORTED), max(versions.SUPPORTED)
TOO_OLD = f"{LOWEST[0]}.{LOWEST[1] - 1}.2"
TOO_NEW = f"{HIGHEST[0]}.{HIGHEST[1] + 1}.0"
Sampled = tuple[list[int], list[float | None], str]


class HangUp(Exception):
    """Raised by a hook: the connection breaks off without an answer."""


class Status(Exception):
    """Raised by a hook: answer with this HTTP status."""

    def __init__(self, code: int, message: str = "as asked") -> None:
        self.code, self.message = code, message


class FakeVllm:
    """Start with :meth:`start`; what is asked of it is in ``calls``, as (route, body). ``hook`` is
    called with each, one at a time, and may answer or raise in its place.

    Args:
        folder: what it says it was started with.
        sample: draws a response from (body of the request, loaded tensors or None).
        max_model_len: as ``--max-model-len``.
    """

    def __init__(
        self,
        folder: Path,
        sample: Callable[[dict[str, Any], dict[str, Any] | None], Sampled] | None = None,
        max_model_len: int = 128,
    ) -> None:
        self.vllm = TESTED
        self.names_weights = True
        self.config: dict[str, Any] = {
            "model_config": {
                "model": str(folder),
                "dtype": "torch.float32",
                "max_model_len": max_model_len,
                "logprobs_mode": "processed_logprobs",
            },
            "device_config": {"device": "cuda"},
            "load_config": {"load_format": "auto"},
            "weight_transfer_config": None,
        }
        self.sample = sample or draw
        self.missing: dict[str, int] = {}
        self.hook: Callable[[str, Any], Any] = lambda route, body: None
        self.calls: list[tuple[str, Any]] = []
        self.aborted: set[str] = set()
        self.in_flight = self.most_in_flight = 0
        self.lock, self.hooks = threading.Lock(), threading.Lock()
        self.port = 0
        self.key: str | None = None  # as VLLM_API_KEY; only /health is without
        self._forget()

    def _forget(self) -> None:
        self.label, self.weights, self.paused = "default", None, False

    def start(self) -> FakeVllm:
        """Listen; again on the same port after :meth:`die`, with the weights of a new process."""
        self._forget()
        self._connections: set[socket.socket] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def die(self) -> None:
        """As SIGKILL: nobody listens, every connection breaks off."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def restart(self, away: float) -> threading.Thread:
        """:meth:`die`, and :meth:`start` in a thread after some seconds; also from a hook."""
        self.die()

        def start() -> None:
            time.sleep(away)
            self.start()

        thread = threading.Thread(target=start)
        thread.start()
        return thread

    def asked(self, route: str) -> list[Any]:
        """The bodies that came to a route."""
        return [body for name, body in self.calls if name == route]

    def answer(self, route: str, body: Any) -> Any:
        """What a route answers."""
        if route in self.missing:
            raise Status(self.missing[route], "not here")
        with self.lock:
            self.calls.append((route, body))
        with self.hooks:
            given = self.hook(route, body)
        if given is not None:
            return given
        if route == "/health":
            return {}
        if route == "/version":
            return {"version": self.vllm}
        if route == "/server_info":
            return {"vllm_config": self.config}
        if route == "/weight_info":
            return {"weight_version": self.label}
        if route == "/get_world_size":
            return {"world_size": 2}
        if route == "/inference/v1/generate":
            return self._generate(body)
        if route == "/abort_requests":
            self.aborted |= set(body["request_ids"])
        elif route in ("/pause", "/resume"):
            self.paused = route == "/pause"
        elif route == "/update_weight_version":
            self.label = body["new_version"]
        elif route == "/collective_rpc":
            assert body["method"] == "reload_weights" and self.paused
            files = sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors"))
            if not files:
                raise Status(500, "Repo id must use alphanumeric chars")
            self.weights = {k: v for file in files for k, v in load_file(file).items()}
        elif route == "/reset_prefix_cache":
            return {"success": True}
        return {}

    def _generate(self, body: dict[str, Any]) -> Any:
        if "token_ids" not in body:
            raise Status(400, "Field required")
        wanted = body["sampling_params"]
        if len(body["token_ids"]) + 1 > self.config["model_config"]["max_model_len"]:
            raise Status(400, "The decoder prompt is longer than the maximum model length of 128")
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            label = self.label
            ids, logprobs, reason = self.sample(body, self.weights)
            if f"generate-tokens-{body['request_id']}" in self.aborted:
                ids, logprobs, reason = ids[:3], logprobs[:3], "abort"
        finally:
            with self.lock:
                self.in_flight -= 1
        assert wanted["logprobs"] == 0 and len(ids) <= wanted["max_tokens"]
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": reason,
            "token_ids": ids,
            "logprobs": {
                "content": [
                    {"token_id": i, "logprob": value, "rank": 1, "top_logprobs": []}
                    for i, value in zip(ids, logprobs, strict=True)
                ]
            },
        }
        if self.names_weights:
            choice["weight_versions"] = [{"version": label, "start": 0, "end": len(ids)}]
        return {"request_id": body["request_id"], "choices": [choice]}


def draw(body: dict[str, Any], weights: dict[str, Any] | None) -> Sampled:
    """A response decided by prompt, seed and weights alone."""
    wanted = body["sampling_params"]
    tensor = next(iter(weights.values())).double().sum().item() if weights else None
    rng = random.Random(repr((body["token_ids"], wanted["seed"], tensor)))
    time.sleep(rng.random() * 0.01)
    ids: list[int] = []
    while len(ids) < wanted["max_tokens"]:
        ids.append(rng.randrange(30))
        if ids[-1] in wanted["stop_token_ids"]:
            return ids, [-rng.random() for _ in ids], "stop"
    return ids, [-rng.random() for _ in ids], "length"


class Sampler:
    """Draws with a model of its own, which has the weights that came to the server last."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.engine = TransformersEngine(model, 0)
        self.lock = threading.Lock()

    def __call__(self, body: dict[str, Any], weights: dict[str, Any] | None) -> Sampled:
        wanted = body["sampling_params"]
        params = SamplingParams(
            max_tokens=wanted["max_tokens"],
            temperature=wanted["temperature"],
            top_p=wanted["top_p"],
            stop_token_ids=frozenset(wanted["stop_token_ids"]),
            seed=wanted["seed"] % 2**31,
        )
        with self.lock:
            missing = self.model.load_state_dict(weights or {}, strict=False).missing_keys
            if weights is None:  # a fresh start: some weights, not these
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        parameter.zero_()
            else:
                assert missing in ([], ["lm_head.weight"])
            ((c,),) = self.engine.generate([body["token_ids"]], params)
        return c.token_ids, list(c.logprobs), c.finish_reason


def main(arguments: list[str]) -> None:
    """As an interpreter that is asked to run vLLM's server: ``-m MODULE --model ...``."""
    options = dict(zip(arguments[2::2], arguments[3::2], strict=False))
    config = AutoConfig.from_pretrained(options["--model"])
    torch.set_num_threads(1)
    fake = FakeVllm(Path(options["--model"]), Sampler(AutoModelForCausalLM.from_config(config)))
    fake.config["device_config"]["device"] = "cpu"
    fake.port = int(options["--port"])
    fake.key = os.environ["VLLM_API_KEY"]  # a server of the trainer's own always has one
    fake.start()
    time.sleep(600)


def _handler(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            fake._connections.add(self.connection)

        def finish(self) -> None:
            fake._connections.discard(self.connection)
            super().finish()

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            route = self.path.split("?")[0]
            try:
                if fake.key and route != "/health":
                    if self.headers.get("Authorization") != f"Bearer {fake.key}":
                        raise Status(401, "Unauthorized")
                self._send(200, fake.answer(route, body))
            except Status as status:
                self._send(status.code, {"error": {"message": status.message}})
            except HangUp:
                with suppress(OSError):  # the server has died of it
                    self.connection.shutdown(socket.SHUT_RDWR)

        do_POST = do_GET

        def _send(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client is gone
                pass

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


if __name__ == "__main__":
    main(sys.argv[1:])
