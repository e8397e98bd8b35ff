"""A rollout engine without a model: drawn lengths, virtual time, the trainer's own scheduling.

`siri_train.rollout`'s Collector and SharedEngine call it as they call vLLM. It answers at once and
notes which responses each call was asked for; `seconds_of` then plays a rank's calls event by
event: a response ends, another takes its row, the cache is full.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.workloads.cluster_time import Clock
from siri_train import distributed
from siri_train.rollout.data_parallel import SharedEngine
from siri_train.rollout.dealing import Deal, deal, response_order, to_admit
from siri_train.rollout.engine import Completion, SamplingParams


@dataclass(frozen=True)
class Job:
    """A response to be sampled.

    Attributes:
        question: its number.
        prompt: tokens of its prompt.
        tokens: its length.
    """

    question: int
    prompt: int
    tokens: int


@dataclass
class Usage:
    """The work of a rank.

    Attributes:
        seconds: until its last response ended.
        steps: decoding steps.
        tokens: sampled.
        interrupted: how often a response lost its place because the cache was full.
    """

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    interrupted: int = 0


def seconds_of(jobs: Sequence[Job], clock: Clock, rows: int) -> Usage:
    """Play the responses of one engine, first come first served, as vLLM does.

    A waiting response starts when a row is free and the cache has room for its prompt. When the
    cache is full, the response that started last gives its place back, waits at the head of the
    queue and is read again later. A prompt is read once for all responses to a question.

    Args:
        jobs: in the order in which they are submitted.
        clock: seconds of the GPU.
        rows: responses decoded at a time (``max_num_seqs``, ``batch_rows``).

    Raises:
        ValueError: one response alone does not fit into the cache.
    """
    room = clock.cache_tokens
    for job in jobs:
        if job.prompt + job.tokens > room:
            raise ValueError(f"{job.prompt + job.tokens} tokens do not fit into a cache of {room}")
    usage, read = Usage(), set[int]()
    waiting = deque((index, 0) for index in range(len(jobs)))  # (job, tokens it has)
    running: dict[int, tuple[int, int]] = {}  # job: (step at which it began, tokens it had)
    ends: list[tuple[int, int]] = []  # (step, job)
    held = 0

    def start(index: int, had: int) -> None:
        nonlocal held
        job = jobs[index]
        if had or job.question not in read:
            usage.seconds += clock.read(job.prompt + had)
            read.add(job.question)
        running[index] = (usage.steps, had)
        heapq.heappush(ends, (usage.steps + job.tokens - had, index))
        held += job.prompt + had

    while waiting or running:
        for _ in range(to_admit(len(running), len(waiting), rows)):
            index, had = waiting[0]
            if held + len(running) + jobs[index].prompt + had + 1 > room:
                break
            waiting.popleft()
            start(index, had)
        while ends and (ends[0][1] not in running or _ends(ends[0], running, jobs)):
            heapq.heappop(ends)  # of a response that was interrupted
        until = ends[0][0] - usage.steps
        steps = min(until, (room - held) // len(running))
        usage.seconds += clock.decode(len(running), held, steps)
        usage.steps += steps
        usage.tokens += len(running) * steps
        held += len(running) * steps
        if steps < until:
            last = next(reversed(running))
            began, had = running.pop(last)
            had += usage.steps - began
            held -= jobs[last].prompt + had
            waiting.appendleft((last, had))
            usage.interrupted += 1
        while ends and ends[0][0] == usage.steps:
            _, index = heapq.heappop(ends)
            if index in running and _done(index, running, jobs, usage.steps):
                held -= jobs[index].prompt + jobs[index].tokens
                del running[index]
    return usage


def _ends(end: tuple[int, int], running: dict[int, tuple[int, int]], jobs: Sequence[Job]) -> bool:
    """Whether an end belongs to an earlier start of a response that runs again."""
    began, had = running[end[1]]
    return end[0] != began + jobs[end[1]].tokens - had


def _done(index: int, running: dict[int, tuple[int, int]], jobs: Sequence[Job], step: int) -> bool:
    began, had = running[index]
    return had + step - began == jobs[index].tokens


@dataclass
class FakeEngine:
    """Answers with responses of known lengths; the tokens mean nothing.

    Attributes:
        lengths: of every response, by question; taken in turn.
        prompts: tokens of each question's prompt.
        transformers: whether responses start in the order of the transformers engine; vLLM takes
            them in the order of the questions.
        calls: the responses of each call.
    """

    lengths: Sequence[Sequence[int]]
    prompts: Sequence[int]
    transformers: bool = False
    calls: list[list[Job]] = field(default_factory=list)
    _taken: Counter[int] = field(default_factory=Counter)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
        *,
        on_finish: Callable[[int, Completion], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[Completion]]:
        """Responses of the known lengths, as :meth:`siri_train.rollout.engine.Engine.generate`.

        Args:
            prompts: one token each, the question's number.
            params: ``max_tokens`` cuts the lengths; ``n`` of them.
            progress: not called.
            on_finish: not called: the ranks of a cluster do not know each other's groups.
            cancelled: not called.
        """
        answers: list[list[Completion]] = []
        for prompt in prompts:
            number = prompt[0]
            first = self._taken[number]
            self._taken[number] += params.n
            own = self.lengths[number][first : first + params.n]
            answers.append(
                [
                    Completion(
                        range(min(n, params.max_tokens)),  # type: ignore[arg-type]
                        [],
                        "length" if n >= params.max_tokens else "stop",
                    )
                    for n in own
                ]
            )
        if self.transformers:
            lengths = [self.prompts[prompt[0]] for prompt in prompts]
            order = response_order(lengths, params.n)
        else:
            order = [index for index in range(len(prompts)) for _ in range(params.n)]
        left = [iter(group) for group in answers]
        self.calls.append(
            [
                Job(number, self.prompts[number], len(next(left[index]).token_ids))
                for index in order
                for number in [prompts[index][0]]
            ]
        )
        return answers

    def sync(self) -> None:
        """Nothing: there are no weights."""

    def sleep(self) -> None:
        """Nothing: there is no memory."""

    def close(self) -> None:
        """Nothing to free."""


class SimulatedRanks:
    """The engines of all ranks in one process, behind the trainer's own `SharedEngine`.

    Args:
        engine: the fake one; all ranks share it, since it keeps no time.
        ranks: how many; as many shards.
        by: ``rollout.deal``.
    """

    def __init__(self, engine: FakeEngine, ranks: int, by: Deal = "questions") -> None:
        self.fake, self.ranks, self.by = engine, ranks, by
        self.shared = SharedEngine(engine, ranks, by=by)
        self.rounds: list[list[list[Job]]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        progress: Callable[[int, int], None] | None = None,
        *,
        on_finish: Callable[[int, Completion], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[list[Completion]]:
        """One round of a step; ``rounds`` notes what each rank was asked for.

        Args:
            prompts: as :meth:`FakeEngine.generate`.
            params: the same.
            progress: the same.
            on_finish: the same.
            cancelled: the same.
        """
        before = len(self.fake.calls)
        answers = self.shared.generate(prompts, params)
        made = iter(self.fake.calls[before:])
        parts = deal(len(prompts), params.n, self.ranks, self.by)
        jobs = [next(made) if part.last > part.first else [] for part in parts]
        shares = [distributed.share_of(len(jobs), r, self.ranks) for r in range(self.ranks)]
        self.rounds.append([[job for part in jobs[share] for job in part] for share in shares])
        return answers

    def sync(self) -> None:
        """Nothing: there are no weights."""

    def sleep(self) -> None:
        """Nothing: there is no memory."""

    def close(self) -> None:
        """Nothing to free."""
