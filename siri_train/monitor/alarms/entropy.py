"""Alarms about the entropy of the policy."""
