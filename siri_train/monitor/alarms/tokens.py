"""Alarms about what the responses say: repetition, wait words, thoughts."""
