"""``siri-train train --halt-on NAME``: alarms to stop at, besides those of the recipe."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.run import RunConfig
from siri_train.monitor.alarms import require_known


def halting(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """The configuration with more names in ``monitor.halt_on``.

    Args:
        config: of the run; its plug-ins are imported.
        names: of alarms.

    Raises:
        ConfigError: there is no such alarm.
    """
    require_known(names, "--halt-on")
    wanted = list(dict.fromkeys([*config.monitor.halt_on, *names]))
    monitor = config.monitor.model_copy(update={"halt_on": wanted})
    return config.model_copy(update={"monitor": monitor})
