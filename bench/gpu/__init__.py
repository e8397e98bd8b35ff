"""A GPU run within minutes: ``python -m bench gpu``, or ``scripts/gpu_run.sh``.

Each part (:mod:`bench.gpu.parts`) is a process of its own with a time limit. It writes JSON lines
as it runs, so a part that crashes or hangs loses nothing of the others. The runner
(:mod:`bench.gpu.runner`) imports neither torch nor Triton. ``python -m bench report`` makes tables
of the lines and compares them with the predictions.
"""
