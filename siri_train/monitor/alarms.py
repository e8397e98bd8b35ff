"""Alarms: signs of a run that trains on nothing or on noise, each with cause and action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from siri_train.registry import Registry

# A bf16 sampler beside a bf16 trainer is at 1e-3 to 1e-2, with single tokens at a ratio of 3.
_MOST_DRIFT, _MOST_RATIO = 0.05, 10.0

Record = Mapping[str, Any]


class Raised:
    """An alarm is raised.

    Args:
        value: what is wrong, in one number.
        details: what fills the braces of `Alarm.cause`.
    """

    def __init__(self, value: Any, **details: Any) -> None:
        self.value = value
        self.details = details


Check = Callable[[Record, Sequence[Record]], "Raised | None"]


@dataclass(frozen=True)
class Alarm:
    """An entry of `ALARMS`.

    Args:
        name: as ``alarms.jsonl`` has it.
        cause: what is wrong, in words; a format string for the details of `Raised`.
        action: what to do.
        check: (newest row of ``metrics.jsonl``, the rows before it) to `Raised` or None. None where
            something else than a row raises it.
    """

    name: str
    cause: str
    action: str
    check: Check | None = None

    def entry(self, raised: Raised) -> dict[str, Any]:
        """The row of ``alarms.jsonl``, without its step.

        Args:
            raised: with every detail that the cause names.

        Returns:
            ``{"alarm", "value", "cause", "action"}``.
        """
        cause = self.cause.format(**raised.details)
        return {"alarm": self.name, "value": raised.value, "cause": cause, "action": self.action}


ALARMS: Registry[Alarm] = Registry("alarm")
"""Every alarm by name, in the order in which a row is checked."""


def register(name: str, *, cause: str, action: str, check: Check | None = None) -> Alarm:
    """Add an alarm to `ALARMS`.

    Args:
        name: its name.
        cause: see `Alarm`.
        action: see `Alarm`.
        check: see `Alarm`.

    Returns:
        The entry.
    """
    ALARMS[name] = Alarm(name, cause, action, check)
    return ALARMS[name]


def alarm(name: str, *, cause: str, action: str) -> Callable[[Check], Check]:
    """Decorator of a check of the newest row: adds it to `ALARMS`.

    Args:
        name: its name.
        cause: see `Alarm`.
        action: see `Alarm`.

    Returns:
        The decorator, which leaves the function as it is.
    """

    def add(check: Check) -> Check:
        register(name, cause=cause, action=action, check=check)
        return check

    return add


def check(row: Record, history: Sequence[Record]) -> list[dict[str, Any]]:
    """Alarms raised by the newest row of ``metrics.jsonl``.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.

    Returns:
        ``{"step", "alarm", "value", "cause", "action"}`` for each alarm.
    """
    found = []
    for entry in ALARMS.values():
        raised = None if entry.check is None else entry.check(row, history)
        if raised is not None:
            found.append({"step": row["step"], **entry.entry(raised)})
    return found


@alarm(
    "all-truncated",
    cause="no response finished within the cap of {cap} tokens; the mean reward is {reward:.3g}",
    action="raise schedule.min_len, or start from a model that answers shorter",
)
def _all_truncated(row: Record, history: Sequence[Record]) -> Raised | None:
    if row["truncated_frac"] != 1.0:
        return None
    reward = row.get("reward_mean") or 0.0
    return Raised(row["truncated_frac"], cap=row["cap"], reward=reward)


@alarm(
    "all-zero-rewards",
    cause="no response of this step was right",
    action="easier questions, a supervised stage first, or check reward.verifier on rollouts/",
)
def _none_right(row: Record, history: Sequence[Record]) -> Raised | None:
    if row["truncated_frac"] == 1.0 or row["groups_all_zero"] != 1.0:
        return None
    return Raised(row["groups_all_zero"])


@alarm(
    "non-finite-gradient",
    cause="the gradient was infinite or NaN; the update was skipped",
    action="lower train.lr or train.grad_clip; look for infinite log-probs in rollouts/",
)
def _non_finite_gradient(row: Record, history: Sequence[Record]) -> Raised | None:
    skipped = row.get("skipped_updates")
    return Raised(skipped) if skipped else None


@alarm(
    "sampler-mismatch",
    cause="before any update the trainer's probabilities are not the sampler's (rollout_kl "
    "{drift}, largest ratio {ratio}): they run different weights, precisions or code, or something "
    "random such as dropout is on in one of them",
    action="compare probe_logprob_diff; set rollout.engine=transformers to see which of the two is "
    "off, loss.old_logprobs=recompute and loss.rollout_correction to live with it",
)
def _sampler_mismatch(row: Record, history: Sequence[Record]) -> Raised | None:
    drift, ratio = row.get("rollout_kl"), row.get("rollout_ratio_max")
    apart = drift is not None and not abs(drift) <= _MOST_DRIFT  # NaN is apart too
    if not apart and (ratio is None or ratio <= _MOST_RATIO):
        return None
    return Raised(drift if apart else ratio, drift=_number(drift), ratio=_number(ratio))


@alarm(
    "grad-norm-spike",
    cause="20 times the median of the last {count} steps ({typical:.3g})",
    action="often the step before a collapse: lower train.lr or resume before this step",
)
def _grad_norm_spike(row: Record, history: Sequence[Record]) -> Raised | None:
    norms = [r["grad_norm"] for r in history[-50:] if r.get("grad_norm")]
    if not row["grad_norm"] or len(norms) < 20:
        return None
    typical = sorted(norms)[len(norms) // 2]
    if not row["grad_norm"] > 20 * typical:
        return None
    return Raised(row["grad_norm"], count=len(norms), typical=typical)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
