"""Adapters for other trainers; each is a module of its own and imports its trainer only."""
