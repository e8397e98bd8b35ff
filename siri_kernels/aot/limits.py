"""Limits of what kernels cost; ``python -m siri_kernels.aot --check`` fails above them."""

from __future__ import annotations

from typing import Any, NamedTuple

from siri_kernels.aot.report import Report


class Limit(NamedTuple):
    """Limits of the variants of ``kernel`` that have these constants, on these parts.

    Nothing may have more shared memory than its part; nor a stack, so nothing spills, but for what
    a limit with ``stack`` allows. With ``aligned``: where these arguments are multiples of 16.
    """

    kernel: str
    constants: dict[str, Any]
    parts: tuple[str, ...] = ("sm_80", "sm_90", "sm_100")
    registers: int | None = None
    path: int | None = None  # instructions on the common path
    stack: int = 0  # bytes a thread
    per_element: float | None = None  # of those, times threads / BLOCK
    load: int | None = None  # bytes of the widest global load
    store: int | None = None  # and store
    aligned: tuple[str, ...] = ()


_ROWS = ("logits", "stride")
# Stored row after row: else the row's stride is 1, and no multiple of 16.
_WEIGHT = ("weight", "weight_row", "width", "out")
_HIDDEN = ("hidden", "hidden_row", "width")
_GRADIENT = (*_ROWS, "out", "out_stride", "width")
# First the design's limits, then what was measured and 15 % more (the largest of a kernel's
# variants, of three parts with Triton 3.7.1 and of sm_90 with 3.6.0 and 3.9.0). A stack: to
# fit one more program on a multiprocessor the assembler spills two to four registers of 64 to 168,
# in one or two variants of these kernels, with some versions.
LIMITS: tuple[Limit, ...] = (
    # The design allows 25 an element. The loop that saves top entries of a tile's parts is counted,
    # though most tiles skip it.
    Limit("online_softmax_kernel", {"TOP_ENTRIES": False, "SOFTCAP": False}, per_element=31),
    Limit(
        "online_softmax_kernel",
        {"TOP_ENTRIES": True, "SOFTCAP": False, "BIAS": False},
        per_element=25,
        aligned=_ROWS,
    ),
    Limit(
        "online_softmax_kernel",
        {"TOP_ENTRIES": False, "SOFTCAP": False, "BIAS": False},
        per_element=17,
        aligned=_ROWS,
    ),
    Limit("online_softmax_kernel", {}, registers=128),
    Limit("online_softmax_kernel", {"SOFTCAP": True}, ("sm_80", "sm_100"), stack=16),
    Limit("online_softmax_kernel", {}, load=16, aligned=_ROWS),
    Limit("gradient_kernel", {"SOFTCAP": False}, registers=146, per_element=30),
    Limit("gradient_kernel", {"SOFTCAP": False}, registers=82, per_element=15, aligned=_GRADIENT),
    Limit("gradient_kernel", {}, registers=192, load=16, aligned=_ROWS),
    Limit("gradient_kernel", {}, store=16, aligned=_GRADIENT),
    Limit("batch_kernel", {}, registers=100, path=690),
    Limit("bias_kernel", {}, registers=40, path=170),
    Limit("entries_kernel", {}, registers=46, path=202),
    Limit("first_kernel", {}, registers=80, path=305),
    Limit("group_kernel", {}, registers=216, path=2890, stack=8),
    Limit("hidden_kernel", {}, registers=138, path=440),
    Limit("hidden_kernel", {}, registers=106, path=367, load=16, store=16, aligned=_WEIGHT),
    Limit("join_kernel", {}, registers=83, path=237),
    Limit("join_kernel", {"TOP_ENTRIES": True}, load=8),
    Limit("loss_kernel", {}, registers=192, path=2835, stack=8),
    Limit("piece_kernel", {}, registers=100, path=455),
    Limit("piece_kernel", {}, registers=83, path=362, load=16, store=16, aligned=_HIDDEN),
    Limit("rank_kernel", {}, registers=71, path=305),
    Limit("reduce_kernel", {}, registers=40, path=333),
    Limit("rule_kernel", {}, registers=62, path=670),
    Limit("scan_kernel", {}, registers=210, path=3618, stack=8),
    Limit("sequence_kernel", {}, registers=89, path=735),
    Limit("split_kernel", {}, registers=128, path=2150),
    Limit("statistics_kernel", {}, registers=138, path=1215),
    Limit("target_kernel", {}, registers=60, path=337),
    Limit("target_kernel", {}, registers=46, path=288, aligned=("hidden_row", "weight_row")),
    # The screened head. A program of its product kernels takes all registers that there are.
    Limit("screen_kernel", {"BOXES": False}, load=16),
    Limit("screen_kernel", {"IDS": 256}, ("sm_90",), stack=88),
    Limit("screen_kernel", {"IDS": 256, "SOFTCAP": False}, ("sm_90",), path=6700),
    Limit("exact_kernel", {}, load=16, aligned=("hidden_row", "weight_row")),
    Limit("exact_kernel", {"IDS": 256}, ("sm_90",), stack=24),
    Limit("exact_kernel", {"IDS": 256, "SOFTCAP": True}, ("sm_100",), stack=136),
    Limit("exact_kernel", {"IDS": 256, "SOFTCAP": False}, ("sm_90",), path=4790),
    Limit("screened_join_kernel", {}, registers=189, path=2700),
    Limit("screened_join_kernel", {"DRAWN": True}, ("sm_100",), stack=8),
    Limit("screened_join_kernel", {"DRAWN": True}, load=16, aligned=("weight_row", "width")),
    Limit("fingerprint_kernel", {}, registers=150, path=1380),
    Limit("fingerprint_kernel", {}, registers=88, path=435, load=16, aligned=("row_stride",)),
    Limit("mean_kernel", {}, registers=85, path=330),
    Limit("numbers_kernel", {}, registers=135, path=2960),
    Limit("outliers_kernel", {}, registers=50, path=200, store=16),
    Limit("rows_kernel", {}, path=2145),
    Limit("rows_kernel", {}, load=16, aligned=("row_stride",)),
    Limit("rows_kernel", {}, ("sm_80",), stack=16),  # Triton 3.6
    Limit("rows_kernel", {}, ("sm_90", "sm_100"), registers=175),
    Limit("sums_kernel", {}, registers=175, path=835),
    Limit("sums_kernel", {}, registers=71, path=380, load=16, aligned=("row_stride",)),
    Limit("weight_kernel", {}, registers=147, path=1060),
    Limit("weight_kernel", {}, registers=110, path=896, load=16, store=16, aligned=_HIDDEN),
)


def faults_of(report: Report) -> list[str]:
    """Numbers above a limit (kernel, number, limit), then the hazards, in words."""
    found = []
    limits = [limit for limit in LIMITS if _holds_for(limit, report)]
    stack = max((limit.stack for limit in limits), default=0)
    if report.stack > stack:
        found.append(f"{report.kernel}: {report.stack} bytes of stack a thread, limit {stack}")
    if report.shared > report.part.shared:
        found.append(
            f"{report.kernel}: {report.shared} bytes of shared memory, limit {report.part.shared}"
        )
    for limit in limits:
        if limit.registers is not None and report.registers > limit.registers:
            found.append(f"{report.kernel}: {report.registers} registers, limit {limit.registers}")
        path = report.counts.path
        if limit.path is not None and path > limit.path:
            found.append(
                f"{report.kernel}: {path} instructions on the common path, limit {limit.path}"
            )
        each = report.per_element
        if limit.per_element is not None and each is not None and each > limit.per_element:
            found.append(
                f"{report.kernel}: {each:.1f} instructions an element, limit {limit.per_element:g}"
            )
        for what, least, widths in (
            ("loads", limit.load, report.counts.loads),
            ("stores", limit.store, report.counts.stores),
        ):
            widest = max(widths, default=0)
            if least is not None and widest < least:
                found.append(f"{report.kernel}: {what} of {widest} bytes at most, limit {least}")
    return [*found, *report.hazards]


def _holds_for(limit: Limit, report: Report) -> bool:
    same = all(report.constants.get(k) == v for k, v in limit.constants.items())
    fits = set(limit.aligned) <= report.aligned
    return same and fits and limit.kernel == report.kernel and report.part.name in limit.parts
