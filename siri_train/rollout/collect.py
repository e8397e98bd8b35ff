"""The responses of one step: sampled, graded, and picked as whole groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from siri_train import distributed
from siri_train.config.rollout import RolloutConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.rewards import Grade
from siri_train.rollout.batch import Group, RolloutBatch
from siri_train.rollout.engine import (
    Completion,
    Engine,
    EngineError,
    NonFiniteLogprobs,
    SamplingParams,
)

# Between the seeds of two rounds of a step; another constant than between two shards.
_APART = 0xC2B2_AE35

_NO_REASON = "the engine gave no reason"

Responses = Sequence[tuple[str, tuple[EncodedQuestion, Completion]]]
"""(text, (question, response)) of whole groups."""

Grader = Callable[[Responses, int, int], list[Grade]]


def questions_per_step(rollout: RolloutConfig) -> int:
    """The most questions that the rounds of a step can ask; as many are reserved for each step."""
    return rollout.max_rounds * _first_round(rollout, rollout.prompts)


def _first_round(rollout: RolloutConfig, missing: int) -> int:
    return math.ceil(rollout.oversample * missing)


@dataclass
class Collector:
    """Samples a step's responses; under dynamic sampling, which needs rewards, grades them too.

    Args:
        engine: samples the responses.
        config: the recipe's ``rollout`` section.
        stop_ids: the end-of-sequence set.
        decode: turns token ids of responses into texts.
        grade: called with (responses, step, cap); gives a grade for each response.
        progress: called with (responses done, all) of the running round.
    """

    engine: Engine
    config: RolloutConfig
    stop_ids: frozenset[int]
    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    grade: Grader
    progress: Callable[[int, int], None] | None = None

    def __call__(
        self,
        step: int,
        cap: int,
        questions: Sequence[EncodedQuestion],
        seed: int,
        *,
        cancelled: Callable[[], bool],
        resync: bool = True,
        dynamic: bool = True,
    ) -> RolloutBatch | None:
        """Sample and grade the batch of one step.

        Without dynamic sampling (``oversample`` 1 and one round) every question is asked once and
        every whole group is kept. With it each round asks ``oversample`` times as many questions
        as groups are missing, and groups whose rewards are all equal are dropped.

        Args:
            step: the step that the batch belongs to.
            cap: its response length cap in tokens.
            questions: :func:`questions_per_step` of them.
            seed: of the step.
            cancelled: called between decoding steps; once true, sampling ends.
            resync: whether the weights may be sent to the engine once more when its log-probs are
                not finite.
            dynamic: False: this step is sampled as if the recipe had no dynamic sampling, from the
                first of its questions.

        Returns:
            The batch; None where ``cancelled`` became true on any rank.

        Raises:
            EngineError: the engine failed, or every question failed.
            NonFiniteLogprobs: log-probs are not finite; with ``resync`` also the second time.
        """
        rollout = self.config if dynamic else self.config.plain
        batch = RolloutBatch(step, cap, wanted=rollout.prompts, dynamic=rollout.dynamic)
        waiting = list(enumerate(questions))
        for number in range(rollout.max_rounds):
            missing = rollout.prompts - len(batch.groups)
            asked = waiting[: _first_round(rollout, missing)]
            del waiting[: len(asked)]
            params = SamplingParams(
                max_tokens=cap,
                n=rollout.group_size,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                top_k=rollout.top_k,
                stop_token_ids=self.stop_ids,
                seed=seed + number * _APART,
            )
            found = self._sample(asked, params, batch, missing, cancelled, resync, rollout)
            if found is None:
                return None
            found.settle(batch, missing)
            if len(batch.groups) == rollout.prompts:
                break
        if not batch.seen:
            question, reason = batch.failures[0]
            raise EngineError(
                f"step {step}: the engine failed on all {len(batch.failures)} questions; "
                f"{question}: {reason}. Nothing of this step has been trained on"
            )
        if not batch.groups:  # no group is informative: keep those that plain sampling would keep
            batch.groups = batch.dropped[: rollout.prompts]
            del batch.dropped[: rollout.prompts]
        return batch

    def grade_groups(self, groups: Sequence[Group], step: int, cap: int) -> None:
        """Decode and grade the groups that have no grades yet; the ranks share the work.

        Args:
            groups: the same on every rank.
            step: the 0-based step.
            cap: the longest possible response, in tokens.
        """
        new = [group for group in groups if not group.grades]
        if not new:
            return
        pairs = [(group.question, c) for group in new for c in group.completions]
        texts = self.decode([c.token_ids for _, c in pairs])
        n = self.config.group_size
        responses = list(zip(texts, pairs, strict=True))
        whole = [responses[i : i + n] for i in range(0, len(responses), n)]
        grades = distributed.spread(lambda own: self.grade([*chain(*own)], step, cap), whole)
        for number, group in enumerate(new):
            own = slice(number * n, (number + 1) * n)
            group.texts, group.grades = texts[own], grades[own]

    def _sample(
        self,
        asked: list[tuple[int, EncodedQuestion]],
        params: SamplingParams,
        batch: RolloutBatch,
        missing: int,
        cancelled: Callable[[], bool],
        resync: bool,
        rollout: RolloutConfig,
    ) -> _Round | None:
        """One round, repeated once where log-probs are not finite; None where cancelled."""
        while True:
            found = _Round(self, rollout, asked, batch.step, batch.cap, missing)
            started = time.perf_counter()
            try:
                answers = self.engine.generate(
                    [question.prompt_ids for _, question in asked],
                    params,
                    self.progress,
                    on_finish=found.on_finish if found.early else None,
                    cancelled=lambda found=found: found.enough or cancelled(),  # type: ignore[misc]
                )
                problem = _not_finite(asked, answers)
            except NonFiniteLogprobs as error:  # on every rank
                answers, problem = [], error
            batch.seconds += time.perf_counter() - started
            if any(distributed.gather(bool(cancelled()))):
                return None
            if problem is None:
                found.complete(answers)
                return found
            if batch.retries or not resync:
                again = ", also after the weights were handed over anew" if resync else ""
                raise NonFiniteLogprobs(f"step {batch.step}{again}: {problem}") from problem
            batch.retries += 1
            self.engine.sync()


def _not_finite(
    asked: Sequence[tuple[int, EncodedQuestion]], answers: Sequence[Sequence[Completion]]
) -> NonFiniteLogprobs | None:
    for (_, question), group in zip(asked, answers, strict=True):
        for k, completion in enumerate(group):
            if math.isfinite(sum(completion.logprobs)):  # at the speed of C; these are many
                continue
            for position, value in enumerate(completion.logprobs):
                if not math.isfinite(value):
                    return NonFiniteLogprobs(
                        f"the sampler's log-prob of token {position} of response {k} to "
                        f"{question.id} is {value}. Nothing of this step has been trained on; "
                        "check the engine's dtype and its weight sync, and alarms.jsonl for a "
                        "gradient that was not finite before"
                    )
    return None


@dataclass
class _Round:
    """The groups of one round as they become whole, and whether there are enough.

    ``rollout.keep: in_order`` keeps the first informative groups in the order drawn. The batch then
    does not depend on the speed of each, and sampling waits for every group before the last one
    that is kept. ``first_done`` keeps the first to finish.
    """

    collector: Collector
    rollout: RolloutConfig
    asked: list[tuple[int, EncodedQuestion]]
    step: int
    cap: int
    missing: int
    parts: dict[int, list[Completion]] = field(default_factory=dict)
    whole: dict[int, Group] = field(default_factory=dict)  # by index in asked, as they finish
    failed: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    enough: bool = False

    @property
    def early(self) -> bool:
        """Whether sampling may end before all responses are done.

        With several ranks it may not: each knows its own part only, and groups are picked
        afterwards.
        """
        return self.rollout.oversample > 1 and distributed.world_size() == 1

    @property
    def in_order(self) -> bool:
        return self.rollout.keep == "in_order"

    def on_finish(self, index: int, completion: Completion) -> None:
        """Add a response that is done; the last one of a group makes the group whole."""
        part = self.parts.setdefault(index, [])
        part.append(completion)
        if completion.finish_reason == "abort":
            self.failed[index] = completion.error or _NO_REASON
        elif index not in self.failed and len(part) == self.rollout.group_size:
            self.whole[index] = self._graded([Group(*self.asked[index], part)])[0]
        else:
            return
        self.enough = len(self._kept()[0]) >= self.missing

    def complete(self, answers: Sequence[Sequence[Completion]]) -> None:
        """Add everything that the engine has returned."""
        new = []
        for index, group in enumerate(answers):
            lost = [c for c in group if c.finish_reason == "abort"]
            real = [c for c in lost if not (self.enough and c.cancelled)]
            self.tokens[index] = sum(len(c.token_ids) for c in group)
            if real:
                self.failed[index] = real[0].error or _NO_REASON
            elif not lost and index in self.whole:
                self.whole[index] = self._in_engines_order(self.whole[index], group)
            elif not lost:
                new.append(index)
        groups = [Group(*self.asked[index], list(answers[index])) for index in new]
        if self.rollout.dynamic:  # the rewards decide which groups are kept
            self._graded(groups)
        self.whole |= dict(zip(new, groups, strict=True))

    def _in_engines_order(self, group: Group, answers: Sequence[Completion]) -> Group:
        """The group in the engine's order, which decides the mini-batches.

        It was graded in the order in which its responses finished.
        """
        known = {
            tuple(c.token_ids): (text, grade)
            for c, text, grade in zip(group.completions, group.texts, group.grades, strict=True)
        }
        found = [known[tuple(c.token_ids)] for c in answers]
        texts, grades = [text for text, _ in found], [grade for _, grade in found]
        return Group(group.position, group.question, list(answers), texts, grades)

    def _graded(self, groups: list[Group]) -> list[Group]:
        self.collector.grade_groups(groups, self.step, self.cap)
        return groups

    def _kept(self) -> tuple[list[int], list[int]]:
        """Indices of the groups to train on and of those to drop, as far as is known by now."""
        dynamic = self.rollout.dynamic
        kept: list[int] = []
        dropped: list[int] = []
        order = range(len(self.asked)) if self.in_order else list(self.whole)
        for index in order:
            if len(kept) == self.missing:
                break
            if index in self.failed:
                continue
            if index not in self.whole:
                break
            informative = self.whole[index].informative or not dynamic
            (kept if informative else dropped).append(index)
        return kept, dropped

    def settle(self, batch: RolloutBatch, missing: int) -> None:
        """Add the round's groups to the batch, as trained on, dropped, failed or surplus."""
        kept, dropped = self._kept()
        batch.groups += [self.whole[index] for index in sorted(kept)]
        batch.dropped += [self.whole[index] for index in sorted(dropped)]
        batch.failures += [
            (self.asked[index][1].id, reason) for index, reason in sorted(self.failed.items())
        ]
        used = {*kept, *dropped}
        batch.surplus += sum(
            index not in used and index not in self.failed for index in range(len(self.asked))
        )
        batch.tokens_discarded += sum(n for index, n in self.tokens.items() if index not in used)
