"""Two gloo ranks do what one process does: gradients, metrics, checkpoints.

``make test`` forks them for the quick part of ``ranks.py``; ``make test-slow`` has torchrun start
them for all of it.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from siri_train import distributed
from siri_train.checkpoint.save_load import checkpoints, problem
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.model import fsdp
from siri_train.model.packing import micro_batches
from siri_train.model.policy import load_policy
from siri_train.model.vocab_parallel import shard_head
from siri_train.train import train
from tests.torchrun import torchrun

from . import ranks
from .conftest import TINY

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available(),
        reason="this PyTorch is built without torch.distributed",
    ),
    pytest.mark.timeout(3600),  # torchrun: a minute and a half on two idle cores
]


def two_ranks(folder: Path, task: str) -> subprocess.CompletedProcess[str]:
    """Two ranks at a task of ``ranks.py``."""
    return torchrun("-m", "tests.train.ranks", str(folder), task, folder=folder)


@pytest.fixture(scope="module", params=["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process and two ranks have done their part."""
    folder = tmp_path_factory.mktemp("ranks")
    recipe = copy.deepcopy(TINY)
    recipe["rollout"]["shards"] = 2  # one process draws what two ranks draw
    recipe["train"]["token_budget"] = 200  # several rows a rank
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    config = folder / "config.yaml"
    train(load_config(config, [f"output={folder / 'reference'}", "train.steps=4"]))
    if request.param == "forked":
        ranks.fork(folder)
        return folder
    train(load_config(config, [f"output={folder / 'alone'}", "train.steps=2"]))
    train(load_config(config, [f"output={folder / 'dynamic alone'}", *ranks.DYNAMIC]))
    done = two_ranks(folder, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "UserWarning" not in done.stderr, done.stderr
    assert done.stdout.count("tiny: report") == 5  # rank 0 speaks, rank 1 does not
    return folder


# What takes long on two ranks, and torchrun's own doings.
launched = pytest.mark.parametrize(
    "folder", [pytest.param("torchrun", marks=pytest.mark.slow)], indirect=True
)


def load(folder: Path, rank: int, part: str, of: str = "rank") -> dict[str, Any]:
    return torch.load(folder / f"{of}{rank}.pt", weights_only=False)[part]


def test_gradient_is_the_same_on_any_ranks_micro_batches_and_packing(folder: Path) -> None:
    alone = ranks.gradients(None)
    two = load(folder, 0, "gradients")
    other = load(folder, 1, "gradients")
    assert len(alone) == 3 * 2 * 2 * 2 + 2 + 2 + 3 * 2 + 1
    assert len(two) == (len(alone) if (folder / "slow0.pt").exists() else 6 + 1)
    for name in two:
        first = name.rsplit(" ", 2)[0] + " 1 False" if name != "one sequence" else name
        want, stats = alone[first]
        assert want.norm() > 1e-3
        assert torch.equal(two[name][0], other[name][0]) and two[name][1] == other[name][1]
        for got, got_stats in (alone[name], two[name]):
            assert (got - want).norm() < 1e-6 * want.norm(), name
            assert got_stats["trained_tokens"] == stats["trained_tokens"]
            assert got_stats["means"] == pytest.approx(stats["means"], rel=1e-5, abs=1e-7)
            for key in ("loss", "grad_norm", "ratio_max", "rollout_kl"):
                assert got_stats[key] == pytest.approx(stats[key], rel=1e-4, abs=1e-7), key


@launched
def test_one_ranks_fault_or_signal_ends_all_and_dynamic_sampling_picks_the_same(
    folder: Path,
) -> None:
    for rank in (0, 1):
        ended = torch.load(folder / f"rollouts{rank}.pt", weights_only=False)
        assert ended["failed"] == "the engine of rank 1 has crashed"
        assert "stopped before step 0" in ended["stopped"]
        assert ended["dynamic"] == "finished"
    one, two = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("dynamic alone", "dynamic")
    )
    assert [r["groups"] for r in one] == [r["groups"] for r in two]
    for key in ("groups_dropped", "groups_surplus", "reward_mean", "tokens"):
        assert one[0][key] == two[0][key], key  # before an update has rounded differently
    assert one[0]["tokens_discarded"] <= two[0]["tokens_discarded"]  # alone it ends early


def test_collectives(folder: Path) -> None:
    for rank in (0, 1):
        assert load(folder, rank, "collectives") == {
            "rank": rank,
            "ranks": 2,
            "gather": ["rank 0", "rank 1"],
            "from_main": 7,
            "share": slice(0, 2) if rank == 0 else slice(2, 5),
            "spread": [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)],
            "on_main": "list index out of range",  # raised on rank 0, and on the other too
        }


def test_alone_the_collectives_cost_nothing_and_agree() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather("x") == ["x"] and distributed.from_main(3) == 3
    assert distributed.share(5) == slice(0, 5)
    assert distributed.spread(lambda xs: [2 * x for x in xs], range(3)) == [0, 2, 4]
    with pytest.raises(ZeroDivisionError):
        distributed.on_main(lambda: 1 // 0)
    with distributed.session("cpu"), distributed.main_first():
        assert not torch.distributed.is_initialized()  # not under torchrun
    with pytest.raises(ValueError, match="torchrun"):
        fsdp.shard(torch.nn.Linear(2, 2), torch.device("cpu"))


def test_sharded_models_compute_sample_and_save_as_whole_ones(folder: Path) -> None:
    torch.manual_seed(0)
    policy = load_policy(ranks.SCRATCH, torch.device("cpu"))
    batch = next(micro_batches(ranks.samples(8), 10_000, torch.device("cpu")))
    logprobs = policy.token_logprobs(batch)[0].detach()
    logits = policy.model(input_ids=batch.input_ids[:, :9]).logits.detach()
    parts = [load(folder, rank, "policies") for rank in (0, 1)]
    for part in parts:
        tolerances = {"plain": 1e-5, "no reshard": 1e-5, "bfloat16": 3e-2, "offload": 1e-5}
        for name, tolerance in tolerances.items():
            torch.testing.assert_close(part[name], logprobs, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(
                part[f"{name} logits"].float(), logits, rtol=tolerance, atol=tolerance
            )
            assert part[f"{name} logits"].dtype == (
                torch.bfloat16 if name == "bfloat16" else torch.float32
            )
            assert part[f"{name} share"] < 0.6  # a rank holds about half of the weights
        assert not torch.equal(part["bfloat16"], logprobs)
    saved = AutoModelForCausalLM.from_pretrained(folder / "saved")
    assert saved.config.architectures == ["Qwen2ForCausalLM"]
    for name, value in policy.model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value), name


@launched
def test_the_memory_estimate_of_two_ranks_is_within_15_percent_of_their_peaks(
    folder: Path,
) -> None:
    for rank in (0, 1):
        cases = load(folder, rank, "memory", "slow")
        assert len(cases) == 9
        for name, (counted, expected) in cases.items():
            assert expected == pytest.approx(counted, rel=0.15), name


def test_a_head_cut_by_vocabulary_is_the_whole_head(folder: Path) -> None:
    parts = [load(folder, rank, "cut head") for rank in (0, 1)]
    alone = ranks.head_gradients(None)
    assert len(alone) == 11
    for part in parts:
        if (folder / "slow0.pt").exists():
            assert part["gradients"].keys() == alone.keys()
        for name, (got, got_stats) in part["gradients"].items():
            want, stats = alone[name]
            assert want.norm() > 1e-3 and (got - want).norm() < 1e-6 * want.norm(), name
            assert got_stats["means"] == pytest.approx(stats["means"], rel=1e-5, abs=1e-7)
            assert got_stats["loss"] == pytest.approx(stats["loss"], rel=1e-4, abs=1e-7)
    policy = ranks.untied(None)
    for rank, part in enumerate(parts):  # each rank with rows of its own
        batch = next(micro_batches(ranks.samples(8 + rank), 10_000, torch.device("cpu")))
        logprobs = policy.token_logprobs(batch)[0].detach()
        torch.testing.assert_close(part["logprobs"], logprobs)
        torch.testing.assert_close(part["mixed"], logprobs, rtol=3e-2, atol=3e-2)
        assert not torch.equal(part["mixed"], logprobs)
        logits = policy.model(input_ids=batch.input_ids[:, :9]).logits
        torch.testing.assert_close(part["logits"], logits.detach())
        assert part["share"] == 0.5 and part["resumed"] is True
    saved = parts[0]["saved"]
    assert saved.keys() == policy.model.state_dict().keys()
    assert all(torch.equal(saved[n], value) for n, value in policy.model.state_dict().items())


def test_heads_that_cannot_be_cut_are_refused(tiny: Any) -> None:
    class Mesh:
        def size(self) -> int:
            return 3

    policy = ranks.untied(None)
    with pytest.raises(ValueError, match="38 tokens"):
        shard_head(policy.model, Mesh(), torch.device("cpu"))
    policy.model.lm_head.bias = torch.nn.Parameter(torch.zeros(38))
    with pytest.raises(ValueError, match="head with a bias"):
        shard_head(policy.model, Mesh(), torch.device("cpu"))
    tied = load_policy(ranks.SCRATCH, torch.device("cpu"))
    with pytest.raises(ValueError, match="tied to its embedding"):
        shard_head(tied.model, Mesh(), torch.device("cpu"))
    with pytest.raises(ConfigError, match="not with offload"):
        tiny("distributed.vocabulary_parallel_head=true", "distributed.offload=true")


def test_what_fails_on_one_rank_fails_on_all_and_loses_nothing(folder: Path) -> None:
    for rank in (0, 1):
        seen = load(folder, rank, "one rank fails")
        assert seen["norm"] is None and seen["stayed"]  # neither rank took the step
        assert "step_000002 could not be written: rank 1: " in seen["error"]
        assert "the newest one is" in seen["error"] and "step_000001" in seen["error"]
        assert seen["left"] == ["step_000001"]
    assert problem(folder / "full/checkpoints/step_000001") is None


@launched
def test_master_weights_are_saved_by_shards_and_resumed_to_the_bit(folder: Path) -> None:
    assert all(load(folder, rank, "masters", "slow") is True for rank in (0, 1))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{step:06d}"
    assert problem(folder) is None
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Distance of all weights together: some, as the keys' biases, have no gradient but noise."""
    return float(torch.cat([(a[name] - b[name]).flatten() for name in b]).norm())


MEASURED = ("time_rollout", "time_train", "rollout_tokens_per_s", "train_tokens_per_s")


@launched
@pytest.mark.parametrize("run", ["whole", "alone"])
def test_a_run_on_two_ranks_is_the_run_of_one_process(folder: Path, run: str) -> None:
    """Uninterrupted; and begun by one process, continued by two."""
    compare(folder, run)


def test_an_interrupted_run_on_two_ranks_is_the_run_of_one_process(folder: Path) -> None:
    compare(folder, "cut")


def compare(folder: Path, run: str) -> None:
    """The run's metrics, weights and report are the reference's."""
    ours, theirs = rows(folder / run), rows(folder / "reference")
    assert len(ours) == len(theirs) == 4
    for row, want in zip(ours, theirs, strict=True):
        assert row["phase"] == want["phase"]
        # Counted over the responses of all ranks.
        assert row["response_len_hist"] == want["response_len_hist"]
        for group, rates in want["token_groups"].items():
            assert row["token_groups"][group] == pytest.approx(rates), group
        apart_from = {*MEASURED, "peak_memory_gb", "phase", "ranks"}
        apart_from |= {"response_len_hist", "token_groups"}
        for key in want.keys() - apart_from:
            if want[key] is None:  # nothing went through the model
                assert row[key] is None, key
            else:
                near = pytest.approx(want[key], rel=1e-3, abs=1e-6)
                assert row[key] == near, (row["step"], key)
    assert sum(row["grad_norm"] is not None for row in ours) >= 3
    got, want = weights(folder / run, 4), weights(folder / "reference", 4)
    start = AutoModelForCausalLM.from_pretrained(folder / "reference/checkpoints/step_000002")
    assert apart(got, want) < 1e-3 * apart(start.state_dict(), want)
    assert (folder / run / "report.html").exists()
    manifest = json.loads((folder / run / "checkpoints" / "manifest.json").read_text())
    assert manifest["siri-low"]["step"] == 2 and manifest["siri-high"]["step"] == 4


@launched
def test_two_ranks_resume_to_the_bit(folder: Path) -> None:
    whole, cut = weights(folder / "whole", 4), weights(folder / "cut", 4)
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    shards = {p.name for p in (folder / "cut/checkpoints/step_000004/optimizer").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp"} <= shards


@launched
def test_a_rank_killed_in_its_checkpoint_changes_nothing(folder: Path) -> None:
    assert two_ranks(folder, "killed").returncode != 0
    there = checkpoints(folder / "killed")
    assert max(there) == 2 and problem(there[2]) is None
    done = two_ranks(folder, "again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((folder / "killed/checkpoints").glob(".*"))
    whole, got = weights(folder / "whole", 4), weights(folder / "killed", 4)
    assert all(torch.equal(value, got[name]) for name, value in whole.items())
    for ours, theirs in zip(rows(folder / "killed"), rows(folder / "whole"), strict=True):
        assert {k: v for k, v in ours.items() if k not in (*MEASURED, "peak_memory_gb")} == {
            k: v for k, v in theirs.items() if k not in (*MEASURED, "peak_memory_gb")
        }


@launched
def test_one_process_continues_what_two_ranks_began(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "cut", tmp_path / "run")
    overrides = [f"output={tmp_path / 'run'}", "train.steps=4"]
    config = load_config(folder / "config.yaml", overrides)
    train(config, resume=str(tmp_path / "run/checkpoints/step_000002"))
    got, want = weights(tmp_path / "run", 4), weights(folder / "whole", 4)
    start = weights(tmp_path / "run", 2)
    assert apart(got, want) < 1e-3 * apart(start, want)


def test_shards_must_divide_among_the_ranks(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from siri_train.rollout import SharedEngine

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="multiple of the 2 ranks, got 3"):
        SharedEngine(None, 3, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="multiple of the 2 ranks"):
        from siri_train.trainer.run import build_engine

        class Stub:
            model = pad_token_id = None

        build_engine(tiny("rollout.shards=3"), Stub())  # type: ignore[arg-type]
