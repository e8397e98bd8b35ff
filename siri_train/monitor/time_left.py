"""How long a run still takes, from the caps of the steps to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siri_train.monitor.run_logs import is_number

_HALF_LIFE = 60.0
_TO_PROPORTIONAL = 0.01
_NEEDED = ("cap", "time_rollout", "time_train")


class TimeLeft:
    """Estimates the seconds that a run still takes.

    The seconds of a step are fitted as ``a + b * cap``: a step under a small cap is faster, and the
    caps to come are known. A step's weight in the fit halves every 60 steps. Until the caps have
    differed by a tenth, ``a`` stays near 0: what has not been seen is taken as proportional to the
    cap. Evaluations, checkpoints and the overlap of sampling with updates are in the measured time
    between steps, whose ratio to the steps' own seconds is kept up.

    Args:
        caps: of all steps of the run, in tokens; None where the run decides them: the last one is
            then taken for all to come.
        steps: of the run.
        max_tokens: response tokens after which the run ends earlier; None: it does not.
        tokens: response tokens sampled already.
    """

    def __init__(
        self,
        caps: Sequence[int] | None,
        steps: int,
        max_tokens: int | None = None,
        tokens: float = 0,
    ) -> None:
        self.caps = None if caps is None else np.asarray(caps, dtype=np.float64)
        self.steps, self.max_tokens, self.tokens = steps, max_tokens, tokens
        # Decayed sums of 1, cap, cap^2, seconds, cap x seconds, tokens.
        self._sums = np.zeros(6)
        self._cap = 0.0
        self._since: float | None = None
        self._own = self._wall = 0.0

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Learn from records that an interrupted run has left.

        Args:
            rows: of ``metrics.jsonl``, oldest first; what has no times is passed over.
        """
        for row in rows:
            self._learn(row)

    def add(self, row: Mapping[str, Any], now: float) -> None:
        """Learn from a step that is done.

        Args:
            row: its record in ``metrics.jsonl``.
            now: a clock's seconds.
        """
        own = self._learn(row)
        self.tokens += _sampled(row)
        if self._since is None:
            self._since = now
        else:
            self._own += own
            self._wall = now - self._since

    def seconds(self, done: int) -> float | None:
        """Seconds to the end of the run; None before the first step.

        Args:
            done: steps done.
        """
        count, cap, square, seconds, both, tokens = map(float, self._sums)
        if not count or not square:
            return None
        weighted = count * (1 + _TO_PROPORTIONAL)
        fixed = (seconds * square - cap * both) / (weighted * square - cap * cap)
        per_cap = (both - fixed * cap) / square
        if fixed < 0:
            fixed, per_cap = 0.0, both / square
        elif per_cap < 0:
            fixed, per_cap = seconds / count, 0.0
        if self.caps is None:
            to_come = np.full(max(self.steps - done, 0), self._cap)
        else:
            to_come = self.caps[done : self.steps]
        if self.max_tokens is not None and tokens > 0:
            sampled = self.tokens + np.cumsum(to_come) * (tokens / cap)
            last = int(np.searchsorted(sampled, self.max_tokens))
            to_come = to_come[: last + 1] if self.tokens < self.max_tokens else to_come[:0]
        left = fixed * len(to_come) + per_cap * float(to_come.sum())
        return left * (self._wall / self._own if self._own > 0 and self._wall > 0 else 1.0)

    def _learn(self, row: Mapping[str, Any]) -> float:
        if not all(is_number(row.get(key), finite=True) for key in _NEEDED):
            return 0.0
        cap, seconds = float(row["cap"]), float(row["time_rollout"] + row["time_train"])
        self._cap = cap
        self._sums *= 0.5 ** (1 / _HALF_LIFE)
        self._sums += (1.0, cap, cap * cap, seconds, cap * seconds, _sampled(row))
        return seconds


def _sampled(row: Mapping[str, Any]) -> float:
    keys = ("tokens", "tokens_discarded")
    return float(sum(row[key] for key in keys if is_number(row.get(key), finite=True)))
