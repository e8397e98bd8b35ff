"""Agent loop ``siri_single_turn``: verl's single turn under the cap of the step."""

from __future__ import annotations

import logging
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from siri_train.config.base import ConfigError
from siri_train.integrations.verl.settings import AGENT_LOOP, settings_of

_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)  # verl's root logger is at WARNING


@register(AGENT_LOOP)
class SiriAgentLoop(SingleTurnAgentLoop):
    """verl's ``SingleTurnAgentLoop`` with ``max_tokens`` from the schedule.

    verl counts steps from 1, the schedule from 0: the first batch is sampled at the top. In verl's
    asynchronous trainers a response has the cap of the step that submitted its prompt. A loop
    cannot see whether it serves training or validation, so validation data rows that name this loop
    are capped too. Name the loop only in training data rows, in a column ``agent_name``, as
    ``siri-train verl`` does.

    Raises:
        ConfigError: see ``settings_of``.
    """

    _logged = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.schedule = settings_of(self.config).schedule.build()

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Sample one response to ``kwargs["raw_prompt"]``.

        Args:
            sampling_params: of verl's engine.
            **kwargs: the fields of the data row, and ``global_steps``.

        Returns:
            The response; ``extra_fields["siri_cap"]`` has its cap.

        Raises:
            ConfigError: no ``global_steps``: verl's old trainer (``trainer.use_v1=False``) does not
                give it to agent loops.
        """
        if "global_steps" not in kwargs:
            raise ConfigError(
                f"{AGENT_LOOP}: verl gives no global_steps; takes trainer.use_v1=True"
            )
        step = int(kwargs["global_steps"])
        cap = self.schedule(max(step - 1, 0))  # 0 is validation before the first step
        if step != SiriAgentLoop._logged:  # verl has no metric for it
            SiriAgentLoop._logged = step
            _log.info("%s: step %d, responses of at most %d tokens", AGENT_LOOP, step, cap)
        output = await super().run({**sampling_params, "max_tokens": cap}, **kwargs)
        output.extra_fields["siri_cap"] = cap
        return output
