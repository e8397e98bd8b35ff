"""The variants that the library's calls launch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from siri_kernels.aot import calls as plain
from siri_kernels.aot.calls import Call
from siri_kernels.aot.parts import PARTS, Part
from siri_kernels.aot.record import FakeGPU, Recorder, Variant
from siri_kernels.aot.screened_calls import screened_calls


def all_calls() -> Iterator[Call]:
    """All calls that the library is compiled for."""
    yield from plain.linear_logprob_calls()
    yield from plain.fused_join_calls()
    yield from screened_calls()
    yield from plain.selective_logprob_calls()
    yield from plain.group_advantages_calls()
    yield from plain.policy_loss_calls()


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
