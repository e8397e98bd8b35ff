"""Compiles every Triton kernel ahead of time, without a GPU, and reads what the compiler made.

``python -m siri_kernels.aot [--check]`` runs the library's own host code on tensors without
storage (:mod:`siri_kernels.aot.calls`), records what Triton would compile for each launch
(:mod:`siri_kernels.aot.record`), compiles it for each GPU generation
(:mod:`siri_kernels.aot.compiler`), counts in the machine code
(:mod:`siri_kernels.aot.machine_code`) and looks for accesses that no barrier orders
(:mod:`siri_kernels.aot.hazards`).
"""
