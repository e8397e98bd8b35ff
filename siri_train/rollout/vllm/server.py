"""Rollouts with a `vllm serve` over HTTP, which the trainer or somebody else has started."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from siri_train import distributed
from siri_train.rollout.engine import (
    CANCELLED,
    Completion,
    EngineError,
    NonFiniteLogprobs,
    SamplingParams,
    check_prompts,
)
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.handshake import Settings
from siri_train.rollout.vllm.http_client import Faulty, JsonClient, Refused, Unreachable
from siri_train.rollout.vllm.request import read_answer, request_body
from siri_train.rollout.vllm.server_process import HOW_TO_CONTINUE, ServerProcess, wait_for_server
from siri_train.rollout.vllm.versions import Routes
from siri_train.rollout.vllm.weight_sync import (
    RELEASED,
    DiskTransfer,
    NcclTransfer,
    drain,
    named_weights,
)

# Seconds of the small calls; those of a sync have their own limit.
_SHORT = 20.0
# Statuses of a request that is malformed, too long or not valid.
_PROMPT_IS_WRONG = (400, 413, 422)
# Seconds between two checks of what has finished and whether the caller has cancelled.
_POLL = 0.1


class Lost(Exception):
    """A response that must be requested again: the server failed, or had other weights."""


@dataclass
class _Call:
    """The state of one call of ``generate``: a job is (prompt, response of its group)."""

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    results: list[list[Completion]]
    waiting: deque[tuple[int, int]]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    attempts: dict[tuple[int, int], int] = field(default_factory=dict)
    cancelled: bool = False
    wait_until: float = math.inf


class VllmServerEngine:
    """Sample on a vLLM server, to which the weights are sent after every update.

    Every response is a request of its own with its own seed. It finishes, fails and is repeated
    alone, and a repeated one is the same. The server says which weights an answer was sampled with.
    An answer of other weights, as after a restart by somebody else, is discarded.

    A server that cannot be reached is polled with growing pauses. It gets its weights again, and
    the missing responses are requested again. After ``patience`` seconds, or ``retries`` failures
    of one response, the call ends with an EngineError.

    Args:
        model: the trainer's transformers model.
        client: of the server, whose settings have been checked.
        settings: what the server reports.
        transfer: sends the weights.
        vocab_size: ids from here on are refused, because they crash a server.
        untie: see :func:`.write_engine_folder`.
        lora_scaling: alpha / rank where the model has adapters.
        process: the trainer's own server, on rank 0; None for another one.
        written: ``transfer`` already holds the current weights.
        concurrency: requests in flight; at least what the server decodes at a time.
        patience: longest wait for a lost server, in seconds.
        request_timeout: longest wait for one response, in seconds.
        retries: how often one response is requested again.

    Raises:
        EngineError: the server does not take the weights.
    """

    def __init__(
        self,
        model: Any,
        client: JsonClient,
        settings: Settings,
        transfer: DiskTransfer | NcclTransfer,
        *,
        vocab_size: int,
        untie: bool,
        lora_scaling: float | None = None,
        process: ServerProcess | None = None,
        written: bool = False,
        concurrency: int = 256,
        patience: float = 600.0,
        request_timeout: float = 3600.0,
        retries: int = 3,
    ) -> None:
        self.model, self.client, self.settings, self.transfer = model, client, settings, transfer
        self.vocab_size, self.untie, self.lora_scaling = vocab_size, untie, lora_scaling
        self.process = process
        self.concurrency, self.patience = concurrency, patience
        self.request_timeout, self.retries = request_timeout, retries
        self._run = distributed.from_main(uuid.uuid4().hex[:8])
        self._syncs, self._written = 0, written
        self.sync()

    @property
    def version(self) -> str:
        """The name of the newest weights; no other run has it."""
        return f"siri-{self._run}-{self._syncs}"

    def sync(self) -> None:
        """Send the server the trainer's weights. Every rank must call it.

        Raises:
            EngineError: the server does not take them.
        """
        self._syncs += 1
        failure = ""
        try:
            self._send(first=True)
        except Exception as error:  # raised on every rank below
            failure = f"{type(error).__name__}: {error}"
        failure = next((f for f in distributed.gather(failure) if f), "")
        if failure:
            raise EngineError(
                f"the vLLM server at {self.client.url} did not take the new weights: {failure}. "
                "Its weights are incomplete now: restart it. For weights by disk it must see the "
                "folder rollout.server.sync_dir under the same path. The trainer's state is "
                "untouched; run the same command again to continue from the newest checkpoint"
            )

    def _weights(self) -> Iterator[tuple[str, Any]]:
        return named_weights(
            self.model, self.settings.dtype, untie=self.untie, lora_scaling=self.lora_scaling
        )

    def _send(self, *, first: bool) -> None:
        """Send the weights; ``first``: they are new, and every rank calls this."""
        main = distributed.is_main()
        if isinstance(self.transfer, DiskTransfer):
            if first and not self._written:
                if main:
                    self.transfer.write(self._weights(), f"weights_{self._syncs:06d}")
                else:
                    drain(self._weights())
            self._written = False
            if main or not first:
                self._send_file()
            return
        beside = threading.current_thread() is not threading.main_thread()
        if not first and (beside or distributed.world_size() > 1):
            # They would have to be gathered from other ranks, or are in the middle of an update.
            raise EngineError(
                f"the vLLM server at {self.client.url} was restarted, and weights by nccl cannot "
                f"be sent again now; {HOW_TO_CONTINUE}, or set rollout.server.sync=disk"
            )
        if not self.transfer.described:
            self.transfer.describe(self._weights())
        if not main:
            return drain(self._weights())
        self._wait_until_up()
        if not first:
            self.transfer.connect(self.client)  # a restarted server has new workers
        self.transfer.send(self.client, self._weights(), self.version)

    def _send_file(self) -> None:
        """Make the server load the files; again if it is lost meanwhile, as it loses them then."""
        assert isinstance(self.transfer, DiskTransfer)
        for attempt in range(self.retries + 1):
            self._wait_until_up()
            try:
                return self.transfer.send(self.client, self.version)
            except Unreachable:
                if attempt == self.retries:
                    raise

    def sleep(self) -> None:
        """Do nothing: the server does not use the trainer's memory."""

    def close(self) -> None:
        """End the trainer's own server or release another one; remove the files of weights."""
        if self.process is not None:
            self.process.close()
        if distributed.is_main():
            if self.process is None:
                self._release()
            self.transfer.close()

    def _release(self) -> None:
        """Rename the weights so that other runs may take the server, where it can be reached."""
        with suppress(Unreachable, Refused, Faulty, KeyError, TypeError):
            if self._weights_there() == self.version:
                self.client.post(Routes.SET_WEIGHTS_NAME, {"new_version": RELEASED}, _SHORT)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
        *,
        on_finish: Callable[[int, Completion], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``params.n`` responses to every prompt, as :meth:`.Engine.generate`.

        Args:
            prompts: token ids, at least one each.
            params: see :class:`SamplingParams`.
            progress: called with (finished responses, all responses).
            on_finish: called with (index of the prompt, response) as each finishes.
            cancelled: called every tenth of a second; true ends the call.

        Raises:
            ValueError: an empty prompt (its index is named).
            NonFiniteLogprobs: the server reports NaN; unfinished responses are dropped.
            EngineError: the server cannot be reached, or fails repeatedly.
        """
        check_prompts(prompts)
        call = _Call(
            prompts,
            params,
            [[Completion([], [], "abort") for _ in range(params.n)] for _ in prompts],
            deque((index, k) for index in range(len(prompts)) for k in range(params.n)),
        )
        total, finished = len(call.waiting), 0
        running: dict[Future[Completion], tuple[int, int]] = {}
        threads = ThreadPoolExecutor(min(self.concurrency, max(total, 1)))
        try:
            while call.waiting or running:
                if not call.cancelled and cancelled is not None and cancelled():
                    self._cancel(call, running)
                if time.monotonic() > call.wait_until:
                    self.client.hang_up()
                while call.waiting and len(running) < self.concurrency:
                    job = call.waiting.popleft()
                    running[threads.submit(self._respond, call, *job)] = job
                trouble: Lost | None = None
                for done in wait(running, _POLL, FIRST_COMPLETED).done:
                    index, k = job = running.pop(done)
                    try:
                        completion = done.result()
                    except Lost as lost:
                        trouble = lost
                        if not call.cancelled:
                            self._again(call, job, lost)
                        continue
                    call.results[index][k] = completion
                    if completion.error == CANCELLED:
                        continue
                    finished += 1
                    if on_finish is not None:
                        on_finish(index, completion)
                    if progress is not None:
                        progress(finished, total)
                if trouble is not None and not call.cancelled:
                    time.sleep(min(0.1 * 2 ** max(call.attempts.values()), 10.0))
                    self._recover(trouble, cancelled)
        except BaseException:
            self._abort(call, running.values())
            self.client.hang_up()
            raise
        finally:
            threads.shutdown(cancel_futures=True)
        return call.results

    def _respond(self, call: _Call, index: int, k: int) -> Completion:
        """Request one response, in a thread of its own. Raises Lost."""
        prompt, params = list(call.prompts[index]), call.params
        if max(prompt) >= self.vocab_size or min(prompt) < 0:
            return _failed(f"token ids must be in [0, {self.vocab_size}), got {max(prompt)}")
        body = request_body(f"{call.name}-{index}-{k}", prompt, params, index, k)
        try:
            answer = self.client.post(Routes.GENERATE, body, self.request_timeout)
            completion, weights = read_answer(answer)
            if weights is None:
                weights = {self._weights_there()}
        except Refused as refused:
            if refused.status in _PROMPT_IS_WRONG:  # the other prompts go on
                return _failed(refused.message)
            raise Lost(str(refused)) from refused
        except (Unreachable, Faulty) as error:
            raise Lost(str(error)) from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EngineError(
                f"the vLLM server at {self.client.url} answers in an unknown form: "
                f"{type(error).__name__}: {error}; {HOW_TO_CONTINUE}"
            ) from error
        if completion.finish_reason == "abort":
            if call.cancelled:
                completion.error = CANCELLED
                return completion
            raise Lost("the server aborted a request")  # paused for weights by another rank
        if weights - {self.version}:
            raise Lost(f"sampled with the weights {sorted(weights)}, not {self.version}")
        if any(map(math.isnan, completion.logprobs)):
            raise NonFiniteLogprobs(
                f"the vLLM server at {self.client.url} reports NaN log-probs (prompt {index}): its "
                "weights are broken, or an update of the trainer was; nothing of this step has "
                "been trained on. Look at grad_norm and loss of the last steps, continue from a "
                "checkpoint before them (--resume PATH), with a restarted server: NaN stays in its "
                "cache"
            )
        return completion

    def _again(self, call: _Call, job: tuple[int, int], lost: Lost) -> None:
        call.attempts[job] = call.attempts.get(job, 0) + 1
        if call.attempts[job] > self.retries:
            raise EngineError(
                f"the vLLM server at {self.client.url} failed {call.attempts[job]} times at the "
                f"same response (prompt {job[0]}): {lost}{self._log()}; {HOW_TO_CONTINUE}"
            )
        call.waiting.append(job)

    def _cancel(self, call: _Call, running: dict[Future[Completion], tuple[int, int]]) -> None:
        call.cancelled, call.wait_until = True, time.monotonic() + _SHORT
        for index, k in call.waiting:
            call.results[index][k].error = CANCELLED
        call.waiting.clear()
        for index, k in running.values():  # for those that the server does not return
            call.results[index][k].error = CANCELLED
        self._abort(call, running.values())

    def _abort(self, call: _Call, jobs: Any) -> None:
        """Make the server drop the requests it still works on, where it can be reached."""
        names = [versions.request_name(f"{call.name}-{index}-{k}") for index, k in jobs]
        if not names:
            return
        try:
            self.client.post(Routes.ABORT, {"request_ids": names}, _SHORT)
        except (Unreachable, Refused, Faulty):
            self.client.hang_up()

    def _recover(self, lost: Lost, cancelled: Callable[[], bool] | None) -> None:
        """Wait for the server, and send it the newest weights again where it has lost them."""
        began = time.monotonic()
        try:
            if not self._wait_until_up(str(lost), cancelled):
                return
            if self._weights_there() == self.version:
                return
            self._send(first=False)
        except (Unreachable, Refused, Faulty) as error:
            raise EngineError(
                f"the vLLM server at {self.client.url} was lost ({lost}) and did not take the "
                f"weights again: {error}{self._log()}; {HOW_TO_CONTINUE}"
            ) from error
        print(
            f"vLLM server at {self.client.url}: back after {time.monotonic() - began:.0f} s with "
            "the newest weights",
            flush=True,
        )

    def _wait_until_up(
        self, lost: str | None = None, cancelled: Callable[[], bool] | None = None
    ) -> bool:
        return wait_for_server(self.client, self.patience, self.process, lost, cancelled)

    def _weights_there(self) -> str:
        return versions.weights_name(self.client.get(Routes.WEIGHTS_NAME, _SHORT))

    def _log(self) -> str:
        if self.process is None or not self.process.gave_up:
            return ""
        return f"; the server ended: {self.process.gave_up}"


def _failed(message: str) -> Completion:
    return Completion([], [], "abort", error=message)
