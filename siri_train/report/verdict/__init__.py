"""The verdict on a run: what its files say in words with figures, and which checkpoint to ship."""

from .judge import judge
from .types import Finding, Ship, Verdict

__all__ = ["Finding", "Ship", "Verdict", "judge"]
