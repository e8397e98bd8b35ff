"""The shape ``toggle``: the cap stays at ``max_len``, and phases act through the reward.

Kimi K2.5 (arXiv 2602.02276) calls it Toggle. In compression, the first half of a cycle, the reward
``toggle`` pays long right answers to hard questions only; in expansion it pays every right answer.
"""

from __future__ import annotations

from siri_train.schedule.length_schedule import Shape

TOGGLE = Shape(lambda step, s: float(s.max_len), lowest=lambda s: s.max_len, reward="toggle")
