"""Whole workloads: training steps, rollouts, the demo."""
