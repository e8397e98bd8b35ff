"""What two ranks do in ``test_distributed.py``, in one launch:

    torchrun --nproc-per-node 2 -m tests.train.ranks FOLDER all

or, the quick part of it, in two forked processes: :func:`fork`. FOLDER/config.yaml is the recipe of
the runs. Results are left in FOLDER.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from siri_train import distributed
from siri_train.checkpoint import sharded_state
from siri_train.checkpoint.save_load import CheckpointError, save_checkpoint
from siri_train.config.loss import LossConfig
from siri_train.config.model import ArchitectureConfig, ModelConfig
from siri_train.config.recipe import load_config, parse_config
from siri_train.config.run import DistributedConfig
from siri_train.config.run import TrainConfig as Train
from siri_train.model import fsdp, packing
from siri_train.model.attention import prepare
from siri_train.model.policy import Policy, load_policy
from siri_train.rollout import EngineError, TransformersEngine
from siri_train.train import train, update
from siri_train.trainer.optimizer import MasterAdamW, make_optimizer, step_if_finite
from siri_train.trainer.signals import Stopped
from tests.train.conftest import TINY
from tests.train.ranks_cases import cases, gradient, rows_cut, samples
from tests.train.ranks_memory import memory, sharded_random

DYNAMIC = ("train.steps=3", "rollout.oversample=2", "rollout.max_rounds=2")
SCRATCH = ModelConfig(
    path="scratch", scratch=ArchitectureConfig(hidden_size=32, intermediate_size=64, layers=2)
)


def gradients(sharding: DistributedConfig | None, count: int | None = None) -> dict[str, Any]:
    """Gradient and statistics of :func:`cases`."""
    torch.manual_seed(1)
    other = load_policy(SCRATCH, torch.device("cpu"), sharding=sharding)
    torch.manual_seed(0)
    policy = load_policy(SCRATCH, torch.device("cpu"), sharding=sharding)
    results = {}
    for name, loss, micro_batches, shuffled, batch in cases(count):
        with rows_cut(micro_batches, shuffled):
            vector, stats = gradient(policy, batch, loss, other)
        results[name] = (vector, vars(stats))
    return results


def collectives() -> dict[str, Any]:
    """The small helpers, each with what only two ranks can show."""
    seen: dict[str, Any] = {"rank": distributed.rank(), "ranks": distributed.world_size()}
    seen["gather"] = distributed.gather(f"rank {distributed.rank()}")
    seen["from_main"] = distributed.from_main(distributed.rank() + 7)
    seen["share"] = distributed.share(5)
    seen["spread"] = distributed.spread(lambda xs: [(x, distributed.rank()) for x in xs], range(5))
    try:
        distributed.on_main(lambda: [][distributed.rank()])
    except IndexError as error:
        seen["on_main"] = str(error)
    return seen


def policies(folder: Path) -> dict[str, Any]:
    """Sharded models by every option: log-probs, whole weights for sampling, saved weights."""
    results = {}
    for name, sharding in {
        "plain": DistributedConfig(),
        "no reshard": DistributedConfig(reshard_after_forward=False),
        "bfloat16": DistributedConfig(compute_dtype="bfloat16"),
        "offload": DistributedConfig(offload=True),
    }.items():
        torch.manual_seed(0)
        config = SCRATCH.model_copy(update={"gradient_checkpointing": name == "no reshard"})
        policy = load_policy(config, torch.device("cpu"), sharding=sharding)
        batch = next(packing.micro_batches(samples(8), 10_000, torch.device("cpu")))
        results[name] = policy.token_logprobs(batch)[0].detach()
        with fsdp.gathered(policy.model), torch.no_grad():
            # Another number of forward passes on each rank: nothing may wait for the other.
            for _ in range(1 + 2 * distributed.rank()):
                logits = policy.model(input_ids=batch.input_ids[:, :9]).logits
        results[f"{name} logits"] = logits
        local = sum(p.to_local().numel() for p in policy.model.parameters())  # type: ignore[attr-defined]
        results[f"{name} share"] = local / sum(p.numel() for p in policy.model.parameters())
    weights, _ = policy.weights()
    if distributed.is_main():
        policy.save(folder / "saved", weights)
    return results


def masters(folder: Path) -> bool:
    """bfloat16 weights with float32 masters: saved and loaded by shards, the next step is the same
    to the bit."""
    config, learn = ModelConfig(path="embedded", dtype="bfloat16"), Train(lr=1e-5)

    def one_step(policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        update(
            policy, optimizer, samples(24), learn, LossConfig(),
            temperature=1.0, constant_length=24, seed=0,
        )  # fmt: skip

    policy = load_policy(config, torch.device("cpu"), sharding=DistributedConfig())
    optimizer = make_optimizer(policy.model, learn)
    assert isinstance(optimizer, MasterAdamW)
    one_step(policy, optimizer)
    sharded_state.save_sharded_state(folder / "masters", policy.model, optimizer)
    again = load_policy(config, torch.device("cpu"), sharding=DistributedConfig())
    with torch.no_grad():
        for p, q in zip(again.model.parameters(), policy.model.parameters(), strict=True):
            p.copy_(q)
    resumed = make_optimizer(again.model, learn)
    sharded_state.load_sharded_state(folder / "masters", again.model, resumed)
    one_step(policy, optimizer)
    one_step(again, resumed)
    return all(
        bool((resumed.state[p][key] == optimizer.state[q][key]).all())
        and resumed.state[p][key].dtype == torch.float32
        for p, q in zip(again.model.parameters(), policy.model.parameters(), strict=True)
        for key in ("master", "exp_avg", "exp_avg_sq")
    )


def untied(cut: bool | None, overrides: tuple[str, ...] = (), seed: int = 0) -> Policy:
    """A model with a head of its own: whole, sharded, or with the head sharded by vocabulary."""
    torch.manual_seed(seed)
    shape = Qwen2Config(
        vocab_size=38, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    if cut is not None:
        overrides += (f"distributed.vocabulary_parallel_head={str(cut).lower()}",)
        return sharded_random(shape, parse_config(copy.deepcopy(TINY), overrides))
    model: Any = Qwen2ForCausalLM(shape)
    prepare(model)
    return Policy(model, tokenizer=None, eos_ids=frozenset([0]), softcap=None)


def head_gradients(
    cut: bool | None, count: int | None = None
) -> dict[str, tuple[torch.Tensor, Any]]:
    """The cases' gradients of :func:`untied`; those of one aggregation, and the dummy's."""
    other, policy, results = untied(cut, seed=1), untied(cut), {}
    for name, loss, micro_batches, shuffled, batch in cases(count):
        if name.startswith(("token-mean", "one", "kl")):
            with rows_cut(micro_batches, shuffled):
                vector, stats = gradient(policy, batch, loss, other)
            results[name] = (vector, vars(stats))
    return results


def cut_head(folder: Path, count: int | None) -> dict[str, Any]:
    """The head sharded by vocabulary: gradients, log-probs, sampling, saved weights, resumed to
    the bit, mixed precision."""
    policy = untied(True)
    results: dict[str, Any] = {"gradients": head_gradients(True, count)}
    batch = next(
        packing.micro_batches(samples(8 + distributed.rank()), 10_000, torch.device("cpu"))
    )
    results["logprobs"] = policy.token_logprobs(batch)[0].detach()
    with fsdp.gathered(policy.model), torch.no_grad():
        for _ in range(1 + 2 * distributed.rank()):
            results["logits"] = policy.model(input_ids=batch.input_ids[:, :9]).logits
    weights, _ = policy.weights()
    results["saved"] = weights if distributed.is_main() else {}
    results["share"] = policy.model.lm_head.weight.to_local().shape[0] / 38
    mixed = untied(True, ("distributed.compute_dtype=bfloat16",))
    results["mixed"] = mixed.token_logprobs(batch)[0].detach()

    learn, runs = Train(lr=1e-2), []
    for resumed in (False, True):
        policy = untied(True)
        optimizer = make_optimizer(policy.model, learn)
        for number in range(2):
            if resumed and number == 1:
                sharded_state.save_sharded_state(folder / "head", policy.model, optimizer)
                optimizer = make_optimizer(policy.model, learn)
                sharded_state.load_sharded_state(folder / "head", policy.model, optimizer)
            update(
                policy, optimizer, samples(24), learn, LossConfig(),
                temperature=1.0, constant_length=24, seed=number,
            )  # fmt: skip
        runs.append([p.to_local().clone() for p in policy.model.parameters()])  # type: ignore[attr-defined]
    results["resumed"] = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    return results


def one_rank_fails(folder: Path) -> dict[str, Any]:
    """A gradient that is NaN on rank 1 alone, and a disk that is full for rank 1 alone."""
    torch.manual_seed(0)
    policy = load_policy(SCRATCH, torch.device("cpu"), sharding=DistributedConfig())
    optimizer = make_optimizer(policy.model, Train(lr=1e-3))
    save_checkpoint(folder / "full", 1, policy, optimizer)

    def local() -> torch.Tensor:
        return torch.cat([p.to_local().flatten() for p in policy.model.parameters()])  # type: ignore[attr-defined]

    before = local().clone()
    for p in policy.model.parameters():
        p.grad = torch.ones_like(p)
    if distributed.rank() == 1:
        p.grad.to_local().fill_(float("nan"))  # type: ignore[union-attr]
    seen = {"norm": step_if_finite(optimizer, 1.0), "stayed": torch.equal(before, local())}
    policy.model.zero_grad()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if distributed.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        save_checkpoint(folder / "full", 2, policy, optimizer)
    except CheckpointError as error:
        seen["error"] = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    distributed.barrier()
    seen["left"] = sorted(path.name for path in (folder / "full/checkpoints").iterdir())
    return seen


def killed(folder: Path) -> None:
    """A run of which rank 1 gets SIGKILL while it writes its part of the third checkpoint."""
    written, calls = sharded_state.save_sharded_state, []

    def die(path: Path, *args: Any) -> None:
        calls.append(path)
        if len(calls) == 3 and distributed.rank() == 1:
            (path / "__1_0.distcp").parent.mkdir(parents=True, exist_ok=True)
            (path / "__1_0.distcp").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        written(path, *args)

    sharded_state.save_sharded_state = die
    train(load_config(folder / "config.yaml", [f"output={folder / 'killed'}", "train.steps=4"]))


def again(folder: Path) -> None:
    """The same run once more, from what :func:`killed` left."""
    train(load_config(folder / "config.yaml", [f"output={folder / 'killed'}", "train.steps=4"]))


def rollouts(folder: Path) -> dict[str, str]:
    """What happens to one rank while it samples ends the run on both, also where neither hears of
    the other; then a run with dynamic sampling."""
    generate = TransformersEngine.generate

    def run(name: str, *overrides: str) -> str:
        try:
            train(load_config(folder / "config.yaml", [f"output={folder / name}", *overrides]))
        except (EngineError, Stopped) as error:
            return str(error)
        return "finished"

    def failing(self: Any, prompts: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if params.n > 1 and distributed.rank() == 1:
            raise EngineError("the engine of rank 1 has crashed")
        return generate(self, prompts, params, *args, **kwargs)

    def told(self: Any, prompts: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if params.n > 1 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return generate(self, prompts, params, *args, **kwargs)

    with mock.patch.object(TransformersEngine, "generate", failing):
        failed = run("failed")
    with mock.patch.object(TransformersEngine, "generate", told):
        stopped = run("stopped")
    return {"failed": failed, "stopped": stopped, "dynamic": run("dynamic", *DYNAMIC)}


def quick(folder: Path, count: int | None = 6) -> None:
    """Seconds of one core: each kind of sharded model, and a run that is resumed.

    Args:
        folder: where the recipe is.
        count: of the cases of gradients.
    """
    mine = {
        "collectives": collectives(),
        "gradients": gradients(DistributedConfig(), count),
        "policies": policies(folder),
        "one rank fails": one_rank_fails(folder),
        "cut head": cut_head(folder, count),
    }
    torch.save(mine, folder / f"rank{distributed.rank()}.pt")
    for resume in ("never", "auto"):
        overrides = [f"output={folder / 'cut'}", f"train.steps={2 if resume == 'never' else 4}"]
        train(load_config(folder / "config.yaml", overrides), resume)


def everything(folder: Path) -> None:
    """The quick part, and what takes a minute."""
    torch.set_num_threads(1)
    with distributed.session("cpu"):
        quick(folder, count=None)
        slow = {"masters": masters(folder), "memory": memory()}
        torch.save(slow, folder / f"slow{distributed.rank()}.pt")
        recipe = folder / "config.yaml"
        whole = [f"output={folder / 'whole'}", "train.steps=4", "train.rehearse=always"]
        train(load_config(recipe, whole))
        torch.save(rollouts(folder), folder / f"rollouts{distributed.rank()}.pt")
        # A checkpoint of one process, left by the test, continued by two.
        train(load_config(recipe, [f"output={folder / 'alone'}", "train.steps=4"]))


def fork(folder: Path, timeout: float = 600) -> None:
    """Two forked ranks at :func:`quick`: without the ten seconds in which two of torchrun's import
    everything.

    Raises:
        AssertionError: with what a rank wrote, if it failed or did not end in ``timeout`` seconds.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip

    def work(rank: int) -> None:
        with open(folder / f"said{rank}.txt", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        with distributed.session("cpu"):
            quick(folder)

    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=work, args=(rank,)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    end = time.monotonic() + timeout
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
    ended = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    said = "\n".join((folder / f"said{rank}.txt").read_text() for rank in (0, 1))
    assert ended == [0, 0], f"exit codes {ended}\n{said}"


if __name__ == "__main__":
    task = {"all": everything, "killed": killed, "again": again}[sys.argv[2]]
    task(Path(sys.argv[1]))
