"""The form of a step's responses: whether they end in a loop, and close their thoughts."""

from __future__ import annotations

from siri_train.monitor.repetition import repetitive
from siri_train.rewards.extract import THINK_CLOSE
from siri_train.rollout.batch import RolloutBatch


def response_form(batch: RolloutBatch, think: str) -> dict[str, float | None]:
    """Figures of a step's responses for ``metrics.jsonl``.

    Args:
        batch: the responses, graded.
        think: ``reward.think``.

    Returns:
        ``repetitive_frac``, the share of responses that end in a loop
        (:func:`siri_train.monitor.repetition.repetitive`); and ``think_mismatch_frac``, of the
        finished responses the share without ``</think>`` where it is required, with it where
        ``think`` is ``none``; None where no response finished.
    """
    pairs = [
        pair for group in batch.seen for pair in zip(group.completions, group.texts, strict=True)
    ]
    ids = [c.token_ids if c.truncated else c.token_ids[:-1] for c, _ in pairs]
    loops = repetitive(ids)
    closed = [THINK_CLOSE in text for c, text in pairs if not c.truncated]
    wrong = {"required": closed.count(False), "none": closed.count(True)}.get(think, 0)
    return {
        "repetitive_frac": float(loops.mean()) if len(loops) else None,
        "think_mismatch_frac": wrong / len(closed) if closed else None,
    }
