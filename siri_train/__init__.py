"""SIRI training: RL with an oscillating response-length cap (arXiv 2509.25176)."""

__version__ = "0.1.0"
