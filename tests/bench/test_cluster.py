"""The simulated cluster against closed forms and the real engine; the form of its result."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.results_io import RESULTS
from bench.workloads.cluster_engine import Job, seconds_of
from bench.workloads.cluster_lengths import (
    POINTS,
    Lengths,
    censored_mean,
    fit_two_caps,
    median_for,
    published,
    recorded,
)
from bench.workloads.cluster_page import find, main_table, page
from bench.workloads.cluster_step import POLICIES, dealt, draw_step, simulate
from bench.workloads.cluster_time import H100, QWEN_1_5B, Clock
from siri_train.config.rollout import RolloutConfig
from siri_train.rollout import SamplingParams, TransformersEngine

SMALL = RolloutConfig(engine="vllm", prompts=16, group_size=8)


class Unit(Clock):
    """A second a decoding step, however many rows; prompts cost nothing."""

    def decode(self, rows: int, held: float, steps: int) -> float:
        return float(steps)

    def read(self, tokens: int) -> float:
        return 0.0


def jobs(lengths: list[int], prompt: int = 4) -> list[Job]:
    return [Job(index, prompt, n) for index, n in enumerate(lengths)]


def brute(lengths: list[int], clock: Clock, rows: int, prompt: int) -> float:
    """One decoding step at a time, without events; the cache is never full."""
    waiting, running, seconds = list(lengths), [], 0.0
    while waiting or running:
        while waiting and len(running) < rows:
            running.append([waiting.pop(0), 0])
            seconds += clock.read(prompt)
        seconds += clock.decode(len(running), sum(prompt + done for _, done in running), 1)
        running = [[n, done + 1] for n, done in running if done + 1 < n]
    return seconds


def test_events_equal_a_loop_over_steps() -> None:
    seed = time.time_ns()
    rng = np.random.default_rng(seed)
    for _ in range(30):
        lengths = [int(n) for n in rng.integers(1, 60, rng.integers(1, 40))]
        rows = int(rng.integers(1, 12))
        used = seconds_of(jobs(lengths), Clock(), rows)
        assert used.tokens == sum(lengths), seed
        assert used.seconds == pytest.approx(brute(lengths, Clock(), rows, 4), rel=1e-9), seed


def test_one_row_and_enough_rows() -> None:
    assert seconds_of(jobs([5, 2, 9]), Unit(), 1).seconds == 16
    assert seconds_of(jobs([5, 2, 9]), Unit(), 3).seconds == 9
    assert seconds_of([], Unit(), 3).seconds == 0


def test_longest_first_keeps_grahams_bound_and_order_matters_only_with_few_rows() -> None:
    seed = time.time_ns()
    rng = np.random.default_rng(seed)
    for _ in range(50):
        lengths = [int(n) for n in rng.integers(1, 90, 40)]
        rows = int(rng.integers(1, 9))
        least = max(max(lengths), sum(lengths) / rows)
        first = seconds_of(jobs(sorted(lengths, reverse=True)), Unit(), rows).seconds
        assert least <= first <= (4 / 3 - 1 / (3 * rows)) * least + max(lengths) / 3, seed
        assert seconds_of(jobs(lengths), Unit(), 40).seconds == max(lengths), seed


def test_a_full_cache_interrupts_and_loses_no_token() -> None:
    small = replace(H100, memory=QWEN_1_5B.cache * 100 / 0.6)
    clock = Clock(gpu=small)
    assert clock.cache_tokens in (99, 100)
    lengths = [60, 50, 40, 30]
    used = seconds_of(jobs(lengths), clock, 4)
    assert used.interrupted > 0 and used.tokens == sum(lengths)
    assert used.seconds > seconds_of(jobs(lengths), Clock(), 4).seconds
    with pytest.raises(ValueError, match="204 tokens do not fit into a cache of"):
        seconds_of(jobs([200]), clock, 4)


def test_steps_are_those_of_the_real_transformers_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    engine = TransformersEngine(Qwen2ForCausalLM(config), 0, 5)
    forwards = []
    known = engine.model.forward

    def counted(*args: object, **kwargs: object) -> object:
        forwards.append(1)
        return known(*args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", counted)
    params = SamplingParams(max_tokens=30, n=14, stop_token_ids=frozenset({1, 2}), seed=3)
    (group,) = engine.generate([[5, 6, 7]], params)
    lengths = [len(c.token_ids) for c in group]
    assert len(set(lengths)) > 3
    used = seconds_of([Job(0, 3, n) for n in lengths], Unit(), 5)
    # A row that is filled again draws its first token in a step of its own, from the prompt's
    # logits, so the engine's forward passes are never more than the simulated steps and the read.
    assert max(lengths) <= len(forwards) <= used.steps + 1


def test_equal_lengths_leave_nobody_waiting_and_tokens_are_kept() -> None:
    same = Lengths("same", tuple((lambda z: np.full(z.shape, 500.0)) for _ in POINTS), 0.5, 0.5)
    draw = draw_step(same, 0, SMALL, 0)
    draw.prompts = [100] * 16
    for policy in POLICIES:
        step = simulate(draw, policy, SMALL, Clock(), 4)
        assert step.tokens == 16 * 8 * 500
        assert step.waiting == pytest.approx(0, abs=0.02), policy


def test_more_knowledge_waits_less() -> None:
    seed = time.time_ns() % 10**6
    model, _ = published()
    known, plain, divided = [], [], []
    for number in range(4):
        draw = draw_step(model, 2, SMALL, seed + number)
        steps = {p.name: simulate(draw, p, SMALL, Clock(), 8) for p in POLICIES}
        assert len({step.tokens for step in steps.values()}) == 1
        plain.append(steps["in order"].rollout)
        divided.append(steps["groups divided over ranks"].rollout)
        known.append(steps["lengths known"].rollout)
    assert sum(known) < sum(divided) and sum(known) < sum(plain), seed


def test_balanced_blocks_hold_as_many_questions() -> None:
    order = dealt([9, 1, 1, 1, 8, 7, 2, 3], [0, 4, 8], True)
    assert sorted(order) == list(range(8))
    costs = [9, 1, 1, 1, 8, 7, 2, 3]
    assert [sum(costs[i] for i in order[a : a + 4]) for a in (0, 4)] == [15, 17]
    assert order[0] == 0 and order[4] == 4
    assert dealt([1, 2], [0, 1, 2], False) == [1, 0]


def test_the_fit_gives_back_the_published_means() -> None:
    median, sigma = fit_two_caps((16384, 12333), (32768, 16000))
    assert censored_mean(median, sigma, 16384) == pytest.approx(12333, rel=1e-4)
    assert censored_mean(median, sigma, 32768) == pytest.approx(16000, rel=1e-3)
    with pytest.raises(ValueError, match="between 1 and 100, got 200"):
        median_for(200, 1, 100)
    model, facts = published()
    lengths, _, _ = model.draw(0, 4000, 16, np.random.default_rng(0))
    wanted = censored_mean(facts["medians"][0], sigma, 16384)
    assert lengths.mean() == pytest.approx(wanted, rel=0.03)


def test_recorded_lengths_keep_the_share_that_was_cut() -> None:
    model, facts = recorded()
    assert facts["cycle"] == 120 and 0 < facts["within"] < 1 and facts["epochs"] <= 1
    for point, (_, _, cap) in enumerate(POINTS):
        lengths, _, _ = model.draw(point, 2000, 16, np.random.default_rng(0))
        assert lengths.max() <= cap
        assert (lengths == cap).mean() == pytest.approx(facts["truncated"][point], abs=0.03)


@pytest.fixture(scope="module")
def result() -> dict:
    return json.loads((RESULTS / "simulated/cluster.json").read_text())


def test_the_results_form(result: dict) -> None:
    assert result["simulated"] is True and result["commit"] and result["versions"]["numpy"]
    assert {row["ranks"] for row in result["main"]} == {8, 16, 64}
    for row in result["main"]:
        for key in ("waiting", "gain", "step_s"):
            figure = row[key]
            assert figure["low"] <= figure["mean"] <= figure["high"], row
        assert 0 <= row["waiting"]["mean"] < 1
    assert (RESULTS / "simulated/cluster.md").read_text() == page(result)
    assert (RESULTS / "simulated/cluster.svg").read_text().startswith("<?xml")


def test_the_documents_quote_the_result(result: dict) -> None:
    scale = (Path(__file__).parents[2] / "docs/scale.md").read_text()
    for line in main_table(result, "published", ["start", "compressed end", "expanded end"]):
        assert line in scale
    known = find(result["main"], lengths="published", ranks=8, point="start", policy="in order")
    assert known["gain"]["mean"] == 0
    with pytest.raises(LookupError, match="0 rows"):
        find(result["main"], ranks=7)
