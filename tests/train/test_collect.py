"""One step's groups: whole ones only, dynamic sampling, early stop, failures, bad numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from siri_kernels import group_advantages
from siri_train.config.rollout import RolloutConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.rewards import Grade
from siri_train.rollout import Completion, EngineError, SamplingParams
from siri_train.rollout.batch import RolloutBatch, from_state, to_state
from siri_train.rollout.collect import Collector, questions_per_step
from siri_train.rollout.engine import CANCELLED

N = 4


@dataclass
class Scripted:
    """An engine in which every response takes as many decoding steps as it has tokens.

    Args:
        lengths: of the responses to each question.
        rewards: of the same; a response's first token is its reward, so a grader can read it.
        failing: questions that the engine cannot answer.
        spoilt: calls (from 0) in which one log-prob is NaN.
    """

    lengths: list[list[int]]
    rewards: list[list[int]]
    failing: dict[int, str] = field(default_factory=dict)
    spoilt: set[int] = field(default_factory=set)
    asked: list[list[int]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    syncs: int = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
        *,
        on_finish: Callable[[int, Completion], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[Completion]]:
        call = len(self.asked)
        self.asked.append([prompt[0] for prompt in prompts])
        self.seeds.append(params.seed)
        groups = [[Completion([], [], "abort") for _ in range(params.n)] for _ in prompts]
        done = 0
        for now in range(1, 1 + max(map(max, self.lengths))):
            if cancelled is not None and cancelled():
                break
            for index, prompt in enumerate(prompts):
                question = prompt[0]
                for k, completion in enumerate(groups[index]):
                    length = self.lengths[question][k]
                    if question in self.failing:
                        completion.error = self.failing[question]
                        if now == 1 and on_finish is not None:
                            on_finish(index, completion)
                        continue
                    if now > length:
                        continue
                    # [reward, question, k, 0, 0, ...]: no two responses are alike
                    value = [self.rewards[question][k], 10 + question, k, 0][min(now, 4) - 1]
                    completion.token_ids.append(value)
                    completion.logprobs.append(-0.5 * k)
                    if now == length:
                        completion.finish_reason = "stop"
                        done += 1
                        if on_finish is not None:
                            on_finish(index, completion)
                        if progress is not None:
                            progress(done, len(prompts) * params.n)
        else:
            if call in self.spoilt:
                groups[-1][1].logprobs[2] = float("nan")
            return groups
        for group in groups:
            for completion in group:
                if completion.finish_reason == "abort" and completion.error is None:
                    completion.error = CANCELLED
        return groups

    def sync(self) -> None:
        self.syncs += 1

    def close(self) -> None: ...


def questions(count: int) -> list[EncodedQuestion]:
    return [EncodedQuestion(f"q{i}", (i,), "", f"question {i}") for i in range(count)]


def decode(responses: Sequence[Sequence[int]]) -> list[str]:
    return [" ".join(map(str, ids)) for ids in responses]


def grade(part: Sequence[Any], step: int, cap: int) -> list[Grade]:
    rights = [text[0] == "1" for text, _ in part]
    return [
        Grade(float(text.split()[0]), right, None, False, right)
        for (text, _), right in zip(part, rights, strict=True)
    ]


def collector(engine: Scripted, **options: Any) -> Collector:
    config = RolloutConfig(group_size=N, **options)
    return Collector(engine, config, frozenset({3}), decode, grade)


def collect(engine: Scripted, **options: Any) -> RolloutBatch:
    made = collector(engine, **options)
    asked = questions(questions_per_step(made.config))
    batch = made(7, 50, asked, 1000, cancelled=lambda: False)
    assert batch is not None
    made.grade_groups(batch.seen, batch.step, batch.cap)
    return batch


def drawn(count: int, seed: int, informative: float = 0.5) -> tuple[Any, Any]:
    draw = random.Random(seed)
    lengths = [[draw.randint(4, 30) for _ in range(N)] for _ in range(count)]
    rewards = []
    for _ in range(count):
        if draw.random() < informative:
            rewards.append([0, 1, *draw.choices((0, 1), k=N - 2)])
        else:
            rewards.append([draw.randint(0, 1)] * N)
    return lengths, rewards


def names(groups: Sequence[Any]) -> list[int]:
    for group in groups:
        assert [len(c.logprobs) for c in group.completions] == [
            len(c.token_ids) for c in group.completions
        ]
        assert [c.token_ids[2] for c in group.completions] == list(range(N))  # whole, in order
        assert [g.reward for g in group.grades] == [c.token_ids[0] for c in group.completions]
        assert group.texts == decode([c.token_ids for c in group.completions])
    return [int(group.question.id[1:]) for group in groups]


def test_without_dynamic_sampling_every_question_is_kept() -> None:
    engine = Scripted(*drawn(6, seed=0))
    shown: list[tuple[int, int]] = []
    made = collector(engine, prompts=6)
    made.progress = lambda done, total: shown.append((done, total))
    batch = made(7, 50, questions(6), 1000, cancelled=lambda: False)
    assert batch is not None and not any(group.grades for group in batch.seen)
    made.grade_groups(batch.seen, batch.step, batch.cap)
    assert engine.asked == [list(range(6))] and engine.seeds == [1000]
    assert names(batch.groups) == names(batch.seen) == list(range(6)) and not batch.alarms()
    assert shown == [(done, 6 * N) for done in range(1, 6 * N + 1)]
    counts = batch.counts()
    assert counts.pop("groups") == 6 and set(counts.values()) == {0}


def test_a_failed_prompt_costs_its_group_and_nothing_else() -> None:
    lengths, rewards = drawn(6, seed=1)
    engine = Scripted(lengths, rewards, failing={2: "too long by 3", 5: "lost"})
    batch = collect(engine, prompts=6)
    assert names(batch.groups) == [0, 1, 3, 4]
    assert batch.failures == [("q2", "too long by 3"), ("q5", "lost")]
    assert batch.counts()["groups_failed"] == 2
    (alarm,) = batch.alarms()
    assert alarm["alarm"] == "prompts-failed" and alarm["value"] == 2
    assert "q2: too long by 3" in alarm["cause"] and alarm["action"]
    # Advantages are those of the remaining groups on their own.
    got = group_advantages(batch.rewards, N).advantages
    want = [
        group_advantages(torch.tensor(rewards[q], dtype=torch.float32), N) for q in (0, 1, 3, 4)
    ]
    torch.testing.assert_close(got, torch.cat([w.advantages for w in want]))
    assert len(batch.pairs) == len(got) == 4 * N


def test_one_lost_response_costs_its_whole_group() -> None:
    class Losing(Scripted):
        def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
            groups = super().generate(*args, **kwargs)
            groups[1][2] = Completion([1, 2], [-1.0, -1.0], "abort", error="preempted")
            return groups

    batch = collect(Losing(*drawn(3, seed=2)), prompts=3)
    assert names(batch.groups) == [0, 2] and batch.failures == [("q1", "preempted")]
    assert batch.tokens_discarded == 2 + sum(drawn(3, seed=2)[0][1][k] for k in (0, 1, 3))


def test_all_prompts_failing_ends_the_run_with_the_reason() -> None:
    engine = Scripted(*drawn(2, seed=3), failing={0: "no block is free", 1: "other"})
    with pytest.raises(EngineError, match=r"step 7.*all 2 questions; q0: no block is free"):
        collect(engine, prompts=2)


def test_log_probs_that_are_not_finite_are_sampled_again_once() -> None:
    engine = Scripted(*drawn(3, seed=4), spoilt={0})
    batch = collect(engine, prompts=3)
    assert engine.syncs == 1 and engine.asked == [[0, 1, 2]] * 2 and engine.seeds == [1000] * 2
    assert batch.counts()["rollout_retries"] == 1
    assert [a["alarm"] for a in batch.alarms()] == ["non-finite-logprobs"]
    assert all(value == value for _, c in batch.pairs for value in c.logprobs)

    named = r"log-prob of token 2 of response 1 to q2 is nan"
    with pytest.raises(EngineError, match="step 7, also after the weights.*" + named):
        collect(Scripted(*drawn(3, seed=4), spoilt={0, 1}), prompts=3)
    engine = Scripted(*drawn(3, seed=4), spoilt={0})
    with pytest.raises(EngineError, match="step 7: .*" + named):  # weights are being updated
        collector(engine, prompts=3)(7, 50, questions(3), 0, cancelled=lambda: False, resync=False)
    assert engine.syncs == 0


@pytest.mark.parametrize("seed", range(40))
def test_oversampling_keeps_the_first_informative_groups_in_order(seed: int) -> None:
    """Kept groups do not depend on which finished first, nor on ending sampling early."""
    lengths, rewards = drawn(12, seed)
    failing = {q: "lost" for q in random.Random(seed).sample(range(12), seed % 4)}
    engine = Scripted(lengths, rewards, failing)
    batch = collect(engine, prompts=4, oversample=3)
    mixed = [q for q in range(12) if len(set(rewards[q])) > 1 and q not in failing]
    wanted = mixed[:4]
    if not wanted:
        assert not any(group.informative for group in batch.groups)
        return
    assert names(batch.groups) == wanted
    end = wanted[-1] if len(mixed) >= 4 else 12
    same = [q for q in range(end) if len(set(rewards[q])) == 1 and q not in failing]
    assert names(batch.dropped) == same
    assert names(batch.seen) == sorted(wanted + same)
    counts = batch.counts()
    asked = sum(counts[k] for k in ("groups", "groups_failed", "groups_dropped", "groups_surplus"))
    assert asked == 12 and engine.asked == [list(range(12))]
    assert [a["alarm"] for a in batch.alarms() if a["alarm"] != "prompts-failed"] == (
        ["few-informative-groups"] if len(mixed) < 4 else []
    )


def test_sampling_ends_as_soon_as_there_are_enough() -> None:
    """The first two of five questions are enough; the third would take a hundred steps more."""
    rewards = [[0, 1, 0, 1]] * 5
    engine = Scripted([[5] * N, [9] * N, [100] * N, [4] * N, [100] * N], rewards)
    batch = collect(engine, prompts=2, oversample=2.5)
    assert names(batch.groups) == [0, 1] and batch.surplus == 3
    assert batch.tokens_discarded == N * (9 + 4 + 9)  # both long ones were cancelled after step 9


def test_first_done_is_faster_and_favours_short_answers() -> None:
    """The bias that the documentation warns of, measured."""
    means, steps = {}, {}
    for keep in ("in_order", "first_done"):
        means[keep], steps[keep] = [], []
        for seed in range(30):
            engine = Scripted(*drawn(12, seed, informative=1.0))
            batch = collect(engine, prompts=4, oversample=3, keep=keep)
            assert len(batch.groups) == 4
            means[keep] += [len(c.token_ids) for _, c in batch.pairs]
            steps[keep].append(max(len(c.token_ids) for _, c in batch.pairs))
    average = {keep: sum(values) / len(values) for keep, values in means.items()}
    assert 16 < average["in_order"] < 18  # 17 is the mean of what was drawn
    assert average["first_done"] < 14.5
    assert sum(steps["first_done"]) < sum(steps["in_order"])


def test_rounds_ask_for_what_is_missing_and_end() -> None:
    mixed, same = [0, 1, 0, 0], [1, 1, 1, 1]
    rewards = [same, mixed, same, same, mixed, mixed, same, same, same]
    engine = Scripted([[5] * N] * 9, rewards)
    batch = collect(engine, prompts=3, max_rounds=3)
    assert engine.asked == [[0, 1, 2], [3, 4], [5]]
    assert len(set(engine.seeds)) == 3
    assert names(batch.groups) == [1, 4, 5] and names(batch.dropped) == [0, 2, 3]
    assert not batch.alarms()

    engine = Scripted([[5] * N] * 9, [same, mixed] + [same] * 7)
    batch = collect(engine, prompts=3, max_rounds=3)
    assert engine.asked == [[0, 1, 2], [3, 4], [5, 6]]
    assert names(batch.groups) == [1] and names(batch.dropped) == [0, 2, 3, 4, 5, 6]
    assert batch.alarms()[0]["value"] == 1

    engine = Scripted([[5] * N] * 9, [same] * 9)
    batch = collect(engine, prompts=3, max_rounds=3)
    assert names(batch.groups) == [0, 1, 2] and len(batch.dropped) == 6
    assert batch.alarms()[0]["value"] == 0


def test_cancelled_from_outside_gives_no_batch() -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 6

    engine = Scripted(*drawn(4, seed=5))
    made = collector(engine, prompts=4)
    assert made(7, 50, questions(4), 0, cancelled=cancelled) is None


def test_a_batch_survives_being_saved(tmp_path: Any) -> None:
    lengths, rewards = drawn(12, seed=8)
    batch = collect(Scripted(lengths, rewards, failing={1: "lost"}), prompts=4, oversample=3)
    for _, completion in batch.pairs[::2]:
        completion.entropies = [0.1] * len(completion.token_ids)  # not a float32
        completion.logprobs[0] = float(torch.tensor(-1 / 3))  # one
    torch.save(to_state(batch), tmp_path / "batch.pt")
    state = torch.load(tmp_path / "batch.pt", weights_only=True)
    assert from_state(state, questions(12), decode) == batch
