"""Predictions against figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.gpu.predictions import PREDICTIONS, Prediction
from bench.gpu.records import Record

NONE = "not measured"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a prediction.

    Args:
        prediction: that was compared.
        outcome: "hit", "missed" or "not measured".
        text: by how much it was missed, or why there is no figure.
        values: the figure in each call.
    """

    prediction: Prediction
    outcome: str
    text: str
    values: tuple[float, ...] = ()


def numbers(records: Iterable[Record]) -> dict[str, list[Record]]:
    """All figures by name, in the order they were measured."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["what"] == "number" and isinstance(record.get("value"), (int, float)):
            found.setdefault(record["key"], []).append(record)
    return found


def judged(
    records: Sequence[Record], predictions: Iterable[Prediction] = PREDICTIONS
) -> list[Verdict]:
    """A verdict of each prediction; those for another GPU are not measured.

    Where both calls measured a figure, the last one is used.
    """
    figures, gpu = numbers(records), gpu_name(records)
    ended = {r["part"]: r for r in records if r["what"] == "end"}
    verdicts = []
    for prediction in predictions:
        if not prediction.key or prediction.device not in gpu:
            why = prediction.why or f"for an {prediction.device}"
            verdicts.append(Verdict(prediction, NONE, why))
            continue
        found = figures.get(prediction.key)
        if not found:
            verdicts.append(Verdict(prediction, NONE, _why(prediction.key, ended)))
            continue
        values = tuple(float(record["value"]) for record in found)
        verdicts.append(Verdict(prediction, *_compared(prediction, values[-1]), values))
    return verdicts


def gpu_name(records: Iterable[Record]) -> str:
    """The GPU's name from the driver or torch; empty: none."""
    key = {"environment": "gpu", "device": "device"}
    names = [r[key[r["what"]]] for r in records if r["what"] in key and r.get(key[r["what"]])]
    return str(names[-1]) if names else ""


def _compared(prediction: Prediction, value: float) -> tuple[str, str]:
    low, high = prediction.low, prediction.high
    if low <= value <= high:
        return "hit", ""
    bound, word = (low, "below") if value < low else (high, "above")
    gap = abs(value - bound)
    size = f"{gap / abs(bound):.0%}" if bound else f"{gap:.3g}"
    return "missed", f"{size} {word} the range"


def _why(key: str, ended: dict[str, Record]) -> str:
    part = {"worst": "head"}.get(key.partition(".")[0], key.partition(".")[0])
    end = ended.get(part)
    if end is None:
        return f"part {part} did not run"
    if end["status"] == "done":
        return f"part {part} is done without this figure"
    return f"part {part}: {end['status']}" + (f", {end['why']}" if end.get("why") else "")
