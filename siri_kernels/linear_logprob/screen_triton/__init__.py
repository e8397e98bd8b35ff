"""The screened head on GPUs: its 8-bit rows, products and joins in Triton."""
