"""One simulated step: sampled through the real Collector, packed by the real `plan`, timed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bench.workloads.cluster_engine import FakeEngine, Job, SimulatedRanks, seconds_of
from bench.workloads.cluster_lengths import NORMAL, POINTS, Lengths
from bench.workloads.cluster_time import Clock
from siri_train.config.rollout import RolloutConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.model.packing import plan
from siri_train.rewards import Grade
from siri_train.rollout.batch import RolloutBatch
from siri_train.rollout.collect import Collector, questions_per_step
from siri_train.rollout.dealing import Deal, deal

TOKEN_BUDGET = 32768
MINI_BATCHES = 2


@dataclass
class Draw:
    """The questions of one step and all that chance decides about them.

    Attributes:
        point: of the cycle, an index into `POINTS`.
        lengths: [questions, group] tokens.
        earlier: [questions, group] tokens of half a cycle before.
        right: [questions, group] whether the response would be right if it is not cut.
        prompts: tokens of each prompt.
        updates: what `simulate` computed of updates, by ranks. The same responses are trained on
            however they were dealt, so the packing of the first policy stands for all.
    """

    point: int
    lengths: np.ndarray
    earlier: np.ndarray
    right: np.ndarray
    prompts: list[int]
    updates: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def cap(self) -> int:
        """The response length cap in tokens."""
        return POINTS[self.point][2]

    @cached_property
    def expected(self) -> list[float]:
        """A question's cost as its responses of the earlier epoch foretell it."""
        return [float(np.mean([_cost(n) for n in row])) for row in self.earlier.tolist()]


def draw_step(model: Lengths, point: int, config: RolloutConfig, seed: int) -> Draw:
    """Draw a step's questions: lengths, and whether responses are right.

    Long questions are answered less often: the probability of a right answer falls with the
    question's score, so that some groups are all right and some all wrong. The numbers of this
    relation are assumed.

    Args:
        model: of the lengths.
        point: an index into `POINTS`.
        config: the questions and responses of a step.
        seed: of everything drawn.
    """
    rng = np.random.default_rng([seed, point])
    questions = questions_per_step(config)
    lengths, earlier, score = model.draw(point, questions, config.group_size, rng)
    chance = np.array([NORMAL.cdf(0.3 - s) for s in score])
    right = rng.random(lengths.shape) < chance[:, None]
    prompts = np.clip(np.rint(120 * np.exp(0.5 * rng.standard_normal(questions))), 20, 1024)
    return Draw(point, lengths, earlier, right, [int(n) for n in prompts])


def _cost(tokens: float) -> float:
    """A response's use of an engine: its steps, and the keys and values it reads."""
    return tokens + tokens**2 / 8192


def dealt(costs: Sequence[float], bounds: Sequence[int], longest_first: bool) -> list[int]:
    """Questions in an order whose contiguous blocks cost nearly the same.

    The costliest goes first, to the cheapest block that has room (longest processing time first).

    Args:
        costs: of each question.
        bounds: of the blocks, from 0 to the number of questions.
        longest_first: whether a block's costliest question is first in it; else they keep theirs.
    """
    blocks: list[list[int]] = [[] for _ in bounds[1:]]
    spent = [0.0] * len(blocks)
    room = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        free = [b for b in range(len(blocks)) if len(blocks[b]) < room[b]]
        best = min(free, key=spent.__getitem__)
        blocks[best].append(index)
        spent[best] += costs[index]
    return [i for block in blocks for i in (block if longest_first else sorted(block))]


@dataclass(frozen=True)
class Policy:
    """How responses are dealt and ordered.

    Attributes:
        name: for the page.
        by: ``rollout.deal``.
        balanced: questions are put in an order that balances the blocks by expected cost.
        longest_first: the costliest question of a block is submitted first.
        perfect: every response's own length is known, and each may go to any rank.
    """

    name: str
    by: Deal = "questions"
    balanced: bool = False
    longest_first: bool = False
    perfect: bool = False


POLICIES = (
    Policy("in order"),
    Policy("longest first in a rank", longest_first=True),
    Policy("dealt by expected length", balanced=True),
    Policy("dealt by expected length, longest first", balanced=True, longest_first=True),
    Policy("groups divided over ranks", by="responses"),
    Policy("groups divided, longest first", by="responses", balanced=True, longest_first=True),
    Policy("lengths known", perfect=True),
)


@dataclass
class Step:
    """Times and shares of a simulated step.

    Attributes:
        rollout: seconds until the slowest rank has its last response, over all rounds.
        waiting: share of the ranks' rollout time in which they wait for the slowest.
        train: seconds of the update.
        train_waiting: the same share of the update.
        tokens: sampled.
        interrupted: responses that lost their place in a full cache.
        groups: that have an informative reward.
    """

    rollout: float
    waiting: float
    train: float
    train_waiting: float
    tokens: int
    interrupted: int
    groups: int


def simulate(
    draw: Draw,
    policy: Policy,
    config: RolloutConfig,
    clock: Clock,
    ranks: int,
    *,
    training_ranks: int | None = None,
) -> Step:
    """Run a step on simulated ranks.

    Args:
        draw: its questions.
        policy: how they are dealt.
        config: of the Collector; ``vllm.max_num_seqs`` or ``batch_rows`` limits the rows.
        clock: seconds.
        ranks: that sample.
        training_ranks: that train; None: the same.
    """
    engine = FakeEngine(draw.lengths.tolist(), draw.prompts, config.engine == "transformers")
    cluster = SimulatedRanks(engine, ranks, policy.by)
    order = _order(draw, policy, config, ranks)
    questions = [EncodedQuestion(str(i), (i,), "", "") for i in order]
    collector = Collector(
        cluster, config, frozenset(), lambda ids: [""] * len(ids), _Grader(draw).grade
    )
    batch = collector(0, draw.cap, questions, 0, cancelled=lambda: False)
    assert batch is not None
    collector.grade_groups(batch.seen, 0, draw.cap)
    rows = config.batch_rows if engine.transformers else config.vllm.max_num_seqs
    rollout = busy = 0.0
    tokens = interrupted = 0
    for jobs in cluster.rounds:
        if policy.perfect:
            jobs = _perfect([job for own in jobs for job in own], ranks)
        used = [seconds_of(own, clock, rows) for own in jobs]
        slowest = max(u.seconds for u in used)
        rollout += slowest
        busy += sum(u.seconds for u in used)
        tokens += sum(u.tokens for u in used)
        interrupted += sum(u.interrupted for u in used)
    trainers = training_ranks or ranks
    if trainers not in draw.updates:
        draw.updates[trainers] = _train(batch, draw, clock, trainers)
    train, waits = draw.updates[trainers]
    informative = sum(group.informative for group in batch.groups)
    waiting = 1 - busy / (rollout * ranks)
    return Step(rollout, waiting, train, waits, tokens, interrupted, informative)


def _order(draw: Draw, policy: Policy, config: RolloutConfig, ranks: int) -> list[int]:
    count = len(draw.prompts)
    asked = min(count, config.prompts)
    parts = deal(asked, config.group_size, ranks, policy.by)
    bounds = sorted({0, *(part.last for part in parts)})
    costs = draw.expected[:asked]
    if policy.balanced:
        order = dealt(costs, bounds, policy.longest_first)
    else:
        order = list(range(asked))
        if policy.longest_first:
            for a, b in zip(bounds, bounds[1:], strict=False):
                order[a:b] = sorted(order[a:b], key=lambda i: (-costs[i], i))
    return [*order, *range(asked, count)]


def _perfect(jobs: Sequence[Job], ranks: int) -> list[list[Job]]:
    """Longest processing time first over single responses: an estimate of the best there is."""
    loads: list[list[Job]] = [[] for _ in range(ranks)]
    spent = [0.0] * ranks
    for job in sorted(jobs, key=lambda job: -job.tokens):
        least = min(range(ranks), key=lambda r: (spent[r], r))
        loads[least].append(job)
        spent[least] += _cost(job.tokens)
    return loads


class _Grader:
    """Grades the responses of a draw, each of a question in turn."""

    def __init__(self, draw: Draw) -> None:
        self.right = [iter(row) for row in draw.right.tolist()]

    def grade(self, responses: Sequence[Any], step: int, cap: int) -> list[Grade]:
        grades = []
        for _, (question, completion) in responses:
            right = next(self.right[question.prompt_ids[0]]) and not completion.truncated
            grades.append(Grade(float(right), right, None, completion.truncated, right))
        return grades


def _train(batch: RolloutBatch, draw: Draw, clock: Clock, ranks: int) -> tuple[float, float]:
    """Seconds of the update and the share of it in which ranks wait, by the trainer's packing."""
    samples = [
        draw.prompts[group.question.prompt_ids[0]] + len(c.token_ids) if group.informative else 0
        for group in batch.groups
        for c in group.completions
    ]
    random.Random(0).shuffle(samples)
    total = busy = 0.0
    bounds = [len(samples) * number // MINI_BATCHES for number in range(MINI_BATCHES + 1)]
    for first, last in itertools.pairwise(bounds):
        lengths = [n for n in samples[first:last] if n]  # groups without a signal have no gradient
        for shares in plan(lengths, TOKEN_BUDGET, ranks=ranks):
            # A rank without a sequence computes the shortest one again.
            seconds = [clock.train([lengths[i] for i in rows] or [min(lengths)]) for rows in shares]
            total += max(seconds)
            busy += sum(seconds)
    return total, 1 - busy / (total * ranks) if total else 0.0
