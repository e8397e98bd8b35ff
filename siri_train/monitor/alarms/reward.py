"""Alarms about the reward."""
