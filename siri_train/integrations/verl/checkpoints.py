"""Checkpoint callback: keeps siri-low and siri-high, which verl's retention would delete."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from siri_train.checkpoint import retention
from siri_train.checkpoint.save_load import checkpoint_name, write_json
from siri_train.config.base import ConfigError
from siri_train.files import written_aside
from siri_train.integrations.verl.settings import settings_of


class SiriCheckpoints(CheckpointCallback):
    """``trainer.checkpoint_callback_class=siri_train.integrations.verl.SiriCheckpoints``.

    After the save at a compressed or expanded end of the schedule, copies the weights as
    transformers loads them to ``step_NNNNNN`` beside verl's ``global_step_N`` (of which verl keeps
    the last few), and writes ``manifest.json`` there: ``siri-low``, ``siri-high``, the lagged ones
    with ``siri.lag``, and all under ``cycles``. Where ``default_local_dir`` is ``RUN/checkpoints``,
    ``siri-train export RUN --which low`` finds them.

    Raises:
        ConfigError: see ``settings_of``; a ``trainer.save_freq`` that misses ends.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        settings = settings_of(config)
        self.schedule, self.lag = settings.schedule.build(), settings.lag
        self.steps = config.trainer.total_training_steps
        every = config.trainer.save_freq
        check_save_freq(every, self.schedule, self.lag, "trainer.save_freq", self.steps)

    def on_save(
        self,
        trainer: Any,
        global_step: int,
        checkpoint_dir: str,
        async_save: bool = False,
        **kwargs: Any,
    ) -> None:
        """Copy the weights and write the manifest; verl calls this after every checkpoint.

        Args:
            trainer: verl's, not used.
            global_step: the number of finished steps.
            checkpoint_dir: the folder ``global_step_N``.
            async_save: True where verl writes the files later.
            **kwargs: verl's, not used.

        Raises:
            ConfigError: an asynchronous checkpoint, one without ``hf_model``, or one on another
                machine.
        """
        named = retention.ends(self.schedule, global_step, self.lag, self.steps)
        if global_step not in named:
            return
        if async_save:
            raise ConfigError(
                "actor_rollout_ref.actor.checkpoint.async_save: got True; SiriCheckpoints takes "
                "False: the files are not written yet when verl calls"
            )
        weights = Path(checkpoint_dir) / "actor" / "huggingface"
        if not weights.is_dir():
            raise ConfigError(
                f"{weights}: not on the driver's machine; trainer.default_local_dir must be on a "
                "file system that all machines share"
            )
        if not list(weights.glob("*.safetensors")):
            raise ConfigError(
                f"{weights} holds no weights; actor_rollout_ref.actor.checkpoint.save_contents "
                "must contain hf_model"
            )
        folder = Path(checkpoint_dir).parent
        kept = folder / checkpoint_name(global_step)
        with written_aside(kept) as aside:
            shutil.copytree(weights, aside, dirs_exist_ok=True)
        self._write_manifest(folder, named)

    def _write_manifest(self, folder: Path, named: dict[int, tuple[str, ...]]) -> None:
        """As ``checkpoint.manifest.write_manifest``, without evaluations: verl keeps those."""
        manifest: dict[str, Any] = {"siri-low": None, "siri-high": None, "cycles": []}
        pairs = [(step, which) for step, names in sorted(named.items()) for which in names]
        for step, which in pairs:
            kept = folder / checkpoint_name(step)
            if not kept.is_dir():
                continue
            late = self.lag if which.endswith("lagged") else 0
            entry = {
                "step": step,
                "path": f"{folder.name}/{kept.name}",
                "accuracy": None,
                "tokens": None,
            }
            cycle = self.schedule.cycle_index(step - 1 - late)
            manifest[which] = entry
            manifest["cycles"].append({"which": which, "cycle": cycle, **entry})
        write_json(folder / "manifest.json", manifest)


def check_save_freq(
    every: int, schedule: Any, lag: int, key: str, steps: int | None = None
) -> None:
    """Refuse an interval between checkpoints that misses an end of the schedule.

    Args:
        every: steps between checkpoints.
        schedule: of the cap.
        lag: steps from an end to its lagged checkpoint.
        key: the key that ``every`` was given by, for the message.
        steps: all steps of the run, if that is known. verl saves after the last one in any case.

    Raises:
        ConfigError: naming ``key``.
    """
    shown = 2 * schedule.cycle if schedule.periodic or steps is None else steps
    ends = [step for step in retention.ends(schedule, shown + lag, lag, steps) if step != steps]
    if every > 0 and not any(step % every for step in ends):
        return
    if ends and not schedule.kind.even_cycle:
        raise ConfigError(
            f"{key}: got {every}; takes a divisor of {', '.join(map(str, ends))}: verl "
            "saves at multiples of it only, and the schedule's ends lie there"
        )
    if ends:
        half = schedule.cycle // 2
        also = f" and of the lag, {lag}, so of {math.gcd(half, lag)}" if lag else ""
        raise ConfigError(
            f"{key}: got {every}; takes a divisor of half the cycle, {half}{also}: verl saves at "
            "multiples of it only, and siri-low and siri-high lie there"
        )
