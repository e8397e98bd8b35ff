"""Alarms about the length of responses and the cap."""
