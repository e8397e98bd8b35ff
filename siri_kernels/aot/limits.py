"""What a kernel may cost; ``python -m siri_kernels.aot --check`` fails above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from siri_kernels.aot.compiler import Report


class Limit(NamedTuple):
    """Limits of the variants of ``kernel`` that have these constants, on these parts.

    Nothing may have a stack (so nothing spills) or more shared memory than its part; this adds to
    it. ``load`` holds where every argument in ``rows`` is a multiple of 16.
    """

    kernel: str
    constants: dict[str, Any]
    parts: tuple[str, ...] = ("sm_80", "sm_90", "sm_100")
    registers: int | None = None
    per_element: float | None = None  # instructions on the common path
    load: int | None = None  # bytes of the widest global load
    rows: tuple[str, ...] = ()


LIMITS: tuple[Limit, ...] = (
    Limit("fold_kernel", {"LISTS": False, "SOFTCAP": False}, ("sm_90",), per_element=25),
    Limit("fold_kernel", {"LISTS": True}, registers=128),
    Limit("fold_kernel", {}, load=16, rows=("logits", "stride")),
    Limit("gradient_kernel", {"SOFTCAP": False}, ("sm_90",), per_element=25),
    Limit("gradient_kernel", {}, load=16, rows=("logits", "stride")),
)


def faults_of(report: Report) -> list[str]:
    """What breaks a limit: kernel, number, limit."""
    found = []
    if report.stack:
        found.append(f"{report.kernel}: {report.stack} bytes of stack a thread, limit 0")
    if report.shared > report.part.shared:
        found.append(
            f"{report.kernel}: {report.shared} bytes of shared memory, limit {report.part.shared}"
        )
    for limit in LIMITS:
        if limit.kernel != report.kernel or report.part.name not in limit.parts:
            continue
        if any(report.constants.get(k, v) != v for k, v in limit.constants.items()):
            continue
        if limit.registers is not None and report.registers > limit.registers:
            found.append(f"{report.kernel}: {report.registers} registers, limit {limit.registers}")
        each = report.per_element
        if limit.per_element is not None and each is not None and each > limit.per_element:
            found.append(
                f"{report.kernel}: {each:.1f} instructions an element, limit {limit.per_element:g}"
            )
        if limit.load is not None and set(limit.rows) <= report.aligned:
            widest = max(report.counts.loads, default=0)
            if widest < limit.load:
                found.append(
                    f"{report.kernel}: loads of {widest} bytes at most, limit {limit.load}"
                )
    return found
