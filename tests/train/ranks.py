"""What two ranks do in ``test_distributed.py``, in one launch:

    torchrun --nproc-per-node 2 -m tests.train.ranks FOLDER

FOLDER/config.yaml is the recipe of the runs. Results are left in FOLDER.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from siri_train import distributed, packing, step
from siri_train.config import ArchitectureConfig, DistributedConfig, LossConfig, ModelConfig
from siri_train.config import TrainConfig as Train
from siri_train.loop import train
from siri_train.model import Policy, load_policy
from siri_train.optimizer import MasterAdamW, make_optimizer
from siri_train.packing import Sample
from siri_train.recipe import load_config
from siri_train.rollout import EngineError, TransformersEngine
from siri_train.stop import Stopped

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
def cut(micro_batches: int, shuffled: bool) -> Iterator[None]:
    """Rows of the update: how many rounds, and by which packing."""
    made = packing.micro_batches

    def fixed(*args: Any, **kwargs: Any) -> Any:
        return made(*args, **kwargs, at_least=micro_batches)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(step, "micro_batches", fixed))
        if shuffled:
            stack.enter_context(mock.patch.object(packing, "plan", random_plan))
        yield


def gradient(policy: Policy, batch: list[Sample], loss: LossConfig) -> tuple[torch.Tensor, Any]:
    """The gradient of one update over ``batch`` and its statistics."""
    recorder = Recorder(policy.model.parameters(), lr=1.0)
    config = Train(mini_batches=1, token_budget=10_000, grad_clip=1e9)
    stats = step.update(
        policy, recorder, batch, config, loss, temperature=0.9, constant_length=24, seed=0
    )
    return recorder.gradient, stats


def cases() -> Iterator[tuple[str, LossConfig, int, bool, list[Sample]]]:
    """(name, loss, micro-batches, shuffled, samples); the same without ranks and with two."""
    for aggregation in AGGREGATIONS:
        for coefficient in (0.0, 0.01):
            loss = LossConfig(aggregation=aggregation, entropy_coef=coefficient)  # type: ignore[arg-type]
            for micro_batches in (1, 3):
                for shuffled in (False, True):
                    name = f"{aggregation} {coefficient} {micro_batches} {shuffled}"
                    yield name, loss, micro_batches, shuffled, samples(24)
    one = [s for s in samples(24) if s.advantage][:1]
    yield "one sequence", LossConfig(), 1, False, one  # the second rank has ballast only


def gradients(sharding: DistributedConfig | None) -> dict[str, Any]:
    """Every case's gradient and statistics."""
    torch.manual_seed(0)
    policy = load_policy(SCRATCH, torch.device("cpu"), sharding=sharding)
    results = {}
    for name, loss, micro_batches, shuffled, batch in cases():
        with cut(micro_batches, shuffled):
            vector, stats = gradient(policy, batch, loss)
        results[name] = (vector, vars(stats))
    return results


def collectives() -> dict[str, Any]:
    """The small helpers, each with what only two ranks can show."""
    seen: dict[str, Any] = {"rank": distributed.rank(), "ranks": distributed.world_size()}
    seen["gather"] = distributed.gather(f"rank {distributed.rank()}")
    seen["from_main"] = distributed.from_main(distributed.rank() + 7)
    seen["share"] = distributed.share(5)
    seen["spread"] = distributed.spread(lambda xs: [(x, distributed.rank()) for x in xs], range(5))
    seen["total"] = distributed.total([1.0, float(distributed.rank())])
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
        with distributed.gathered(policy.model), torch.no_grad():
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
        step.update(
            policy, optimizer, samples(24), learn, LossConfig(),
            temperature=1.0, constant_length=24, seed=0,
        )  # fmt: skip

    policy = load_policy(config, torch.device("cpu"), sharding=DistributedConfig())
    optimizer = make_optimizer(policy.model, learn)
    assert isinstance(optimizer, MasterAdamW)
    one_step(policy, optimizer)
    distributed.save_sharded_state(folder / "masters", policy.model, optimizer)
    again = load_policy(config, torch.device("cpu"), sharding=DistributedConfig())
    with torch.no_grad():
        for p, q in zip(again.model.parameters(), policy.model.parameters(), strict=True):
            p.copy_(q)
    resumed = make_optimizer(again.model, learn)
    distributed.load_sharded_state(folder / "masters", again.model, resumed)
    one_step(policy, optimizer)
    one_step(again, resumed)
    return all(
        bool((resumed.state[p][key] == optimizer.state[q][key]).all())
        and resumed.state[p][key].dtype == torch.float32
        for p, q in zip(again.model.parameters(), policy.model.parameters(), strict=True)
        for key in ("master", "exp_avg", "exp_avg_sq")
    )


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
        }
        torch.save(mine, folder / f"rank{distributed.rank()}.pt")
        recipe = folder / "config.yaml"
        for resume in ("never", "auto"):
            steps = 2 if resume == "never" else 4
            train(load_config(recipe, [f"output={folder / 'cut'}", f"train.steps={steps}"]), resume)
        train(load_config(recipe, [f"output={folder / 'whole'}", "train.steps=4"]))
        torch.save(rollouts(folder), folder / f"rollouts{distributed.rank()}.pt")
        # A checkpoint of one process, left by the test, continued by two.
        train(load_config(recipe, [f"output={folder / 'alone'}", "train.steps=4"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
