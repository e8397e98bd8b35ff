"""The configuration of sampling: ``rollout``, its subsections, ``loss.rollout_correction``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from siri_train.section import Section

if TYPE_CHECKING:  # torch comes with it, which reading a recipe does without
    from siri_kernels.policy_loss.types import RolloutCorrection


class VllmConfig(Section):
    """vLLM in the trainer's process (``rollout.engine: vllm``); each rank has one of its own."""

    gpu_memory_utilization: float = Field(0.4, gt=0, le=1)
    """Share of a GPU's memory that vLLM plans with: its weights and its cache."""
    cache_gib: float | None = Field(None, gt=0)
    """GiB for keys and values; null: what ``gpu_memory_utilization`` leaves, on a CPU 1."""
    sleep_level: Literal[0, 1, 2] = 1
    """While the trainer works: 0 vLLM keeps its memory, 1 its weights move to the CPU, 2 they are
    dropped. Either way they are written anew after the update. Without effect on a CPU."""
    max_num_seqs: int = Field(256, gt=0)
    """Sequences decoded at a time."""
    enforce_eager: bool = False
    """No CUDA graphs: starts faster, decodes slower."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What vLLM computes in; null: as the trainer, so ``distributed.compute_dtype``, else
    ``model.dtype``."""
    tensor_parallel_size: int = Field(1, gt=0)
    """Only 1: a model that needs several GPUs is sampled by ``rollout.engine: vllm-server``."""

    @field_validator("tensor_parallel_size")
    @classmethod
    def _one_gpu(cls, value: int) -> int:
        if value > 1:
            raise ValueError(
                f"got {value}, takes 1: in the trainer's process vLLM has the rank's own GPU; for "
                "a model over several GPUs start `vllm serve --tensor-parallel-size N` and set "
                "rollout.engine=vllm-server"
            )
        return value


class ServerConfig(Section):
    """A vLLM server (``rollout.engine: vllm-server``)."""

    url: str | None = None
    """http://HOST:PORT of a running `vllm serve`; its key, if it has one, is VLLM_API_KEY.
    null: the trainer starts one on this machine, restarts it when it crashes, and ends it."""
    python: str | None = None
    """For the trainer's own server: interpreter of the environment that has vLLM; null: this."""
    gpus: str | None = None
    """For the trainer's own server: its CUDA_VISIBLE_DEVICES, as "1,2"; not the trainer's GPUs."""
    args: list[str] = []
    """For the trainer's own server: more flags of `vllm serve`: [--tensor-parallel-size, "2"]."""
    restarts: int = Field(3, ge=0)
    """For the trainer's own server: how often in a row it is started again after it ended."""
    sync: Literal["disk", "nccl"] = "disk"
    """How new weights get there. disk: a safetensors file that both sides see; always works. nccl:
    GPU to GPU; needs the same vLLM in the trainer's environment, and GPUs of its own."""
    sync_dir: str | None = None
    """disk: a folder both sides see under this path (/dev/shm on one machine); null: the run's."""
    start_minutes: float = Field(15.0, gt=0)
    """Longest wait for the server, at the start and whenever it is lost."""
    request_minutes: float = Field(60.0, gt=0)
    """Longest wait for one response."""
    concurrency: int = Field(256, gt=0)
    """Requests in flight per rank; at least what the server decodes at a time (--max-num-seqs)."""
    retries: int = Field(3, ge=0)
    """How often one response is asked for again after a failure of the server."""

    @field_validator("args", mode="before")
    @classmethod
    def _yaml_reads_numbers(cls, value: Any) -> Any:
        return [str(v) for v in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _whose(self) -> ServerConfig:
        if self.url is not None:
            for name in ("python", "gpus", "args"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is for a server that the trainer starts; it cannot be combined "
                        f"with url ({self.url})"
                    )
        return self


class ProbeConfig(Section):
    """After a sync a few fresh tokens are sampled and scored again by the trainer; see
    ``siri_train.rollout.probe``."""

    every: int | None = Field(None, ge=0)
    """Syncs between probes; 0: no probe. null: every sync where the engine has a copy of the
    weights (vLLM), only the first where it samples from the trainer's own."""
    responses: int = Field(8, gt=0)
    """Responses per probe and rank."""
    tokens: int = Field(16, gt=0)
    """The longest of them."""
    threshold: float | None = Field(None, gt=0)
    """Largest mean |difference| of a log-prob, in nats; null: by the dtypes of both sides."""


class RolloutConfig(Section):
    """Sampling."""

    engine: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """transformers: the trainer's own model; vllm: a vLLM in this process; vllm-server: a
    `vllm serve` elsewhere. See docs/rollouts.md."""
    prompts: int = Field(128, gt=0)
    """Questions per step."""
    group_size: int = Field(16, gt=1)
    """Responses per question."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0: off."""
    batch_rows: int = Field(256, gt=0)
    """Sequences decoded at a time by the transformers engine."""
    shards: int = Field(0, ge=0)
    """Questions are sampled in this many parts, each with a seed of its own and shared among the
    ranks; a run draws the same responses on any number of ranks that divides it. 0: one a rank."""
    oversample: float = Field(1.0, ge=1)
    """Dynamic sampling (DAPO): ask this many times as many questions as groups are wanted, drop
    groups whose rewards are all equal, and stop sampling when enough of the others are complete.
    1 and max_rounds 1: off, as in SIRI."""
    max_rounds: int = Field(1, gt=0)
    """Dynamic sampling: rounds of questions a step may ask until enough groups are informative;
    with fewer it goes on with what it has."""
    keep: Literal["in_order", "first_done"] = "in_order"
    """Which informative groups dynamic sampling keeps: the first of the questions drawn, whatever
    their length, or the first to finish, which is faster and favours short answers."""
    asynchronous: bool = False
    """Sample the next step's batch, with its own cap, while this one is trained on: one update
    behind (off-policy by one step). The transformers engine keeps a second copy of the weights."""
    vllm: VllmConfig = VllmConfig()
    server: ServerConfig = ServerConfig()
    probe: ProbeConfig = ProbeConfig()

    @property
    def dynamic(self) -> bool:
        """Whether groups whose rewards are all equal are dropped and others asked instead."""
        return self.oversample > 1 or self.max_rounds > 1


class RolloutCorrectionConfig(Section):
    """``policy_loss``'s ``rollout_correction``: a weight for a sampler that is not the policy."""

    mode: Literal["truncate", "mask", "reject"] = "truncate"
    """truncate: the ratio clamped to [low, high] (TIS); mask: the ratio inside, else 0 (MIS,
    IcePop); reject: 1 inside, else 0."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """The ratio of a token, the product over the sequence, or its geometric mean."""
    high: float = Field(2.0, gt=0)
    low: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> RolloutCorrectionConfig:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self

    def build(self) -> RolloutCorrection:
        """As ``policy_loss`` takes it."""
        from siri_kernels.policy_loss.types import RolloutCorrection

        return RolloutCorrection(self.mode, self.level, high=self.high, low=self.low)
