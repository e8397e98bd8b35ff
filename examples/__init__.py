"""RL loops with the kernels in four frameworks; ``python -m examples.plain_pytorch`` and so on."""
