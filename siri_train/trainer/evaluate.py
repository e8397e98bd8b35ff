"""Evaluation on held-out questions: accuracy at every budget from one generation pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from siri_train.config.run import RunConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.model.policy import Policy
from siri_train.model.think_marks import thinking
from siri_train.monitor.backtrack import BacktrackCounter
from siri_train.rewards import Grade, Response, Verifier, grade_responses
from siri_train.rollout import Completion, Engine, SamplingParams


@dataclass(frozen=True)
class Evaluation:
    """Grades ``eval.samples`` responses to every held-out question; the seed never changes.

    Args:
        config: the recipe; ``eval``, its budgets, ``reward.think`` and ``seed`` are used.
        questions: held-out questions.
        engine: samples the responses.
        policy: whose end-of-sequence set and tokenizer are used.
        verifier: as in training.
        counter: of backtracking words.
    """

    config: RunConfig
    questions: Sequence[EncodedQuestion]
    engine: Engine
    policy: Policy
    verifier: Verifier
    counter: BacktrackCounter = field(default_factory=BacktrackCounter)

    def __call__(
        self,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Any] | None:
        """Sample, and grade at every budget.

        Responses are generated once, at the largest budget. Those that are longer than a smaller
        budget are truncated there and graded as training grades a truncated response
        (``reward.truncated``), so accuracy at a budget is what a pass at it would have given.

        Args:
            progress: called with (responses done, all).
            cancelled: called between decoding steps; once true, the evaluation is given up.

        Returns:
            None where ``cancelled`` became true on any rank before all was sampled. Else one record
            of ``eval.jsonl`` without step and name: budgets, accuracy (avg@samples) with a 95 %
            interval, pass@k for k = samples, mean tokens (overall: at the largest budget),
            truncated share, share of the truncated whose answer was right before the cap (None
            without any), backtracking words per 1000 tokens, the number of questions, and of
            answers that could not be judged (these count as wrong).

        Raises:
            EngineError: the engine failed.
        """
        budgets, samples = self.config.budgets, self.config.eval.samples
        groups = self.engine.generate(
            [q.prompt_ids for q in self.questions],
            SamplingParams(
                max_tokens=budgets[-1],
                n=samples,
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
        golds = [question.answer for question in self.questions for _ in range(samples)]
        lengths = [len(c.token_ids) for c in completions]
        at = self._grades(completions, texts, golds)
        row: dict[str, Any] = {
            "budgets": list(budgets),
            "accuracy": [],
            "accuracy_interval": [],
            "pass_at_k": [],
            "tokens_at": [],
            "truncated_frac": [],
            "truncated_correct_frac": [],
        }
        for budget in budgets:
            right = [grade.right is True for grade in at[budget]]
            per_question = [right[i : i + samples] for i in range(0, len(right), samples)]
            means = [sum(answers) / len(answers) for answers in per_question]
            truncated = [grade.truncated for grade in at[budget]]
            row["accuracy"].append(sum(means) / len(means))
            row["accuracy_interval"].append(list(interval(means)))
            row["pass_at_k"].append(sum(any(answers) for answers in per_question) / len(means))
            row["tokens_at"].append(sum(min(length, budget) for length in lengths) / len(lengths))
            row["truncated_frac"].append(sum(truncated) / len(truncated))
            correct = [grade.correct for grade in at[budget] if grade.truncated]
            row["truncated_correct_frac"].append(sum(correct) / len(correct) if correct else None)
        row["tokens"] = row["tokens_at"][-1]
        row["backtrack_per_1k"] = self.counter.per_1k(texts, lengths)["backtrack_per_1k"]
        row["questions"], row["samples"] = len(self.questions), samples
        row["unjudged"] = sum(grade.right is None for grade in at[budgets[-1]])
        return row

    def _grades(
        self, completions: Sequence[Completion], texts: Sequence[str], golds: Sequence[str]
    ) -> dict[int, list[Grade]]:
        """The grades at each budget; every text is decoded and graded once."""
        reward = self.config.reward
        opened = thinking(
            self.policy.tokenizer,
            [q.prompt_ids for q in self.questions for _ in range(self.config.eval.samples)],
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


def interval(means: Sequence[float], z: float = 1.96) -> tuple[float, float]:
    """95 % interval of the mean over questions.

    Wilson's score interval, with the number of questions as the sample size and each question's
    variance replaced by that of its mean when several samples were drawn; so it never leaves
    [0, 1] and is not empty at 0 or 1.

    Args:
        means: for each question the share of right answers.
        z: quantile of the normal distribution; 1.96 for 95 %.
    """
    n = len(means)
    p = sum(means) / n
    between = sum((m - p) ** 2 for m in means) / n
    # Averaging several samples shrinks the variance below the binomial p(1-p): the design effect.
    effect = between / (p * (1 - p)) if 0 < p < 1 else 1.0
    n_effective = n / max(effect, 1e-3)
    centre = (p + z * z / (2 * n_effective)) / (1 + z * z / n_effective)
    half = z / (1 + z * z / n_effective)
    half *= math.sqrt(p * (1 - p) / n_effective + z * z / (4 * n_effective**2))
    return max(0.0, centre - half), min(1.0, centre + half)
