"""A test bed of bad inputs: each must give one line that names the thing, and write nothing.

    python -m tests.train.bad_inputs [FAMILY ...]

runs all families (or those named) and prints every input that is answered wrongly.
"""
