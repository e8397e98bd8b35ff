"""``linear_logprob`` as Triton kernels and what launches them."""
