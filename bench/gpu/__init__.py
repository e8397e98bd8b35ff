"""One script for a machine with a GPU that is lent for minutes: ``scripts/gpu_run.sh``.

Each part (:mod:`bench.gpu.parts`) is a process of its own with a time limit and writes JSON lines
as it goes, so that one that crashes or hangs loses nothing of the others. The runner
(:mod:`bench.gpu.runner`) imports neither torch nor Triton; ``python -m bench gpu-report`` makes
tables of the lines and says which predictions were hit.
"""
