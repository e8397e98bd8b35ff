"""Some of a step's responses in a file, for people to read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from siri_train.config.run import MonitorConfig
from siri_train.files import replace_text
from siri_train.monitor.backtrack import WordCounter
from siri_train.rollout.batch import RolloutBatch


def write_samples(
    folder: Path, batch: RolloutBatch, monitor: MonitorConfig, words: WordCounter, last: bool
) -> None:
    """Write ``step_XXXXXX.jsonl`` for the steps whose responses the recipe keeps.

    Args:
        folder: ``rollouts`` of the run.
        batch: of the step.
        monitor: ``rollouts_every`` says which steps, ``rollouts_kept`` how many responses.
        words: whose places in the text are written as ``marks``.
        last: whether it is the run's last step, which is always kept.

    Raises:
        OSError: it cannot be written.
    """
    if not monitor.rollouts_every or (batch.step % monitor.rollouts_every and not last):
        return
    responses = [
        (group.question, *response)
        for group in batch.seen
        for response in zip(group.completions, group.texts, group.grades, strict=True)
    ]
    stride = max(1, len(responses) // monitor.rollouts_kept)
    lines = []
    for question, completion, text, grade in responses[::stride]:
        row = {
            "prompt": question.prompt,
            "response": text,
            "cap": batch.cap,
            "question": question.id,
            "right": grade.right,
            "reward": None if math.isnan(grade.reward) else grade.reward,
            "truncated": completion.truncated,
            "tokens": len(completion.token_ids),
            "answer": grade.answer,
            "gold": question.answer,
            "marks": words.spans(text),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    replace_text(folder / f"step_{batch.step:06d}.jsonl", "".join(lines))
