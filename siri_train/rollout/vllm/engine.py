"""Rollouts with vLLM in the trainer's process. It gives its memory back while the trainer works."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from siri_train import distributed
from siri_train.config.base import ConfigError
from siri_train.rollout.engine import (
    CANCELLED,
    Completion,
    EngineError,
    SamplingParams,
    check_prompts,
)
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.weight_sync import named_weights, write_engine_folder


def check_model(config: Any, device: torch.device) -> None:
    """Refuse a model that vLLM cannot run on ``device``.

    Args:
        config: the model's configuration (transformers' ``PretrainedConfig``).
        device: where vLLM runs.

    Raises:
        ConfigError: on a CPU, a head size without an attention kernel.
    """
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    if device.type == "cpu" and size is not None and size not in versions.CPU_HEAD_SIZES:
        raise ConfigError(
            f"rollout.engine: vLLM on a CPU has no attention kernel for a head size of {size}; it "
            f"takes {', '.join(map(str, versions.CPU_HEAD_SIZES))}. Set rollout.engine=transformers"
        )


@dataclass
class _Call:
    """The state of one call of ``generate``."""

    results: list[list[Completion]]
    pending: dict[str, tuple[int, int]] = field(default_factory=dict)
    finished: int = 0


class VllmEngine:
    """Sample with a vLLM ``LLM`` in this process.

    Every response is a request of its own, which finishes and fails alone. vLLM's prefix cache
    reads a question once for its whole group.

    Args:
        model: the trainer's transformers model.
        max_model_len: longest prompt plus longest response of the run, in tokens.
        device: the trainer's; by default that of the model's parameters. Under torchrun each rank
            has a vLLM of its own on its own GPU.
        dtype: what vLLM computes in; the trainer's own by default.
        gpu_memory_utilization: share of a GPU's memory that vLLM may use.
        cache_gib: GiB for keys and values; None: on a GPU what is left of that share, on a CPU 1.
        sleep_level: while the trainer works, 0 keeps all memory, 1 moves the weights to CPU memory,
            2 drops them. :meth:`sync` writes them anew either way.
        max_num_seqs: sequences decoded at a time.
        enforce_eager: no CUDA graphs.
        lora_scaling: alpha / rank where the trainer trains adapters, which are merged for vLLM.

    Raises:
        ConfigError: vLLM is missing, of an unsupported version, or cannot run this model here.
        EngineError: vLLM does not start.
    """

    def __init__(
        self,
        model: Any,
        max_model_len: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        gpu_memory_utilization: float = 0.4,
        cache_gib: float | None = None,
        sleep_level: int = 1,
        max_num_seqs: int = 256,
        enforce_eager: bool = False,
        lora_scaling: float | None = None,
    ) -> None:
        versions.features(versions.installed_version())
        parameter = next(model.parameters())
        device = device or parameter.device
        check_model(model.config, device)
        self.model, self.lora_scaling = model, lora_scaling
        self.dtype = dtype or parameter.dtype
        on_cpu = device.type == "cpu"
        self.untie = on_cpu  # see versions.keeps_stale_head
        self.sleep_level = 0 if on_cpu else sleep_level
        self.max_num_seqs, self.gpu_memory_utilization = max_num_seqs, gpu_memory_utilization
        self._asleep = False
        os.environ.update(versions.IN_PROCESS)
        defaults = {**versions.IN_PROCESS_DEFAULTS, **(versions.ON_CPU_DEFAULTS if on_cpu else {})}
        os.environ.update({k: v for k, v in defaults.items() if k not in os.environ})
        if on_cpu:
            cache_gib = cache_gib or 1.0
        # Each rank has a vLLM, which uses the ranks' process group instead of one of its own.
        ranks = {"distributed_executor_backend": "external_launcher"}
        self._opened_group = not distributed.active()
        threads, set_threads = torch.get_num_threads(), torch.set_num_threads
        self._folder = tempfile.TemporaryDirectory(prefix="siri_vllm_")
        write_engine_folder(model, Path(self._folder.name), untie=self.untie)
        self._vllm = versions.import_vllm()
        self._refusals = versions.refusals()
        try:
            self.llm = self._vllm.LLM(
                model=self._folder.name,
                skip_tokenizer_init=True,  # token ids go back and forth, never text
                load_format="dummy",
                dtype=str(self.dtype).removeprefix("torch."),
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                gpu_memory_utilization=gpu_memory_utilization,
                kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * 2**30),
                enforce_eager=enforce_eager or on_cpu,
                enable_sleep_mode=self.sleep_level > 0,
                logprobs_mode=versions.LOGPROBS_MODE,
                disable_log_stats=True,
                **(ranks if distributed.world_size() > 1 else {}),
            )
        except Exception as error:
            self._let_go()
            raise EngineError(
                f"vLLM did not start: {versions.brief(error)}; its memory is set by "
                f"rollout.vllm.gpu_memory_utilization ({gpu_memory_utilization}) or "
                f"rollout.vllm.cache_gib ({cache_gib}), the longest sequence is {max_model_len} "
                "tokens (data.max_prompt_len + schedule.max_len)"
            ) from error
        finally:  # vLLM sets its own number of threads and replaces the function
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
        try:
            self.sync()
        except EngineError:
            self.close()
            raise

    def sync(self) -> None:
        """Wake vLLM up, send it the trainer's weights, then allocate its cache.

        Raises:
            EngineError: vLLM does not take the weights.
        """
        try:
            if self._asleep:
                self.llm.wake_up(tags=[versions.WEIGHTS])
            weights = named_weights(
                self.model, self.dtype, untie=self.untie, lora_scaling=self.lora_scaling
            )
            versions.reload_in_process(self.llm, weights)
            if self._asleep:
                self.llm.wake_up(tags=[versions.CACHE])
            self._asleep = False
        except Exception as error:
            raise EngineError(
                f"vLLM did not take the new weights: {versions.brief(error)}; the trainer's "
                "state is untouched, run the same command again to continue from the "
                "newest checkpoint"
            ) from error

    def sleep(self) -> None:
        """Give the GPU's memory to the trainer until the next :meth:`sync`. No-op on a CPU.

        Raises:
            EngineError: vLLM does not sleep.
        """
        if self.sleep_level and not self._asleep:
            try:
                self.llm.sleep(level=self.sleep_level)
            except Exception as error:
                raise EngineError(
                    f"vLLM did not go to sleep: {versions.brief(error)}; set "
                    "rollout.vllm.sleep_level=0 where the GPU holds both"
                ) from error
            self._asleep = True

    def close(self) -> None:
        """Shut vLLM down, as far as possible where it has crashed."""
        try:
            self.llm.llm_engine.engine_core.shutdown()
        except Exception as error:  # the cause of a crash has been raised before
            print(f"vLLM did not shut down: {versions.brief(error)}", flush=True)
        self._let_go()

    def _let_go(self) -> None:
        self._folder.cleanup()
        if self._opened_group:
            versions.leave_process_group()

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
            cancelled: called before each step of vLLM; true ends the call.

        Raises:
            ValueError: an empty prompt (its index is named).
            EngineError: vLLM crashed, or sleeps, so its weights are stale.
        """
        check_prompts(prompts)
        if self._asleep:
            raise EngineError("vLLM sleeps and its weights are stale: call sync() first")
        total = len(prompts) * params.n
        call = _Call([[Completion([], [], "abort") for _ in range(params.n)] for _ in prompts])

        def finish(index: int, k: int, completion: Completion) -> None:
            call.results[index][k] = completion
            call.finished += 1
            if on_finish is not None:
                on_finish(index, completion)
            if progress is not None:
                progress(call.finished, total)

        try:
            for index, prompt in enumerate(prompts):
                wanted = [self._params(params, index, k) for k in range(params.n)]
                request = [{"prompt_token_ids": list(prompt)}] * params.n
                try:
                    ids = self.llm.enqueue(request, wanted, use_tqdm=False)
                except self._refusals as error:  # of this prompt; the others go on
                    for k in range(params.n):
                        finish(index, k, Completion([], [], "abort", error=str(error)))
                    continue
                names = map(versions.output_name, ids)
                call.pending.update({name: (index, k) for k, name in enumerate(names)})
            engine = self.llm.llm_engine
            while engine.has_unfinished_requests():
                if cancelled is not None and cancelled():
                    self._drop(call, CANCELLED)
                    break
                for output in engine.step():
                    if output.finished and output.request_id in call.pending:
                        index, k = call.pending.pop(output.request_id)
                        finish(index, k, _completion(output))
        except Exception as error:
            if call.pending and not isinstance(error, EngineError):
                self._abandon(call)
            memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            raise EngineError(
                f"vLLM failed during a rollout: {versions.brief(error)}; "
                + (self._less_memory() if memory else "")
                + "nothing of this step has been trained on. Run the same command again to "
                "continue from the newest checkpoint"
            ) from error
        for name, (index, k) in call.pending.items():
            call.results[index][k].error = f"vLLM never finished request {name}"
        return call.results

    def _less_memory(self) -> str:
        return (
            f"lower rollout.vllm.max_num_seqs ({self.max_num_seqs}) or "
            f"rollout.vllm.gpu_memory_utilization ({self.gpu_memory_utilization}); "
        )

    def _params(self, params: SamplingParams, index: int, k: int) -> Any:
        stops = sorted(params.stop_token_ids)
        return self._vllm.SamplingParams(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            stop_token_ids=stops,
            seed=response_seed(params.seed, index, k),
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _drop(self, call: _Call, reason: str) -> None:
        self.llm.llm_engine.abort_request(list(call.pending), internal=False)
        while self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()
        for index, k in call.pending.values():
            call.results[index][k].error = reason
        call.pending.clear()

    def _abandon(self, call: _Call) -> None:
        """Withdraw the requests of a failed call, as far as vLLM still works."""
        try:
            self._drop(call, "abandoned")
        except Exception:  # the first error is reported
            call.pending.clear()


def response_seed(seed: int, index: int, k: int) -> int:
    """A seed for each response; the same call gives the same seeds.

    Args:
        seed: of the call.
        index: of the prompt.
        k: of the response within its group.
    """
    return (seed * 1_000_003 + index * 4099 + k) % 2**63


def _completion(output: Any) -> Completion:
    """A ``RequestOutput`` of vLLM with one response as a ``Completion``."""
    answer = output.outputs[0]
    ids = list(answer.token_ids)
    flat = answer.logprobs
    # The sampled token is the first entry of each position. vLLM reports NaN as None.
    values = [flat.logprobs[start] for start in flat.start_indices] if ids else []
    logprobs = [float("nan") if value is None else float(value) for value in values]
    reason = answer.finish_reason
    if reason not in ("stop", "length"):
        return Completion(ids, logprobs, "abort", error=f"vLLM ended it with {reason!r}")
    return Completion(ids, logprobs, reason)
