"""Ablations: the same questions and seeds under several settings, their table and their tests."""
