"""The calls with a screen whose kernels are compiled (see :mod:`siri_kernels.aot.calls`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from siri_kernels.aot.calls import DTYPES, ODD, QWEN, Call, named, pairwise, tensor
from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.record import FakeGPU

# There the hardware has no 8-bit floats.
_WITHOUT_FLOAT8 = ("sm_80",)


def screened_calls() -> Iterator[Call]:
    """Forward of ``linear_logprob`` with a screen, for each part: tiles are a part's own."""
    from siri_kernels import linear_logprob

    def call(options: dict[str, Any], part: str) -> Call:
        def make(gpu: FakeGPU) -> None:
            size, dtype = options["size"], options["dtype"]
            gpu.counts = None
            linear_logprob(
                tensor(size.tokens, size.width, dtype=dtype, grad=True),
                tensor(size.vocabulary, size.width, dtype=dtype, grad=True),
                tensor(size.tokens, dtype=torch.int64),
                bias=tensor(size.vocabulary, dtype=dtype) if options["bias"] else None,
                # One for all tokens or one each: the kernels are the same.
                temperature=tensor(size.tokens) if options["softcap"] else 0.7,
                softcap=30.0 if options["softcap"] else None,
                tail=options["tail"],
                screen=options["screen"],
                backend="triton",
            )

        return Call(named("linear_logprob", options), make, (part,))

    flag = (False, True)
    table: dict[str, tuple[Any, ...]] = {
        "size": (QWEN, ODD),
        "dtype": DTYPES,
        "screen": ("int8", "fp8"),
        "bias": flag,
        "softcap": flag,
        "tail": (1e-2, 0.0),
    }
    rows = pairwise(table)
    for part in PARTS:
        for options in rows:
            if part.name in _WITHOUT_FLOAT8:
                options = options | {"screen": "int8"}
            yield call(options, part.name)
