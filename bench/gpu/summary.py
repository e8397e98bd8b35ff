"""The table at the end of a run's output."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gpu.records import Record
from bench.gpu.verdicts import judged, numbers

MOST = 8000
SHOWN = (
    "rates.copy", "rates.addmm_fp32", "rates.product_bf16.16384x", "rates.product_fp32.16384x",
    "rates.best_tile.", "head.ms.", "head.forward_lists/product", "head.both/product",
    "head.dense/product", "worst.both/product", "head.launches.both", "head.gap_ms.both",
    "head.fold_ms.", "head.overlap_gain.", "head.tile_ms.", "fused.forward", "fused.both",
    "step.tokens_per_s",
    "step.mfu", "step.peak_gib", "step.head_share", "losses.loss.us.", "losses.advantages.us.",
    "peer.",
)  # fmt: skip


def summary(records: Sequence[Record]) -> str:
    """Parts, what is wrong, figures, predictions; at most :data:`MOST` characters."""
    lines = ["", "part           status       s  why"]
    for name, end in {r["part"]: r for r in records if r["what"] == "end"}.items():
        lines.append(f"{name:14} {end['status']:11} {end.get('seconds', 0):4.0f}"
                     f"  {str(end.get('why', ''))[:110]}".rstrip())  # fmt: skip
    wrong = [r for r in records if r["what"] == "check" and not r["ok"]]
    failed = [r for r in records if r["what"] == "failed"]
    lines += [f"WRONG {r['name']} {str(r.get('wrong') or r.get('why') or '')[:100]}" for r in wrong]
    lines += [f"FAILED {r['part']}: {r['step']}: {str(r['why'])[:140]}" for r in failed]
    tests = [r for r in records if r["what"] == "tests"]
    for r in tests:
        lines.append(f"tests {r.get('run', '')}: {r['passed']} passed, {r['failed']} failed, "
                     f"{r['skipped']} skipped")  # fmt: skip
    lines += [f"  {r['test']}" for r in records if r["what"] == "test_failed"][:25]
    lines += _figures(records)
    for verdict in judged(records):
        if verdict.values:  # python -m bench report says why the others have none
            p, value = verdict.prediction, verdict.values[-1]
            told = f"{p.name}: {value:.3g}, predicted {p.low:.3g} to {p.high:.3g}"
            lines.append(f"{verdict.outcome:6} {told} {verdict.text}".rstrip())
    return _shortened(lines)


def _figures(records: Sequence[Record]) -> list[str]:
    found = numbers(records)
    cells = [
        f"{key} {found[key][-1]['value']:.4g}"
        for start in SHOWN
        for key in found
        if key.startswith(start)
    ]
    lines, line = [], ""
    for cell in cells:
        if len(line) + len(cell) > 110:
            lines, line = [*lines, line], ""
        line = f"{line}; {cell}" if line else cell
    return [*lines, line] if line else lines


def _shortened(lines: list[str]) -> str:
    """As many whole lines as there is room for."""
    kept, size = [], 0
    for line in lines:
        size += len(line) + 1
        if size > MOST:
            kept.append("(the rest: python -m bench report)")
            break
        kept.append(line)
    return "\n".join(kept)
