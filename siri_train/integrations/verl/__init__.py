"""SIRI on verl (0.9.1): agent loop, reward manager, checkpoint callback, and ``siri-train verl``.

Entry point in the group ``verl.plugins``: verl imports this package in every process, and importing
it registers the agent loop ``siri_single_turn`` and the reward manager ``siri_capped``. Both read
the section ``siri`` of verl's configuration, see ``settings``.
"""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)

try:
    # Each registers itself where it is defined.
    from siri_train.integrations.verl.agent_loop import SiriAgentLoop
    from siri_train.integrations.verl.checkpoints import SiriCheckpoints
    from siri_train.integrations.verl.reward import SiriRewardManager
except Exception as error:
    # verl drops a plugin's exception at DEBUG level; the run would fail later, unexplained.
    _log.error("siri_train: agent loop and reward manager are not registered: %s", error)
    raise

__all__ = ["SiriAgentLoop", "SiriCheckpoints", "SiriRewardManager"]
