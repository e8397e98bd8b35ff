"""SIRI's moving cap on SkyRL (0.4); loss and advantages: ``siri_kernels.integrations.skyrl``."""

from __future__ import annotations

from typing import Any

from siri_train.schedule import LengthSchedule


class CappedGenerator:
    """SkyRL's generator under the cap of the training step.

    Override ``BasePPOExp.get_generator`` to return
    ``CappedGenerator(super().get_generator(...), schedule)``. What a capped response earns is
    SkyRL's setting ``generator.zero_reward_on_non_stop``. false: what the environment gives for its
    text, as in the paper; true: 0.
    SkyRL counts steps from 1, the schedule from 0. Evaluation keeps SkyRL's own length.

    Args:
        generator: a ``SkyRLGymGenerator``, single turn.
        schedule: the cap at each 0-based step.

    Raises:
        ValueError: max_generate_length below the schedule's largest cap; capped responses are
            masked out; more than one turn.
    """

    def __init__(self, generator: Any, schedule: LengthSchedule) -> None:
        schedule.require_stateless("SkyRL")
        options = generator.generator_cfg
        if options.sampling_params.max_generate_length < schedule.max_len:
            raise ValueError(
                "generator.sampling_params.max_generate_length: got "
                f"{options.sampling_params.max_generate_length}; takes at least the schedule's "
                f"max_len, {schedule.max_len}"
            )
        if options.apply_overlong_filtering:
            raise ValueError(
                "generator.apply_overlong_filtering: got True; takes False: SIRI compresses "
                "through truncated responses, which must stay in the loss"
            )
        if options.max_turns != 1:
            raise ValueError(f"generator.max_turns: got {options.max_turns}; takes 1")
        self.generator, self.schedule = generator, schedule
        self.caps: list[int] = []
        """The cap of each training batch so far."""

    def __getattr__(self, name: str) -> Any:
        if name == "generator":  # not set yet: copied or unpickled
            raise AttributeError(name)
        return getattr(self.generator, name)

    async def generate(self, input_batch: Any, disable_tqdm: bool = False) -> Any:
        """Generate as SkyRL does, with ``max_tokens`` of a training batch at the cap of its step.

        Raises:
            ValueError: a batch without sampling parameters, which SkyRL's trainer always gives.
        """
        about = input_batch["batch_metadata"]
        if about.training_phase != "train":
            return await self.generator.generate(input_batch, disable_tqdm)
        cap = self.schedule(about.global_step - 1)
        self.caps.append(cap)
        if not input_batch["sampling_params"]:
            raise ValueError("sampling_params: got none in a training batch; takes SkyRL's own")
        sampling = {**input_batch["sampling_params"], "max_tokens": cap}
        capped = {**input_batch, "sampling_params": sampling}
        return await self.generator.generate(capped, disable_tqdm)
