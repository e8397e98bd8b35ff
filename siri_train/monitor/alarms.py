"""Alarms: signs of a run that trains on nothing or on noise, each with cause and action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A bf16 sampler beside a bf16 trainer is at 1e-3 to 1e-2, with single tokens at a ratio of 3.
_MOST_DRIFT, _MOST_RATIO = 0.05, 10.0


def check(row: dict[str, Any], history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Alarms raised by the newest row of ``metrics.jsonl``.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.

    Returns:
        ``{"step", "alarm", "value", "cause", "action"}`` for each alarm.
    """
    found = []

    def alarm(name: str, value: Any, cause: str, action: str) -> None:
        found.append(
            {"step": row["step"], "alarm": name, "value": value, "cause": cause, "action": action}
        )

    if row["truncated_frac"] == 1.0:
        paid = row.get("reward_mean") or 0.0
        alarm(
            "all-truncated",
            row["truncated_frac"],
            f"no response finished within the cap of {row['cap']} tokens; the mean reward is "
            f"{paid:.3g}",
            "raise schedule.min_len, or start from a model that answers shorter",
        )
    elif row["groups_all_zero"] == 1.0:
        alarm(
            "all-zero-rewards",
            row["groups_all_zero"],
            "no response of this step was right",
            "easier questions, a supervised stage first, or check reward.verifier on rollouts/",
        )
    if row.get("skipped_updates"):
        alarm(
            "non-finite-gradient",
            row["skipped_updates"],
            "the gradient was infinite or NaN; the update was skipped",
            "lower train.lr or train.grad_clip; look for infinite log-probs in rollouts/",
        )
    drift, ratio = row.get("rollout_kl"), row.get("rollout_ratio_max")
    apart = drift is not None and not abs(drift) <= _MOST_DRIFT  # NaN is apart too
    if apart or (ratio is not None and not ratio <= _MOST_RATIO):
        alarm(
            "sampler-mismatch",
            drift if apart else ratio,
            f"before any update the trainer's probabilities are not the sampler's (rollout_kl "
            f"{_number(drift)}, largest ratio {_number(ratio)}): they run different weights, "
            "precisions or code, or something random such as dropout is on in one of them",
            "compare probe_logprob_diff; set rollout.engine=transformers to see which of the two "
            "is off, loss.old_logprobs=recompute and loss.rollout_correction to live with it",
        )
    norms = [r["grad_norm"] for r in history[-50:] if r.get("grad_norm")]
    if row["grad_norm"] and len(norms) >= 20:
        typical = sorted(norms)[len(norms) // 2]
        if row["grad_norm"] > 20 * typical:
            alarm(
                "grad-norm-spike",
                row["grad_norm"],
                f"20 times the median of the last {len(norms)} steps ({typical:.3g})",
                "often the step before a collapse: lower train.lr or resume before this step",
            )
    return found


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
