"""Predictions from before a GPU measured anything; ``python -m bench report`` compares them.

A prediction is never changed after it was measured: a new one with its own source is added.
"""

from __future__ import annotations

from dataclasses import dataclass

REVIEW = "review of the kernels before their first GPU, version 66b247c"
DESIGN = "the library's precision contract"
MEASURED_FIRST = "measured in the first run (first/gpu.md); the switch went, as nothing was gained"
NEW = "recomputed for the kernels of 2026-11-26 from their instructions and bytes (LOG.md)"


@dataclass(frozen=True)
class Prediction:
    """A range for a measured figure.

    Args:
        name: what is predicted, for a reader.
        key: of the figure, as the parts write it; empty: nothing can measure it any more.
        low, high: the range, ends included.
        source: who said so, and of what.
        device: part of the GPU's name that it is for; empty: any.
        why: it cannot be measured, where there is no key.
    """

    name: str
    key: str
    low: float
    high: float
    source: str = REVIEW
    device: str = ""
    why: str = ""


def about(value: float, share: float = 0.05) -> tuple[float, float]:
    """The range around a value that was given without one."""
    return value * (1 - share), value * (1 + share)


def _corrected() -> list[Prediction]:
    """Ratios to one bare bf16 product at 0.5 nats, with the lean softmax and weight kernels."""
    rows = (
        ("forward, D 1536", "head.forward_lists/product_bf16.1536", 1.41, 1.33),
        ("forward, D 3584", "head.forward_lists/product_bf16.3584", 1.19, 1.15),
        ("forward and backward, D 1536", "head.both/product_bf16.1536", 1.63, 1.55),
        ("forward and backward, D 3584", "head.both/product_bf16.3584", 1.4, 1.4),
    )
    return [
        Prediction(f"{name} / product", key, *about(value), REVIEW + ", corrected", device)
        for name, key, h100, h200 in rows
        for device, value in (("H100", h100), ("H200", h200))
    ]


def _before() -> list[Prediction]:
    """Ratios of the first kernels."""
    rows = (
        ("forward, D 1536", 1.55, 1.85),
        ("forward, D 3584", *about(1.33)),
        ("forward and backward, D 1536", *about(2.0)),
        ("forward and backward, D 3584", *about(1.6)),
        ("worst case, D 1536", *about(5.7)),
        ("worst case, D 3584", *about(5.1)),
    )
    why = "the kernels of version 66b247c were rewritten before a GPU ran them"
    return [Prediction(f"{name} / product", "", low, high, why=why) for name, low, high in rows]


def _recomputed() -> list[Prediction]:
    """The same from the machine code of the new kernels: ranges for H100 and H200."""
    rows: tuple[tuple[str, str, tuple[float, float], tuple[float, float]], ...] = (
        (
            "forward without lists, D 1536",
            "head.forward/product_bf16.1536",
            (1.31, 1.47),
            (1.22, 1.37),
        ),
        ("forward, D 1536", "head.forward_lists/product_bf16.1536", (1.33, 1.50), (1.24, 1.40)),
        ("forward, D 3584", "head.forward_lists/product_bf16.3584", (1.14, 1.22), (1.10, 1.18)),
        ("forward and backward, D 1536", "head.both/product_bf16.1536", (1.45, 1.70), (1.35, 1.60)),
        ("forward and backward, D 3584", "head.both/product_bf16.3584", (1.22, 1.36), (1.18, 1.32)),
        ("worst case, D 1536", "worst.both/product_bf16.1536", (4.9, 5.6), (4.6, 5.3)),
        ("worst case, D 3584", "worst.both/product_bf16.3584", (4.3, 4.8), (4.2, 4.7)),
    )
    ratios = [
        Prediction(f"{name} / product", key, *span, NEW, device)
        for name, key, h100, h200 in rows
        for device, span in (("H100", h100), ("H200", h200))
    ]
    # Bytes: 9.96 GB are read at 2.9 to 3.2 and at 4.1 to 4.6 TB/s. Instructions would take 1.3 ms.
    folds = [
        Prediction("ms of all folds without lists, D 1536", "head.fold_ms.forward.1536", *span, NEW,
                   device)
        for device, span in (("H100", (3.1, 3.5)), ("H200", (2.15, 2.5)))
    ]  # fmt: skip
    # Counted: on an H100 a tile that fits the L2 saves the cost of starting 228 more products and
    # softmax kernels, and 4 % more; on an H200 as much as that cost.
    tiles = [
        Prediction(f"forward with lists in tiles of 32 MiB / of 128 MiB, D {dim}", "", *span, NEW,
                   device, MEASURED_FIRST)
        for dim, device, span in (
            (1536, "H100", (0.94, 1.04)), (1536, "H200", (0.97, 1.06)),
            (3584, "H100", (0.96, 1.02)), (3584, "H200", (0.98, 1.03)),
        )
    ]  # fmt: skip
    return [*ratios, *folds, *tiles]


SECOND = "from the first run and the fused gradient's first times (docs/log, 2026-11-27)"


def _second_run() -> list[Prediction]:
    """For an H200 with Triton 3.6, after the host's work was cut and the gradient fused."""
    rows = (
        ("forward without lists, D 1536", "head.forward/product_bf16.1536", 1.06, 1.18),
        ("forward, D 1536", "head.forward_lists/product_bf16.1536", 1.20, 1.32),
        ("forward, D 3584", "head.forward_lists/product_bf16.3584", 1.12, 1.18),
        ("forward and backward, D 1536", "head.both/product_bf16.1536", 1.45, 1.65),
        ("forward and backward, D 3584", "head.both/product_bf16.3584", 1.25, 1.42),
        ("every token recomputed, D 1536", "fused.worst fused/product_bf16.1536", 4.0, 4.2),
        ("every token recomputed, D 3584", "fused.worst fused/product_bf16.3584", 4.1, 4.25),
        ("uniform at the default tail, D 1536",
         "fused.worst with top entries fused/product_bf16.1536", 4.1, 4.4),
        ("uniform at the default tail, D 3584",
         "fused.worst with top entries fused/product_bf16.3584", 4.15, 4.4),
    )  # fmt: skip
    return [
        Prediction(f"{name} / product", key, low, high, SECOND, "H200")
        for name, key, low, high in rows
    ]


SCREEN = "computed for the screened head of 2026-11-28 from instructions and bytes (docs/log)"


def _screened() -> list[Prediction]:
    """Scoring with an 8-bit screen, copy made before, 16 384 tokens at 0.5 nats."""
    rows = (
        ("screened forward, D 1536 / product", "screen.score int8/product_bf16.1536", 0.75, 1.2),
        ("screened forward, D 3584 / product", "screen.score int8/product_bf16.3584", 0.6, 0.9),
        ("screened, both, D 1536 / product", "screen.both int8/product_bf16.1536", 1.0, 1.5),
        ("fp32: unscreened / screened forward", "screen.gain.score.int8.1536.fp32", 4, 20),
        ("share of screened tokens, int8", "screen.screened_frac.int8", 0.95, 1.0),
    )
    return [Prediction(name, key, low, high, SCREEN, "H") for name, key, low, high in rows]


FUSED_SOURCE = REVIEW + ", fused kernel"
PREDICTIONS: tuple[Prediction, ...] = (
    *_before(),
    *_corrected(),
    *_recomputed(),
    *_second_run(),
    *_screened(),
    Prediction("worst case, D 1536 / product", "worst.both/product_bf16.1536", *about(5.1),
               REVIEW + ", corrected"),
    Prediction("worst case, D 3584 / product", "worst.both/product_bf16.3584", *about(4.5),
               REVIEW + ", corrected"),
    Prediction("a fold of a tile beside the next product saves", "", -0.01, 0.04,
               why=MEASURED_FIRST),
    Prediction("addmm adds a product to fp32 results in place", "rates.addmm_fp32", 1, 1),
    Prediction("addmm in place / product and addition", "rates.addmm_over_mm_add", 0.3, 0.9),
    Prediction("reading fp32 logits of 128 MiB tiles, D 1536", "rates.read_share.8192x4096.1536",
               *about(0.31, 0.2), device="H100"),
    Prediction("reading fp32 logits of 128 MiB tiles, D 1536", "rates.read_share.8192x4096.1536",
               *about(0.22, 0.2), device="H200"),
    Prediction("fused forward, D 1536 / product", "fused.forward fused/product_bf16.1536",
               1.10, 1.25, FUSED_SOURCE + ", without multicast of the weight"),
    Prediction("fused forward, D 3584 / product", "fused.forward fused/product_bf16.3584",
               1.05, 1.15, FUSED_SOURCE + ", without multicast of the weight"),
    Prediction("fused forward with multicast, D 1536 / product",
               "fused.forward multicast/product_bf16.1536", 1.03, 1.10,
               FUSED_SOURCE + ", from Triton 3.8 on"),
    Prediction("fused, forward and backward, D 1536 / product",
               "fused.both fused/product_bf16.1536", 1.3, 1.5, FUSED_SOURCE),
    Prediction("fused, forward and backward, D 3584 / product",
               "fused.both fused/product_bf16.3584", 1.3, 1.4, FUSED_SOURCE),
    Prediction("repeats that differ, of 30", "repeats.differing.16384x1536x151936 lists", 0, 0),
    Prediction("repeats that differ, of 30, all rows recomputed",
               "repeats.differing.16384x1536x151936 dense", 0, 0),
    Prediction("d_hidden's error / eager bf16's", "values.d_hidden.lists.9000x1536x151936 bfloat16",
               0, 0.25, DESIGN),
    Prediction("d_weight's error / eager bf16's", "values.d_weight.lists.9000x1536x151936 bfloat16",
               0, 0.25, DESIGN),
    Prediction("share of rows recomputed at 0.5 nats", "head.dense_row_frac.1536", 0, 0.02,
               "SmolLM2's own answers: 0 at 0.39 nats, 0.005 at 0.66"),
    Prediction("entries kept a row at 0.5 nats", "head.entries_kept.1536", 15, 80,
               "SmolLM2's own answers: 19 at 0.39 nats, 37 at 0.66; made-up inputs: about 60"),
    # 16 384 x 151 936 x 4 bytes are 9.96 GB; reads run at nine tenths of the data sheet's rate.
    Prediction("ms of all folds without lists, D 1536", "head.fold_ms.forward.1536", 3.0, 4.3,
               "computed: the logits' bytes over 3.35 TB/s, at best 90 % of it", "H100"),
    Prediction("ms of all folds without lists, D 1536", "head.fold_ms.forward.1536", 2.1, 3.0,
               "computed: the logits' bytes over 4.8 TB/s, at best 90 % of it", "H200"),
)  # fmt: skip
