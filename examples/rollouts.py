"""Parts that the four examples share: a task, a model, sampled answers with rewards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_train.data.demo_task.questions import questions
from siri_train.data.questions import Question
from siri_train.model.demo_model import START_FOLDER
from siri_train.rewards import ExactVerifier, Response, grade_responses

GROUP = 8
"""Answers to each question."""
CAP = 40
"""Most tokens an answer may have."""


def load() -> tuple[Any, Any]:
    """The 0.1 M model and tokenizer that ship with ``siri_train``."""
    return (
        AutoModelForCausalLM.from_pretrained(START_FOLDER),
        AutoTokenizer.from_pretrained(START_FOLDER, padding_side="left"),
    )


def question_batches(steps: int, size: int = 8) -> Iterator[list[Question]]:
    """``steps`` batches of questions."""
    pool = questions(steps * size)
    return (pool[i : i + size] for i in range(0, len(pool), size))


@torch.no_grad()
def rollout(model: Any, tokenizer: Any, batch: list[Question]) -> tuple[dict, torch.Tensor]:
    """Sample ``GROUP`` answers to each question and grade them under the cap.

    Args:
        model: with ``generate``; wrapped by ``LogprobHead.wrap`` or not.
        tokenizer: the model's, which pads at the left.
        batch: questions.

    Returns:
        The wrapped model's inputs: input_ids, attention_mask, position_ids and targets, [B, L]
        each. Targets are the answers' tokens, -100 everywhere else. And rewards [B].
    """
    asked = tokenizer([q.prompt for q in batch], return_tensors="pt", padding=True)
    asked = {k: v.repeat_interleave(GROUP, 0).to(model.device) for k, v in asked.items()}
    training = model.training
    ids = model.eval().generate(
        input_ids=asked["input_ids"],
        attention_mask=asked["attention_mask"],
        max_new_tokens=CAP,
        do_sample=True,
        top_k=0,
    )
    model.train(training)
    answer = ids[:, asked["input_ids"].shape[1] :]
    ends = answer == tokenizer.eos_token_id
    counts = ends.cumsum(1) - ends.long() == 0  # up to the end token and with it
    mask = torch.cat([asked["attention_mask"].bool(), counts], 1)
    targets = torch.full_like(ids, -100)
    targets[:, -answer.shape[1] - 1 : -1] = answer.masked_fill(~counts, -100)
    texts = tokenizer.batch_decode(answer, skip_special_tokens=True)
    finished = ["stop" if end else "length" for end in ends.any(1).tolist()]
    grades = grade_responses(
        [Response(text, why) for text, why in zip(texts, finished, strict=True)],
        [q.answer for q in batch for _ in range(GROUP)],
        verifier=ExactVerifier(),
        think="optional",
    )
    position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": position_ids}
    rewards = torch.tensor([grade.reward for grade in grades], device=ids.device)
    return {**inputs, "targets": targets}, rewards
