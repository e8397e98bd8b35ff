"""Alarms about accuracy and held-out accuracy."""
