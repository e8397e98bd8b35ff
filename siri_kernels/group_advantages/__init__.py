"""Rewards of groups of answers to the same question -> advantages."""

from siri_kernels.group_advantages.api import GroupAdvantages, group_advantages

__all__ = ["GroupAdvantages", "group_advantages"]
