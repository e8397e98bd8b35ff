"""Alarms about sampler and trainer that are not the same policy."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.registry import Raised, Record, alarm


@alarm(
    "sampler-mismatch",
    cause="before any update the trainer's probabilities are not the sampler's (rollout_kl "
    "{drift}, largest ratio {ratio}): they run different weights, precisions or code, or something "
    "random such as dropout is on in one of them",
    action="compare probe_logprob_diff; set rollout.engine=transformers to see which of the two is "
    "off, loss.old_logprobs=recompute and loss.rollout_correction to live with it",
    limits=("rollout_kl", "rollout_ratio"),
)
def _sampler_mismatch(
    row: Record, history: Sequence[Record], limits: AlarmsConfig
) -> Raised | None:
    drift, ratio = row.get("rollout_kl"), row.get("rollout_ratio_max")
    apart = drift is not None and not abs(drift) <= limits.rollout_kl  # NaN is apart too
    if not apart and (ratio is None or ratio <= limits.rollout_ratio):
        return None
    return Raised(drift if apart else ratio, drift=_number(drift), ratio=_number(ratio))


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
