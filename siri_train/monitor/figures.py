"""The figures that a terminal shows of a step: values with their units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from siri_train.monitor.run_logs import is_number, reported


class Figure(NamedTuple):
    """One line of the display.

    Args:
        value: what the history is drawn from; None where it does not exist in this step.
        text: how the newest one is written, with its unit.
        scale: how the lowest and the highest value of the history are written.
    """

    value: float | None
    text: str
    scale: Callable[[float], str] = "{:.3g}".format


def figures(row: Mapping[str, Any], evaluations: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """The figures of a training step for the display.

    Args:
        row: the step's record in ``metrics.jsonl``; a key that it lacks is left out.
        evaluations: records of ``eval.jsonl``; the last one is shown until the next.
    """
    shown = {
        name: _figure(row[key], unit, write)
        for name, (key, unit, write) in _SHOWN.items()
        if key in row
    }
    if evaluations:
        last = evaluations[-1]
        held_out = reported(last)["accuracy"][-1]
        figure = Figure(held_out, f"{_percent(held_out)} at step {last['step']}", _percent)
        if "accuracy" not in shown:
            return {**shown, "held-out": figure}
        place = list(shown).index("accuracy") + 1
        items = list(shown.items())
        shown = dict([*items[:place], ("held-out", figure), *items[place:]])
    return shown


def _figure(value: Any, unit: str, write: Callable[[float], str]) -> Figure:
    if not is_number(value, finite=True):
        return Figure(None, "-" if value is None else str(value), write)
    return Figure(value, f"{write(value)} {unit}".rstrip(), write)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


_SHOWN: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "cap": ("cap", "tokens", "{:,.0f}".format),
    "length": ("response_len_mean", "tokens", _amount),
    "truncated": ("truncated_frac", "", _percent),
    "reward": ("reward_mean", "", "{:.3f}".format),
    "accuracy": ("accuracy", "", _percent),
    "entropy": ("entropy", "nats", "{:.3f}".format),
    "wait words": ("backtrack_per_1k", "per 1000 tokens", _amount),
    "rollout": ("rollout_tokens_per_s", "tokens/s", "{:,.0f}".format),
    "train": ("train_tokens_per_s", "tokens/s", "{:,.0f}".format),
    "memory": ("peak_memory_gb", "GiB peak", "{:.2f}".format),
}
"""Name in the terminal to the key of ``metrics.jsonl``, the unit, and how a value is written."""

KEYS = {name: key for name, (key, _, _) in _SHOWN.items()}
"""Name in the terminal to the key of ``metrics.jsonl``. ``held-out`` is of ``eval.jsonl``."""

_MOST_BUDGETS = 4


def evaluation_parts(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """A record of ``eval.jsonl`` for the terminal: of each set its name and what is said of it.

    A long list of budgets is shown in part: both ends and some between them.

    Args:
        row: the record. The name of questions without a set's name is empty.
    """
    sets = row.get("sets") or {"": row}
    budgets = row["budgets"]
    count = min(len(budgets), _MOST_BUDGETS)
    chosen = sorted({round(i * (len(budgets) - 1) / max(count - 1, 1)) for i in range(count)})
    return [
        (
            name,
            [
                *(
                    f"{_percent(one['accuracy'][i])} within {budgets[i]:,}{' tokens' * (i == 0)}"
                    for i in chosen
                ),
                f"mean {_amount(one['tokens'])} tokens",
            ],
        )
        for name, one in sets.items()
    ]
