"""Compiles every Triton kernel ahead of time, without a GPU, and reads what the compiler made.

``python -m siri_kernels.aot [--check]`` runs the library's own host code on tensors without
storage (:mod:`.calls`), takes down what Triton would compile for each launch (:mod:`.record`),
compiles it for each GPU generation (:mod:`.compiler`), counts in the machine code
(:mod:`.machine_code`) and looks for accesses that no barrier orders (:mod:`.hazards`).
"""
