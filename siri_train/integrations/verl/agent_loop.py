"""Agent loop ``siri_single_turn``: verl's single turn under the cap of the step."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from siri_train.config import ConfigError
from siri_train.integrations.verl.settings import AGENT_LOOP, settings_of


@register(AGENT_LOOP)
class SiriAgentLoop(SingleTurnAgentLoop):
    """verl's ``SingleTurnAgentLoop`` with ``max_tokens`` from the schedule.

    verl counts steps from 1, the schedule from 0: the first batch is sampled at the top. In verl's
    asynchronous trainers a response has the cap of the step that submitted its prompt. A loop is
    not told whether it serves training or validation, so validation rows that name this loop are
    capped too; give the loop to training rows alone, in a column ``agent_name``, as
    ``siri-train verl`` does.

    Raises:
        ConfigError: see ``settings_of``; on ``run``, no ``global_steps`` (verl's old trainer,
            ``trainer.use_v1=False``, does not hand it to agent loops).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.schedule = settings_of(self.config).schedule.build()

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """One response to ``kwargs["raw_prompt"]``; ``extra_fields["siri_cap"]`` has its cap."""
        if "global_steps" not in kwargs:
            raise ConfigError(
                f"{AGENT_LOOP}: verl hands over no global_steps; takes trainer.use_v1=True"
            )
        # 0 is validation before the first step.
        cap = self.schedule(max(int(kwargs["global_steps"]) - 1, 0))
        output = await super().run({**sampling_params, "max_tokens": cap}, **kwargs)
        output.extra_fields["siri_cap"] = cap
        return output
