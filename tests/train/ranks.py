"""What two ranks do in ``test_distributed.py``, in one launch:

    torchrun --nproc-per-node 2 -m tests.train.ranks FOLDER all

FOLDER/config.yaml is the recipe of the runs. Results are left in FOLDER.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
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
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy, load_policy
from siri_train.rollout import EngineError, TransformersEngine
from siri_train.train import train, update
from siri_train.trainer import update as parts
from siri_train.trainer.optimizer import MasterAdamW, make_optimizer, step_if_finite
from siri_train.trainer.reference_model import Reference
from siri_train.trainer.signals import Stopped
from tests.train.conftest import TINY
from tests.train.ranks_memory import memory, sharded_random

DYNAMIC = ("train.steps=3", "rollout.oversample=2", "rollout.max_rounds=2")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "token-sum-norm")
SCRATCH = ModelConfig(
    path="scratch", scratch=ArchitectureConfig(hidden_size=32, intermediate_size=64, layers=2)
)


class Recorder(torch.optim.SGD):
    """Keeps the whole gradient instead of stepping."""

    gradient: torch.Tensor

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parts = [p.grad for group in self.param_groups for p in group["params"]]
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parts]
        self.gradient = torch.cat([p.flatten() for p in whole]).clone()


def samples(count: int, seed: int = 0) -> list[Sample]:
    """Random responses of very unequal lengths; a third have no advantage."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        n = 1 + int(40 * rng.random() ** 2)
        made.append(
            Sample(
                [1, *(rng.randrange(10, 37) for _ in range(rng.randrange(1, 8))), 3],
                [rng.randrange(4, 37) for _ in range(n)],
                [-3.6 + 0.3 * rng.random() for _ in range(n)],
                advantage=rng.choice([-1.2, -0.3, 0.0, 0.0, 0.7, 1.5]),
            )
        )
    return made


def random_plan(
    lengths: list[int], token_budget: int, *, ranks: int = 1, at_least: int = 1
) -> list[list[list[int]]]:
    """Another packing than ``packing.plan``: sequences thrown into rows at random."""
    rng = random.Random(len(lengths))
    rows: list[list[int]] = [[] for _ in range(ranks * at_least)]
    for index in range(len(lengths)):
        rng.choice(rows).append(index)
    return [rows[start : start + ranks] for start in range(0, len(rows), ranks)]


@contextlib.contextmanager
def rows_cut(micro_batches: int, shuffled: bool) -> Iterator[None]:
    """Rows of the update: how many rounds, and by which packing."""
    made = packing.micro_batches

    def fixed(*args: Any, **kwargs: Any) -> Any:
        return made(*args, **kwargs, at_least=micro_batches)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(parts, "micro_batches", fixed))
        if shuffled:
            stack.enter_context(mock.patch.object(packing, "plan", random_plan))
        yield


def gradient(
    policy: Policy, batch: list[Sample], loss: LossConfig, other: Policy
) -> tuple[torch.Tensor, Any]:
    """The gradient of one update over ``batch`` and its statistics; ``other``: the reference."""
    recorder = Recorder(policy.model.parameters(), lr=1.0)
    config = Train(mini_batches=1, token_budget=10_000, grad_clip=1e9)
    stats = update(
        policy, recorder, batch, config, loss, temperature=0.9, constant_length=24, seed=0,
        reference=Reference(other, own=True) if loss.kl_coef else None,
    )  # fmt: skip
    return recorder.gradient, stats


def cases() -> Iterator[tuple[str, LossConfig, int, bool, list[Sample]]]:
    """(name, loss, micro-batches, shuffled, samples); the same without ranks and with two."""
    for aggregation in AGGREGATIONS:
        for coefficient in (0.0, 0.01):
            loss = LossConfig(aggregation=aggregation, entropy_coef=coefficient)
            for micro_batches in (1, 3):
                for shuffled in (False, True):
                    name = f"{aggregation} {coefficient} {micro_batches} {shuffled}"
                    yield name, loss, micro_batches, shuffled, samples(24)
    for micro_batches in (1, 3):
        with_kl = LossConfig(kl_coef=0.5, kl_estimator="k2")
        yield f"kl {micro_batches} False", with_kl, micro_batches, False, samples(24)
    one = [s for s in samples(24) if s.advantage][:1]
    yield "one sequence", LossConfig(), 1, False, one  # the second rank has a dummy only


def gradients(sharding: DistributedConfig | None) -> dict[str, Any]:
    """Every case's gradient and statistics."""
    torch.manual_seed(1)
    other = load_policy(SCRATCH, torch.device("cpu"), sharding=sharding)
    torch.manual_seed(0)
    policy = load_policy(SCRATCH, torch.device("cpu"), sharding=sharding)
    results = {}
    for name, loss, micro_batches, shuffled, batch in cases():
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


def head_gradients(cut: bool | None) -> dict[str, tuple[torch.Tensor, Any]]:
    """The cases' gradients of :func:`untied`; those of one aggregation, and the dummy's."""
    other, policy, results = untied(cut, seed=1), untied(cut), {}
    for name, loss, micro_batches, shuffled, batch in cases():
        if name.startswith(("token-mean", "one", "kl")):
            with rows_cut(micro_batches, shuffled):
                vector, stats = gradient(policy, batch, loss, other)
            results[name] = (vector, vars(stats))
    return results


def cut_head(folder: Path) -> dict[str, Any]:
    """The head sharded by vocabulary: gradients, log-probs, sampling, saved weights, resumed to
    the bit, mixed precision."""
    policy = untied(True)
    results: dict[str, Any] = {"gradients": head_gradients(True)}
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


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.session("cpu"):
        mine = {
            "collectives": collectives(),
            "gradients": gradients(DistributedConfig()),
            "policies": policies(folder),
            "masters": masters(folder),
            "memory": memory(),
            "one rank fails": one_rank_fails(folder),
            "cut head": cut_head(folder),
        }
        torch.save(mine, folder / f"rank{distributed.rank()}.pt")
        recipe = folder / "config.yaml"
        for resume in ("never", "auto"):
            steps = 2 if resume == "never" else 4
            train(load_config(recipe, [f"output={folder / 'cut'}", f"train.steps={steps}"]), resume)
        whole = [f"output={folder / 'whole'}", "train.steps=4", "train.rehearse=always"]
        train(load_config(recipe, whole))
        torch.save(rollouts(folder), folder / f"rollouts{distributed.rank()}.pt")
        # A checkpoint of one process, left by the test, continued by two.
        train(load_config(recipe, [f"output={folder / 'alone'}", "train.steps=4"]))


if __name__ == "__main__":
    task = {"all": main, "killed": killed, "again": again}[sys.argv[2]]
    task(Path(sys.argv[1]))
