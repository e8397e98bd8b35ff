"""Evaluation on held-out questions: accuracy at every budget from one generation pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from siri_train.config.run import RunConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.model.policy import Policy
from siri_train.model.think_marks import thinking
from siri_train.monitor.question_records import QuestionRecord, fingerprint
from siri_train.monitor.token_groups import TokenGroups
from siri_train.rewards import Grade, Response, Verifier, grade_responses
from siri_train.rollout import Completion, Engine, SamplingParams
from siri_train.trainer.eval_figures import Graded, figures


class Evaluated(NamedTuple):
    """The result of an evaluation.

    Args:
        row: a record of ``eval.jsonl`` without step and name. With named sets the figures at its
            top are those of the set that selects (``eval.select``, named in ``set``), and ``sets``
            holds those of every set by name.
        records: the results question by question, a record a set, without a step.
    """

    row: dict[str, Any]
    records: list[QuestionRecord]


@dataclass(frozen=True)
class Evaluation:
    """Grades responses to every held-out question; the seed never changes.

    A question has ``eval.samples`` responses, or those that its set asks for
    (``data.eval.N.samples``). All sets are sampled in one call: where they differ, a prompt is put
    several times with as many responses as divide all numbers.

    Args:
        config: the recipe; ``data.eval``, ``eval``, its budgets, ``reward.think`` and ``seed`` are
            used.
        questions: held-out questions.
        engine: samples the responses.
        policy: whose end-of-sequence set and tokenizer are used.
        verifier: as in training.
        words: the groups of words that are counted.
    """

    config: RunConfig
    questions: Sequence[EncodedQuestion]
    engine: Engine
    policy: Policy
    verifier: Verifier
    words: TokenGroups

    def __call__(
        self,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Evaluated | None:
        """Sample, and grade at every budget.

        Responses are generated once, at the largest budget. Those that are longer than a smaller
        budget are truncated there and graded as training grades a truncated response
        (``reward.truncated``), so accuracy at a budget is what a pass at it would have given.

        Args:
            progress: called with (responses done, all).
            cancelled: called between decoding steps; once true, the evaluation is given up.

        Returns:
            None where ``cancelled`` became true on any rank before all was sampled. Else the row of
            ``eval.jsonl`` (see :func:`siri_train.trainer.eval_figures.figures`) and the records of
            ``eval_questions.jsonl``.

        Raises:
            EngineError: the engine failed.
        """
        started = time.perf_counter()
        budgets = self.config.budgets
        samples = [self.config.samples_of(question.set) for question in self.questions]
        each = math.gcd(*samples)
        owners = [place for place, n in enumerate(samples) for _ in range(n)]
        groups = self.engine.generate(
            [self.questions[place].prompt_ids for place in owners[::each]],
            SamplingParams(
                max_tokens=budgets[-1],
                n=each,
                temperature=self.config.eval.temperature,
                top_p=self.config.eval.top_p,
                stop_token_ids=self.policy.eos_ids,
                seed=self.config.seed + 7,
            ),
            progress,
            cancelled=cancelled,
        )
        completions = [completion for group in groups for completion in group]
        # Every rank has all of them, so all ranks give up together.
        if any(completion.cancelled for completion in completions):
            return None
        texts = self.policy.decode([c.token_ids for c in completions])
        grades = self._grades(completions, texts, owners)
        places: dict[str, list[int]] = {}
        for place, question in enumerate(self.questions):
            places.setdefault(question.set, []).append(place)
        of = {}
        for name in places:
            own = [i for i, place in enumerate(owners) if self.questions[place].set == name]
            mine = {budget: [at[i] for i in own] for budget, at in grades.items()}
            of[name] = self._graded(
                [completions[i] for i in own], mine, self.config.samples_of(name)
            )
        found = {name: figures(part, self.words) for name, part in of.items()}
        selecting = self.config.eval.select or next(iter(found))
        cost = {
            "seconds": time.perf_counter() - started,
            "tokens_sampled": sum(len(completion.token_ids) for completion in completions),
        }
        row: dict[str, Any] = {"budgets": list(budgets), **cost, **found[selecting]}
        if "" not in found:
            row |= {"set": selecting, "sets": found}
        return Evaluated(row, [self._record(name, places[name], of[name]) for name in of])

    def _graded(
        self, completions: Sequence[Completion], at: dict[int, list[Grade]], samples: int
    ) -> Graded:
        shape = len(completions) // samples, samples
        grades = list(at.values())
        return Graded(
            budgets=list(at),
            right=np.reshape([[g.right is True for g in each] for each in grades], (-1, *shape)),
            correct=np.reshape([[g.correct for g in each] for each in grades], (-1, *shape)),
            truncated=np.reshape([[g.truncated for g in each] for each in grades], (-1, *shape)),
            unjudged=np.reshape([g.right is None for g in grades[-1]], shape),
            lengths=np.reshape([len(c.token_ids) for c in completions], shape).astype(np.int64),
            words=self.words.counts([c.token_ids for c in completions]),
        )

    def _record(self, name: str, places: Sequence[int], graded: Graded) -> QuestionRecord:
        asked = [self.questions[place] for place in places]
        means = graded.lengths.mean(axis=1)
        return QuestionRecord(
            step=None,
            set=name or None,
            budgets=tuple(graded.budgets),
            samples=graded.lengths.shape[1],
            ids=tuple(question.id for question in asked),
            fingerprint=fingerprint([(question.prompt, question.answer) for question in asked]),
            right=tuple(tuple(counts) for counts in graded.right.sum(axis=2).tolist()),
            tokens=tuple(round(value, 3) for value in means.tolist()),
        )

    def _grades(
        self, completions: Sequence[Completion], texts: Sequence[str], owners: Sequence[int]
    ) -> dict[int, list[Grade]]:
        """The grades at each budget, by response; every text is decoded and graded once.

        ``owners`` are the places of the questions that were responded to.
        """
        reward = self.config.reward
        golds = [self.questions[place].answer for place in owners]
        opened = thinking(
            self.policy.tokenizer, [self.questions[place].prompt_ids for place in owners]
        )
        responses = [
            Response(text, completion.finish_reason, inside)
            for text, completion, inside in zip(texts, completions, opened, strict=True)
        ]
        asked = list(golds)
        places: dict[int, dict[int, int]] = {}
        for budget in self.config.budgets:
            longer = [i for i, c in enumerate(completions) if len(c.token_ids) > budget]
            short = [_truncated(completions[i], budget) for i in longer]
            places[budget] = {i: len(responses) + k for k, i in enumerate(longer)}
            if short:
                responses += [
                    Response(text, "length", opened[i])
                    for text, i in zip(
                        self.policy.decode([c.token_ids for c in short]), longer, strict=True
                    )
                ]
                asked += [golds[i] for i in longer]
        grades = grade_responses(
            responses,
            asked,
            verifier=self.verifier,
            think=reward.think,
            truncated=reward.truncated,
        )
        return {
            budget: [grades[shorter.get(i, i)] for i in range(len(completions))]
            for budget, shorter in places.items()
        }


def _truncated(completion: Completion, budget: int) -> Completion:
    ids = completion.token_ids[:budget]
    return replace(completion, token_ids=ids, finish_reason="length")
