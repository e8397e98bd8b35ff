"""The plan of a run: it adds up, scales as it must, fits or says what to change."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig
from siri_train.plan import lengths
from siri_train.plan.build import Plan, plan, share_of
from siri_train.plan.families import known_config, known_models
from siri_train.plan.fitting import apply, fits, least_ranks, needed
from siri_train.plan.gpus import GPUS, gpu_of, matching
from siri_train.plan.memory import Sizes
from siri_train.plan.questions import ASSUMED
from siri_train.plan.text import plan_text

SEED = int(time.time())
PAPERS = sorted(
    path.name for path in (Path(__file__).parents[2] / "siri_train" / "recipes").glob("siri-*.yaml")
)
VLLM = ("rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.6")

# A machine without a network: whatever is tried fails, also in other threads.
BLOCKED = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the plan opened a connection")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from siri_train.cli import main
for recipe in sys.argv[1:]:
    print("== " + recipe, flush=True)
    arguments = ["train", recipe, "--dry-run", "--ranks", "8", "--gpu", "h100", "--price", "2"]
    if main(arguments):
        sys.exit(1)
"""


def test_the_papers_recipes_are_planned_from_nothing(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSF"))
    } | {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *PAPERS],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split("== ")[1:]
    assert len(texts) == len(PAPERS) > 2
    for text in texts:
        assert "# not checked here:" in text and "siri-train data get deepscaler" in text
        fits = "\n# fits: " in text
        assert fits or "\n# does NOT fit: " in text
        assert ("GPU hours (" in text and "of money at 2" in text) == fits
    assert not list(tmp_path.iterdir())


def shown(made: Plan) -> str:
    return "\n".join(plan_text(made))


def draw_config(draw: random.Random, *more: str) -> RunConfig:
    low = draw.choice((512, 2048, 8192))
    return load_config(
        "siri-1.5b",
        [*VLLM, f"schedule.shape={draw.choice(('cosine', 'stair', 'constant'))}",
         f"schedule.max_len={low * draw.choice((1, 2))}", f"schedule.min_len={low}",
         f"schedule.cycle={2 * draw.randint(3, 40)}", f"train.steps={draw.randint(1, 200)}",
         f"rollout.prompts={draw.choice((16, 128))}", "eval.budgets=[]", "checkpoint.lag=0",
         "eval.every=7", f"train.mini_batches={draw.randint(1, 4)}", *more],
    )  # fmt: skip


def test_the_phases_are_the_schedules_and_add_up() -> None:
    draw = random.Random(SEED)
    for _ in range(4):
        config = draw_config(draw)
        made = plan(config, ranks=draw.randint(1, 9), gpu=draw.choice(list(GPUS)), price=3.0)
        schedule, steps = config.schedule.build(), config.train.steps
        for hours, share in zip(made.hours, made.assumed.share, strict=True):
            assert sum(phase.steps for phase in hours.phases) == steps, SEED
            caps = sum(phase.mean_cap * phase.steps for phase in hours.phases)
            assert caps / steps == pytest.approx(schedule.mean(steps)), SEED
            responses = config.rollout.prompts * config.rollout.group_size
            assert hours.tokens == pytest.approx(share * responses * caps), SEED
            parts = hours.rollout + hours.training + hours.evaluation
            assert hours.whole == pytest.approx(parts), SEED
        low, middle, high = (hours.whole for hours in made.hours)
        assert 0 < low < middle < high, SEED
        assert made.money is not None
        assert made.money[1] == pytest.approx(3.0 * middle * made.machines.ranks), SEED


def test_hours_and_memory_move_as_they_must() -> None:
    draw = random.Random(SEED)
    config = draw_config(draw, "schedule.shape=constant", "train.steps=10")
    sizes = Sizes.of(known_config("Qwen/Qwen3-1.7B"))
    gpu = gpu_of(draw.choice(("h100", "h200", "a100-80", "mi300x")))
    ranks = draw.randint(1, 16)

    def hours(config: RunConfig = config, ranks: int = ranks, gpu: object = gpu) -> float:
        made = plan(config, ranks=ranks, gpu=gpu, sizes=sizes, graded=0)  # type: ignore[arg-type]
        return made.hours[1].whole

    first = hours()
    assert hours(gpu=replace(gpu, bandwidth=1.5 * gpu.bandwidth)) < first, SEED
    assert hours(gpu=replace(gpu, flops=1.5 * gpu.flops)) < first, SEED
    assert hours(ranks=2 * ranks) < first, SEED
    longer = config.schedule.model_copy(
        update={"max_len": 2 * config.schedule.max_len, "min_len": config.schedule.max_len}
    )
    roomy = config.train.model_copy(update={"token_budget": 2**17})
    wide = config.model_copy(update={"train": roomy})
    assert hours(wide.model_copy(update={"schedule": longer})) > hours(wide), SEED
    for name in draw.sample(known_models(), 3):
        other = Sizes.of(known_config(name))
        peaks = [needed(config, other, n, 80).peak for n in range(1, 18)]
        assert peaks == sorted(peaks, reverse=True), (name, SEED)
        counts = [
            least_ranks(config, other, gpu_of("h100").with_memory(gb)) for gb in (60, 80, 141)
        ]
        numbers = [10**6 if count is None else count for count in counts]
        assert numbers == sorted(numbers, reverse=True), (name, SEED)


@pytest.mark.parametrize(
    ("recipe", "overrides", "ranks", "gpu"),
    [
        ("siri-7b", ["train.token_budget=262144"], 8, "h100"),
        ("siri-7b", ["model.gradient_checkpointing=false", "train.token_budget=17408"], 16, "h100"),
        (
            "siri-7b",
            ["rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.95"],
            16,
            "h100",
        ),
        ("siri-7b", ["rollout.engine=vllm"], 1, "h100"),
        ("siri-7b", ["rollout.engine=transformers", "rollout.batch_rows=256"], 16, "h100"),
        ("siri-7b", ["model.path=deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", *VLLM], 16, "h100"),
        ("siri-1.5b", ["rollout.engine=transformers", "rollout.batch_rows=4"], 1, "4090"),
    ],
)
def test_what_does_not_fit_says_what_to_change(
    recipe: str, overrides: list[str], ranks: int, gpu: str
) -> None:
    config = load_config(recipe, overrides)
    made = plan(config, ranks=ranks, gpu=gpu)
    assert not made.fits and made.change is not None
    assert "does NOT fit" in shown(made) and "hours: not estimated until it fits" in shown(made)
    for setting in made.change.settings:
        assert setting in shown(made)
        config = apply(config, setting)
    assert fits(config, made.sizes, made.change.ranks, gpu_of(gpu))
    # With the change named on a command line the plan has hours.
    changed = load_config(recipe, [*overrides, *made.change.settings])
    again = plan(changed, ranks=made.change.ranks, gpu=gpu)
    assert again.fits and "estimated, not measured" in shown(again)
    if made.change.ranks > ranks and not made.change.settings:
        assert made.change.ranks == made.least_ranks
        assert not fits(config, made.sizes, made.change.ranks - 1, gpu_of(gpu))


def test_what_cannot_fit_says_so() -> None:
    config = load_config(
        "siri-1.5b",
        ["model.path=deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "rollout.batch_rows=1"],
    )
    made = plan(config, ranks=4, gpu="3090")
    assert made.change is None and made.least_ranks is None
    assert "no change of a key was found" in shown(made) and "no number of ranks" in shown(made)


def test_lengths_have_the_mean_and_the_cap() -> None:
    draw = random.Random(SEED)
    for share in (0.05, 0.3, 0.5, 0.8, 0.97, 1.0, draw.uniform(0.02, 0.99)):
        found = lengths.quantiles(share, draw.choice((1, 7, 256)))
        assert sum(found) / len(found) == pytest.approx(share, abs=0.02), (share, SEED)
        assert found == sorted(found) and 0 < found[0] and found[-1] <= 1, (share, SEED)
        sample = [
            min(1.0, lengths.median_for(share) * draw.lognormvariate(0, lengths.SPREAD))
            for _ in range(4000)
        ]
        if share < 0.999:
            assert sum(sample) / 4000 == pytest.approx(share, abs=0.03), (share, SEED)


def test_mean_length_is_a_share_or_tokens() -> None:
    config = load_config("siri-1.5b")
    given = [share_of(config, text) for text in ("0.25", "25%", "4096")]
    assert given == [0.25] * 3
    for text in ("0", "-1", "nan", "x", "20000", "150%"):
        with pytest.raises(ConfigError, match="--mean-length"):
            share_of(config, text)
    short, long = (plan(config, ranks=8, share=share).hours[1].whole for share in (0.2, 0.6))
    assert short < long


ONE_SET = "eval.select=null"  # without names there is one set, and no validation set beside it


def test_an_unknown_source_is_assumed_and_said(tmp_path: Path) -> None:
    from siri_train.commands.dry_run import dry_run

    config = load_config(
        "siri-1.5b",
        ["data.eval=[{kind: file, path: mine.jsonl}]", ONE_SET, f"output={tmp_path / 'run'}"],
    )
    text = dry_run(config, ranks=8, gpu_name="h100")
    assert f"{ASSUMED} questions each in data.eval.0" in text
    assert "data.eval.0: mine.jsonl is not here; put the file there" in text
    # What is here and wrong is still refused.
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "1+1?", "answer": ""}\n')
    wrong = load_config("siri-1.5b", [f"data.eval=[{{kind: file, path: {bad}}}]", ONE_SET])
    with pytest.raises(ConfigError, match=r"data\.eval\.0: .*bad\.jsonl.*holds no answer"):
        dry_run(wrong, ranks=8, gpu_name="h100")
    far = load_config("siri-1.5b", ["model.path=Qwen/Qwen2.5-Math-1.5B"])
    with pytest.raises(ConfigError, match="the model has 4096 positions"):
        dry_run(far, ranks=8, gpu_name="h100")


def test_a_server_has_gpus_of_its_own() -> None:
    args = 'rollout.server.args=[--tensor-parallel-size, "4", --data-parallel-size, "2"]'
    made: Plan = plan(load_config("siri-7b", ["rollout.engine=vllm-server", args]), ranks=8)
    assert made.server_gpus == 8 and made.gpus == 16
    assert made.gpu_hours[1] == pytest.approx(16 * made.hours[1].whole)
    assert "a rollout server of 8 more" in shown(made)


def test_a_phase_without_dynamic_sampling_samples_less() -> None:
    """In the plan as in the run; the other phase takes what it took."""
    both = plan(load_config("siri-1.5b", ["rollout.oversample=2"]), ranks=8)
    keys = ["rollout.oversample=2", "loss.expansion.dynamic_sampling=false"]
    one = plan(load_config("siri-1.5b", keys), ranks=8)
    usual = plan(load_config("siri-1.5b"), ranks=8)
    for a, b, c in zip(*(p.hours[1].phases for p in (both, one, usual)), strict=True):
        assert b.rollout == pytest.approx(c.rollout if b.name == "expansion" else a.rollout)
        assert a.rollout > 1.5 * c.rollout


def test_cards_of_one_name_are_told_apart() -> None:
    for title, memory, name in (
        ("NVIDIA H100 80GB HBM3", 85.0, "h100"), ("NVIDIA H100 PCIe", 85.0, "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", 42.4, "a100-40"), ("NVIDIA H200", 150.7, "h200"),
    ):  # fmt: skip
        found = matching(title, memory)
        assert found is not None and found.name == name, title
    assert matching("NVIDIA A100-PCIE-40GB", 42.4) is None  # its sheet is not in the table


def test_a_server_with_an_address_is_one_engine_where_a_gpu_is_crowded() -> None:
    """So a faster GPU with more memory is never planned as the slower one."""
    hours = []
    for gpu in ("h100", "h200", "b200"):
        made = plan(load_config("siri-70b"), ranks=32, gpu=gpu)
        assert (made.server_gpus, made.engine_gpus) == (8, 8)
        assert "8 an engine" in shown(made)
        hours.append(made.hours[1].whole)
    assert hours == sorted(hours, reverse=True)
    url = ["rollout.engine=vllm-server", "rollout.server.url=http://a:1"]
    assert plan(load_config("siri-1.5b", url), ranks=8).engine_gpus == 1


def test_what_only_the_plan_reads_is_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--ranks", "8"), ("--gpu", "h100"), ("--price", "2.5")):
        assert main(["train", "siri-1.5b", flag, value]) == 1
        assert f"{flag}: got {value} without --dry-run" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "siri-1.5b", "--dry-run", "--gpu", "h100", "--rates", "nowhere"]) == 1
    assert "--rates: there is no folder nowhere" in capsys.readouterr().err
