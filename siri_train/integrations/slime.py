"""SIRI's moving cap on slime; its loss and advantages: ``siri_kernels.integrations.slime``.

``--rollout-function-path siri_train.integrations.slime.generate_rollout``, and in the file of
``--custom-config-path`` the schedule: ``siri_schedule: {shape: cosine, max_len: 16384, min_len:
8192, cycle: 640}``. ``siri_plugins`` beside it names modules that add shapes. Read against slime
at 624b824 (2026-08-21).
"""

from __future__ import annotations

from typing import Any

from siri_train.config.plugins import load_plugin
from siri_train.schedule import LengthSchedule


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
    """Sample as slime does, with ``max_new_tokens`` at the cap of step ``rollout_id``.

    Args:
        args: slime's arguments, among them ``siri_schedule``, a mapping of ``LengthSchedule``'s.
        rollout_id: the 0-based step.
        data_source: slime's.
        evaluation: True keeps slime's own length.

    Raises:
        ValueError: no ``siri_schedule``; ``rollout_max_response_len`` below its largest cap.
    """
    from slime.rollout import sglang_rollout

    if evaluation:
        return sglang_rollout.generate_rollout(args, rollout_id, data_source, evaluation=True)
    options = getattr(args, "siri_schedule", None)
    if not options:
        raise ValueError(
            "siri_schedule: missing; the file of --custom-config-path takes shape, max_len, "
            "min_len and cycle under it"
        )
    for module in getattr(args, "siri_plugins", None) or ():
        load_plugin(module)
    schedule = LengthSchedule(**options)
    schedule.require_stateless("slime")
    if args.rollout_max_response_len < schedule.max_len:
        raise ValueError(
            f"rollout_max_response_len: got {args.rollout_max_response_len}; takes at least the "
            f"schedule's max_len, {schedule.max_len}"
        )
    # One object for the whole run, from which every request's parameters are copied.
    state = sglang_rollout.GenerateState(args)
    state.sampling_params["max_new_tokens"] = schedule(rollout_id)
    return sglang_rollout.generate_rollout(args, rollout_id, data_source)
