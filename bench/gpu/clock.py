"""The runner's time, all of it through one object, so that tests can replace it."""

from __future__ import annotations

import time


class Clock:
    """Seconds that only go forward."""

    def now(self) -> float:
        """Seconds since some moment in the past."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)
