"""Alarms about the speed of sampling and updates."""
