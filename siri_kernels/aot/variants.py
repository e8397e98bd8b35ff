"""The variants that the library's calls launch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from siri_kernels.aot.calls import Call, all_calls
from siri_kernels.aot.parts import PARTS, Part
from siri_kernels.aot.record import FakeGPU, Recorder, Variant


def recorded(
    parts: Sequence[Part] = PARTS, calls: Iterable[Call] | None = None
) -> dict[tuple[str, ...], Variant]:
    """Each once, under its key; ``calls``: None: all that the library is compiled for."""
    recorder = Recorder(parts)
    for call in all_calls() if calls is None else calls:
        chosen = [part for part in parts if call.parts is None or part.name in call.parts]
        for part in chosen if call.parts is not None else [None]:
            gpu = FakeGPU(part)
            with gpu.active(), recorder.recording(call.name, part):
                call.make(gpu)
    return recorder.variants
