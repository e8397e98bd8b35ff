"""How much of a GPU's data-sheet figures a run gets: every constant of the time model.

Each has its source. ``docs/plan.md`` has the runs that they were fitted to, those that were held
out, and the error on each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """The constants of the time model.

    Args:
        decode_bandwidth: share of the memory bandwidth at which a decoding step reads weights and
            cache. With ``step_overhead`` fitted to vLLM 0.11 with Qwen3-8B on an H100, four
            sequences at a time: 7.4 ms a step.
        step_overhead: seconds of a decoding step of vLLM that no data sheet explains: scheduling,
            launches, sampling, log-probs.
        sequence_overhead: seconds more for each sequence of the batch. Fitted to the 4616 tokens a
            second of vLLM 0.11 with Qwen3-14B on an A100 at 256 sequences.
        eager_layer: seconds of a decoding step and layer of an engine that launches every operation
            from Python, as transformers does: an assumption, about 40 launches of 25 us.
        matmul: share of the peak at which an engine multiplies, in prefill and in large batches.
        training: share of the peak in training, recomputation counted as work. Fitted to the
            training step of this package on an H200 at 8192 tokens with Liger's layers.
        without_fused: the same without Liger's layers.
        link: share of a link's or adapter's bandwidth that collectives get: an assumption.
        exposed: share of the traffic of weights and gradients that is not hidden behind work: an
            assumption.
        sync: seconds of a weight sync besides the copy: the engine sleeps, wakes and loads. An
            assumption, as the next four.
        check: seconds of one process to check an answer.
        update: seconds of a step besides all of that: packing, statistics, files.
        host_link: bytes a second between a GPU and its host, for offloaded optimisers.
        disk: bytes a second of a disk through which weights are handed to a server.
    """

    decode_bandwidth: float = 0.80
    step_overhead: float = 6.5e-3
    sequence_overhead: float = 2.5e-5
    eager_layer: float = 1.0e-3
    matmul: float = 0.60
    training: float = 0.44
    without_fused: float = 0.36
    link: float = 0.7
    exposed: float = 0.3
    sync: float = 6.0
    check: float = 0.02
    update: float = 2.0
    host_link: float = 2e10
    disk: float = 2e9


FAST = Efficiency(step_overhead=1.7e-3)
"""A bare vLLM 0.11, as its benchmarks measure it: the fastest that a run can hope for."""

SLOW = Efficiency(step_overhead=25e-3)
"""The engines inside trainers of early 2025 (vLLM 0.6): fitted to one published step time;
three other runs, which were not used, come out at 0.73 to 1.20 of what they took
(``docs/plan.md``)."""

DEFAULT = Efficiency()
"""Between the two: the geometric mean of their overheads. No run on a current vLLM with all its
figures has been found, so where a run lies between them is not known."""
