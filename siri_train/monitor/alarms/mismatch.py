"""Alarms about sampler and trainer that are not the same policy."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import column, median, newest, start
from siri_train.monitor.alarms.registry import Raised, Record, alarm

# Below these no growth is looked at: what the arithmetic of float32 and bfloat16 gives.
_USUAL_KL, _USUAL_PROBE = 0.005, 0.001


@alarm(
    "sampler-mismatch",
    cause="before any update the trainer's probabilities are not the sampler's (rollout_kl "
    "{drift}, largest ratio {ratio}): they run different weights, precisions or code, or something "
    "random such as dropout is on in one of them",
    action="compare probe_logprob_diff; set rollout.engine=transformers to see which of the two is "
    "off, loss.old_logprobs=recompute and loss.rollout_correction to live with it",
    limits=("rollout_kl", "rollout_ratio"),
    covers=("sampler-drift",),
)
def _sampler_mismatch(
    row: Record, history: Sequence[Record], limits: AlarmsConfig
) -> Raised | None:
    drift, ratio = row.get("rollout_kl"), row.get("rollout_ratio_max")
    apart = drift is not None and not abs(drift) <= limits.rollout_kl  # NaN is apart too
    if not apart and (ratio is None or ratio <= limits.rollout_ratio):
        return None
    return Raised(drift if apart else ratio, drift=_number(drift), ratio=_number(ratio))


@alarm(
    "sampler-drift",
    cause="rollout_kl has grown to {now:.2g} nats per token in the median of 30 steps, from "
    "{before:.2g} in the run's first hundred: sampler and trainer move apart",
    action="compare probe_logprob_diff; take a sampler of the trainer's precision, or set "
    "loss.old_logprobs=recompute and loss.rollout_correction to live with it",
    limits=("rollout_kl_drift",),
    window=30,
)
def _sampler_drift(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    first = [abs(kl) for kl in column(start(history), "rollout_kl")]
    last = [abs(kl) for kl in column(newest(row, history, 30), "rollout_kl")]
    before, now = median(first), median(last)
    if len(history) < 120 or min(len(first), len(last)) < 15 or before is None or now is None:
        return None
    if now <= max(limits.rollout_kl_drift * before, _USUAL_KL):
        return None
    return Raised(now, now=now, before=before)


@alarm(
    "sync-probe",
    cause="fresh tokens differ by {now:.2g} nats in the median of the last three sync probes, by "
    "{before:.2g} in the first ones: the engine's weights are late or of another precision",
    action="look at the engine's weight sync and dtype; rollout.probe.threshold is where the run "
    "would stop",
    limits=("probe_growth",),
    window=50,
)
def _sync_probe(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    first = column(history[:200], "probe_logprob_diff")
    last = column(newest(row, history, 200), "probe_logprob_diff")
    if len(first) < 5 or len(last) < 8:  # eight, so that both parts of a short run are apart
        return None
    before, now = median(first[:5]), median(last[-3:])
    if before is None or now is None:
        return None
    if now <= max(limits.probe_growth * before, _USUAL_PROBE):
        return None
    return Raised(now, now=now, before=before)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
