"""The runner's time, in one object that tests can replace."""

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
