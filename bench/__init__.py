"""Benchmarks: every claim measured, correctness first, ratios to eager PyTorch in the same run."""
