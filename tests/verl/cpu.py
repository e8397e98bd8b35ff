"""A CPU as a platform of verl, and a rollout server that is transformers' ``generate``.

verl loads this in every process, by ``ENVIRONMENT``: its own trainer, workers, FSDP engine, agent
loops and rewards then run without a GPU. Only the two things that need one are replaced, through
verl's own registries.
"""

from __future__ import annotations

import contextlib
import functools
import os
from types import ModuleType
from typing import Any

import ray
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry
from verl.utils import distributed
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": __name__,
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",  # the FSDP engine is registered for cuda and npu alone
}

device = ModuleType("tests.verl.cpu.device")
device.is_available = lambda: True
device.current_device = lambda: torch.device("cpu")
for name in ("empty_cache", "synchronize", "set_device", "ipc_collect", "manual_seed",
             "manual_seed_all", "reset_peak_memory_stats"):  # fmt: skip
    setattr(device, name, lambda *_, **__: None)
for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
    setattr(device, name, lambda *_: 0)
device.mem_get_info = lambda *_: (1 << 30, 1 << 30)
device.get_rng_state = torch.get_rng_state
device.set_rng_state = torch.set_rng_state
device.device_count = lambda: 1
device.get_device_name = lambda *_: "CPU"


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    device_name, vendor_name, device_module = "cpu", "cpu", device

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str):
        yield

    def ray_resource_name(self) -> str:
        return "GPU"  # ray.init(num_gpus=1) believes it

    def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def _nothing(self, *_: Any) -> None: ...

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = _nothing
    empty_cache = profiler_start = profiler_stop = cudart = _nothing


class Server:
    """One model that answers verl's ``generate``; the trainer's weights come by ``load``."""

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.loads = 0
        self.step = 0

    async def load(self, weights: dict[str, torch.Tensor], step: int) -> None:
        self.model.load_state_dict(weights, strict=False)
        self.loads, self.step = self.loads + 1, step

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        temperature = sampling_params["temperature"]
        out = self.model.generate(
            torch.tensor([prompt_ids]),
            max_new_tokens=sampling_params.get("max_tokens", 52),
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0,
            top_p=1.0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[0, len(prompt_ids) :]
        logprobs = (torch.cat(out.logits) / (temperature or 1)).log_softmax(-1)
        return TokenOutput(
            token_ids=ids.tolist(),
            log_probs=logprobs.gather(1, ids[:, None])[:, 0].tolist(),
            stop_reason="completed",  # as verl's vLLM server, whether finished or cut
            extra_fields={"global_steps": self.step},
        )

    async def _nothing(self, *_: Any, **__: Any) -> None: ...

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing
    abort_all_requests = resume_generation = _nothing


class Replica(RolloutReplica):
    async def launch_servers(self) -> None:
        server = ray.remote(Server).options(name=f"siri_test_server_{self.replica_rank}")
        self._server_handle = server.remote(self.model_config.path)
        self._server_address = f"test:{self.replica_rank}"
        self.servers = [self._server_handle]


class Adapter(base.BaseRollout):
    """Beside the actor in its worker process; hands its weights to the server."""

    async def resume(self, tags: list[str]) -> None: ...
    async def release(self) -> None: ...

    async def update_weights(self, weights: Any, global_steps: int = 0, **_: Any) -> None:
        state = {name: tensor.detach().clone() for name, tensor in weights}
        rank = int(os.environ.get("RANK", 0))
        await ray.get_actor(f"siri_test_server_{rank}").load.remote(state, global_steps)


# It would ask for "cpu:gloo,cpu:gloo", which torch refuses (verl/utils/distributed.py:89).
distributed.initialize_global_process_group_ray = functools.partial(
    distributed.initialize_global_process_group_ray, backend="gloo"
)
RolloutReplicaRegistry.register("test", lambda: Replica)
base._ROLLOUT_REGISTRY["test", "async"] = f"{__name__}.Adapter"
