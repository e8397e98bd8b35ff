"""The configuration of sampling: ``rollout`` and its subsections."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from siri_train.config import engines
from siri_train.config.base import Section
from siri_train.config.masked import holds_secret
from siri_train.config.values import Gpus, Minutes, OneOf, Rows, StepsOrNone, Url, UserPath, Word

EngineName = Annotated[str, AfterValidator(OneOf(engines.names))]


class VllmConfig(Section):
    """vLLM in the trainer's process (``rollout.engine: vllm``); each rank has one of its own."""

    gpu_memory_utilization: float = Field(0.4, gt=0, le=1)
    """Share of a GPU's memory that vLLM plans with: its weights and its cache."""
    cache_gib: float | None = Field(None, gt=0, le=2**16)
    """GiB for keys and values; null: what ``gpu_memory_utilization`` leaves, on a CPU 1."""
    sleep_level: int = Field(1, ge=0, le=2)
    """While the trainer works: 0 vLLM keeps its memory, 1 its weights move to the CPU, 2 they are
    dropped. They are written anew after each update. Without effect on a CPU."""
    max_num_seqs: Rows = 256
    """Sequences decoded at a time."""
    enforce_eager: bool = False
    """No CUDA graphs: starts faster, decodes slower."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The dtype that vLLM computes in; null: the trainer's, ``distributed.compute_dtype`` or
    ``model.dtype``."""
    tensor_parallel_size: int = Field(1, gt=0, le=1024)
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


_OURS = ("host", "port", "uds", "fd")
_SECRET = ("key", "apikey", "token", "password", "passwd", "passphrase", "secret", "credentials")
_SECRETS = ("api-key", "hf-token")
_SHOWN = (
    "would be written into config.yaml and the report. The trainer's own server gets a random key; "
    "other secrets go into environment variables, as HF_TOKEN"
)


def check_server_flag(text: str) -> None:
    """Refuse a flag that would show a key, let others in or run a model's code.

    Args:
        text: one item of ``rollout.server.args``, a flag, ``--flag=value`` or a value.

    Raises:
        ValueError: naming the flag, never its value, and what to do instead.
    """
    flag = ""
    if text.lstrip().startswith("--"):
        flag = text.lstrip()[2:].partition("=")[0].partition(" ")[0].lower().replace("_", "-")

    def short_for(*names: str) -> bool:
        """Whether the flag is one of the names or short for it, as argparse takes --ho."""
        return any(flag == name or (len(flag) > 1 and name.startswith(flag)) for name in names)

    if short_for(*_OURS):
        raise ValueError(
            f"--{flag} is not taken: the trainer's own server listens on 127.0.0.1 only, at a free "
            "port; to serve elsewhere start `vllm serve` yourself, with VLLM_API_KEY in its "
            "environment, and name it in rollout.server.url"
        )
    # --allow-credentials says whether browsers may send some: it holds none.
    ends_so = re.split(r"[-.]", flag)[-1] in _SECRET and flag != "allow-credentials"
    if ends_so or short_for(*_SECRETS) or flag.startswith("ssl-keyfile-p"):
        raise ValueError(f"--{flag} is not taken: it {_SHOWN}")
    if holds_secret(text):
        named = f"a value of --{flag}" if flag else "one of its values"
        raise ValueError(
            f"{named} is not taken: it holds a password, a token or a key, which {_SHOWN}"
        )
    if short_for("config"):
        raise ValueError(
            f"--{flag} is not taken: what such a file sets (the host, a key) would not be looked "
            "at; give its flags in rollout.server.args"
        )
    if short_for("trust-remote-code"):
        raise ValueError(
            f"--{flag} is not taken: the trainer runs no code of model folders, and the server "
            "must serve the same model"
        )


class ServerConfig(Section):
    """A vLLM server (``rollout.engine: vllm-server``)."""

    url: Url | None = None
    """http://HOST:PORT of a running `vllm serve`; its key, if it has one, is VLLM_API_KEY.
    null: the trainer starts one on this machine, restarts it when it crashes, and ends it."""
    python: UserPath | None = None
    """For the trainer's own server: interpreter of the environment that has vLLM; null: this."""
    gpus: Gpus | None = None
    """For the trainer's own server: its CUDA_VISIBLE_DEVICES, as "1,2"; not the trainer's GPUs."""
    args: list[Word] = []
    """For the trainer's own server: more flags of `vllm serve`: [--tensor-parallel-size, "2"].
    Not its address, which is 127.0.0.1 with a free port, and no keys, which would be shown."""
    restarts: int = Field(3, ge=0, le=1000)
    """For the trainer's own server: how many times in a row it is started again after a crash."""
    sync: Literal["disk", "nccl"] = "disk"
    """How new weights get there. disk: a safetensors file that both sides see; always works. nccl:
    GPU to GPU; needs the same vLLM in the trainer's environment, and GPUs of its own."""
    sync_dir: UserPath | None = None
    """disk: a folder both sides see under this path (/dev/shm on one machine); null: the run's."""
    start_minutes: Minutes = 15.0
    """Longest wait for the server, at the start and whenever it is lost."""
    request_minutes: Minutes = 60.0
    """Longest wait for one response."""
    concurrency: int = Field(256, gt=0, le=4096)
    """Requests in flight per rank; at least what the server decodes at a time (--max-num-seqs)."""
    retries: int = Field(3, ge=0, le=1000)
    """How often the request for one response is sent again after a failure of the server."""

    @field_validator("args")
    @classmethod
    def _nothing_that_opens_or_shows(cls, value: list[str]) -> list[str]:
        for flag in value:
            check_server_flag(flag)
        return value

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
    """A check after a weight sync: the trainer scores a few freshly sampled tokens again.

    See ``siri_train.trainer.sync_probe``.
    """

    every: StepsOrNone | None = None
    """Syncs between probes; 0: no probe. null: every sync where the engine has a copy of the
    weights (vLLM), only the first where it samples from the trainer's own."""
    responses: int = Field(8, gt=0, le=2**16)
    """Responses per probe and rank."""
    tokens: int = Field(16, gt=0, le=2**16)
    """The longest of them."""
    threshold: float | None = Field(None, gt=0, le=100)
    """Largest mean |difference| of a log-prob, in nats; null: by the dtypes of both sides."""


class RolloutConfig(Section):
    """Sampling."""

    engine: EngineName = engines.DEFAULT
    """transformers: the trainer's own model; vllm: a vLLM in this process; vllm-server: a
    `vllm serve` elsewhere. See docs/rollouts.md."""
    prompts: Rows = 128
    """Questions per step."""
    group_size: int = Field(16, gt=1, le=2**16)
    """Responses per question."""
    temperature: float = Field(1.0, ge=0.01, le=100)
    """Temperature of the samples; the log-probs are those after it."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1: off."""
    top_k: int = Field(0, ge=0, le=10**6)
    """0: off."""
    batch_rows: Rows = 256
    """Sequences decoded at a time by the transformers engine."""
    shards: int = Field(0, ge=0, le=2**16)
    """Questions are sampled in this many parts, each with a seed of its own and shared among the
    ranks; a run draws the same responses on any number of ranks that divides it. 0: one a rank."""
    deal: Literal["questions", "responses"] = "questions"
    """The unit divided into ``shards``. questions: whole groups. responses: groups too, so that all
    ranks get some responses to a long question and finish closer together; other samples."""
    oversample: float = Field(1.0, ge=1, le=1000)
    """Dynamic sampling (DAPO): sample this many times as many questions as groups are wanted, drop
    groups whose rewards are all equal, and stop when enough of the others are complete. 1 and
    max_rounds 1: off, as in SIRI."""
    max_rounds: int = Field(1, gt=0, le=10_000)
    """Dynamic sampling: most rounds of questions a step samples until enough groups are
    informative; after them it goes on with those it has."""
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
        """Whether groups whose rewards are all equal are dropped and others sampled instead."""
        return self.oversample > 1 or self.max_rounds > 1

    @property
    def plain(self) -> RolloutConfig:
        """The same without dynamic sampling."""
        return self.model_copy(update={"oversample": 1.0, "max_rounds": 1})
