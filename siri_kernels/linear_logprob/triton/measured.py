"""Where a fused kernel was measured faster than its parts: the only calls that take it unasked.

Whatever no line speaks of is not measured, and its parts are launched apart. To add a line, run
``python -m bench.gpu`` on the GPU, commit its results, and name their file. A kernel is right
before it is fast: a result counts only where its checks against float64 passed.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Measured(NamedTuple):
    """One class of calls in which a fused kernel was faster.

    Attributes:
        kernel: "forward", "forward, multicast" where it is faster still with two programs to a tile
            of the weight, or "gradient" of recomputed tokens.
        gpu: a part of the GPU's name.
        triton: the version of Triton, without its last number.
        top_entries: whether forward saves top entries; False for "gradient".
        options: whether there is a bias, a softcap or a temperature for each token.
        tokens: the least number of tokens. At fewer, both forms wait for the host.
        source: the result file.
    """

    kernel: str
    gpu: str
    triton: str
    top_entries: bool
    options: bool
    tokens: int
    source: str


_LEAST = "bench/results/nvidia-h200/fused_least.json"
# At 2048 tokens, apart over fused at D 1536 and 3584: 1.03 and 1.01 without top entries, 1.01 and
# 1.00 with them, 1.24 and 1.03 with backward, 1.05 and 1.00 where all tokens are recomputed. At
# 1024 tokens all but one are below 1. With a temperature for each token 16 384 tokens take 1.60
# bare products, apart 1.94; a bias and a softcap were not timed.
MEASURED = (
    Measured("forward", "H200", "3.6", True, False, 2048, _LEAST),
    Measured("forward", "H200", "3.6", False, False, 2048, _LEAST),
    Measured("gradient", "H200", "3.6", False, False, 2048, _LEAST),
)


def least_tokens(kernel: str, gpu: str, version: str, top_entries: bool, options: bool) -> float:
    """Tokens from which on a kernel was measured faster; infinity where nothing was measured.

    Args:
        kernel: as :class:`Measured` has it.
        gpu: the GPU's name.
        version: of Triton.
        top_entries: as :class:`Measured` has it.
        options: the same.
    """
    found = [
        line.tokens
        for line in MEASURED
        if (line.kernel, line.top_entries, line.options) == (kernel, top_entries, options)
        and line.gpu in gpu
        and version.startswith(line.triton + ".")
    ]
    return min(found, default=math.inf)
