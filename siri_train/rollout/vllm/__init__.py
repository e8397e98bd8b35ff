"""Rollouts by vLLM: in this process, or by a server."""
