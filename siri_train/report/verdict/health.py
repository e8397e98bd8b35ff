"""Truncation, groups that teach, and sampler against trainer: a line each."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.report.data import Row, number

from .cycles import cycles_of
from .subject import Subject
from .types import Finding
from .words import figure, per_cent

MOST_TRUNCATED = 0.9
"""More truncated responses than this share, in the mean over the last cycle, teach nothing."""
MUCH_TRUNCATED = 0.5
"""More than this share is odd."""
LEAST_TEACHING = 0.1
"""A smaller share of the groups that teach, in the mean over the last cycle, is odd."""
LITTLE_TEACHING = 0.3
"""A smaller share is good only where most of the others are all right: the task is learned."""
MOST_DRIFT, MOST_RATIO = 0.05, 10.0
"""Largest KL between sampler and trainer before an update, in nats, and largest ratio."""


def truncation(subject: Subject) -> Finding:
    """How many responses the cap truncated.

    Args:
        subject: the run.
    """
    rows = _values(subject.run.metrics, "truncated_frac")
    if not rows:
        return _none("truncation", "Truncation")
    late = _last_cycle(subject, rows)
    mean = _mean(late)
    most = max(rows, key=lambda row: row[1])
    figures = {"last_cycle": mean, "most": most[1], "most_at": most[0], "end": rows[-1][1]}
    text = (
        f"The cap truncated {per_cent(mean)} of the responses in the {_part(subject)}, and "
        f"{per_cent(rows[-1][1])} at the last step. The largest share is {per_cent(most[1])}, "
        f"at step {most[0]:,}."
    )
    if mean > MOST_TRUNCATED:
        text += " Nearly every response is truncated: raise schedule.min_len."
        return Finding("truncation", "bad", "Nearly all responses are truncated", text, figures)
    if mean > MUCH_TRUNCATED:
        text += " A response that is truncated before its answer earns nothing."
        title = f"{per_cent(mean)} of the responses truncated, which is much"
        return Finding("truncation", "unclear", title, text, figures)
    return Finding(
        "truncation", "good", f"{per_cent(mean)} of the responses truncated", text, figures
    )


def groups(subject: Subject) -> Finding:
    """How many groups had a signal: neither all right nor all wrong.

    Args:
        subject: the run.
    """
    rows = []
    for row in subject.run.metrics:
        zero, one = number(row.get("groups_all_zero")), number(row.get("groups_all_one"))
        if zero is not None and one is not None:
            rows.append((row["step"], 1 - zero - one, one))
    if not rows:
        return _none("groups", "Groups that teach")
    late = _last_cycle(subject, [row[:2] for row in rows])
    right = _mean(_last_cycle(subject, [(row[0], row[2]) for row in rows]))
    mean = _mean(late)
    figures = {"last_cycle": mean, "all_right": right, "end": rows[-1][1]}
    text = (
        f"In the {_part(subject)} {per_cent(mean)} of the groups had right and wrong answers, "
        f"{per_cent(right)} only right and {per_cent(max(0.0, 1 - mean - right))} only wrong ones. "
        "A group whose answers are all alike teaches nothing."
    )
    if mean < LEAST_TEACHING:
        reason = "harder" if right > 0.5 else "easier"
        text += f" The questions are too {'easy' if right > 0.5 else 'hard'}: take {reason} ones."
        title = f"Few groups teach: {per_cent(mean)}"
        return Finding("groups", "bad", title, text, figures)
    title = f"{per_cent(mean)} of the groups teach"
    if mean < LITTLE_TEACHING and right < 0.5:
        text += " Many questions are too hard: take easier ones, or a larger rollout.group_size."
        title = f"Only {title}"
        return Finding("groups", "unclear", title, text, figures)
    if mean < LITTLE_TEACHING:
        title += f", {per_cent(right)} are all right already"
    return Finding("groups", "good", title, text, figures)


def mismatch(subject: Subject) -> Finding:
    """Whether sampler and trainer agree on the probabilities.

    Args:
        subject: the run.
    """
    drift = _values(subject.run.metrics, "rollout_kl")
    ratio = _values(subject.run.metrics, "rollout_ratio_max")
    if not drift and not ratio:
        return _none("mismatch", "Sampler and trainer")
    at, worst = max(((step, abs(value)) for step, value in drift), key=lambda row: row[1],
                    default=(0, 0.0))  # fmt: skip
    at_ratio, most = max(ratio, key=lambda row: row[1], default=(0, 1.0))
    figures = {
        "rollout_kl": worst if drift else None,
        "rollout_kl_at": at if drift else None,
        "ratio_max": most if ratio else None,
        "ratio_max_at": at_ratio if ratio else None,
    }
    said = []
    if drift:
        said.append(f"at most {figure(worst)} nats apart (KL, step {at:,})")
    if ratio:
        said.append(f"the largest ratio of one token is {figure(most)} (step {at_ratio:,})")
    text = f"Their probabilities of the sampled tokens: {'; '.join(said)}."
    if worst > MOST_DRIFT or most > MOST_RATIO:
        text += " They run different weights, precisions or code; see docs/rollouts.md."
        title = "Sampler and trainer disagree"
        return Finding("mismatch", "bad", title, text, figures)
    return Finding("mismatch", "good", "Sampler and trainer agree", text, figures)


def _values(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    found = [(row["step"], number(row.get(key))) for row in rows]
    return [(step, value) for step, value in found if value is not None]


def _part(subject: Subject) -> str:
    """The rows of `_last_cycle` in words."""
    return "last cycle" if cycles_of(subject) is not None else "last third of the steps"


def _last_cycle(subject: Subject, rows: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The rows of the last cycle's length; of a constant cap those of the last third."""
    cycles = cycles_of(subject)
    last = rows[-1][0]
    length = cycles.length if cycles is not None else max((last + 1) // 3, 1)
    return [row for row in rows if row[0] > last - length]


def _mean(rows: Sequence[tuple[int, float]]) -> float:
    return sum(value for _, value in rows) / len(rows)


def _none(key: str, title: str) -> Finding:
    return Finding(key, "missing", f"{title}: not recorded", "metrics.jsonl does not say.")
