"""``linear_logprob`` in plain PyTorch operations: any device, any dtype."""
