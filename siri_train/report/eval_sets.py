"""Which runs of a page were evaluated on the same questions, so that their points compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from siri_train.config.base import ConfigError
from siri_train.config.yaml_core import read_yaml

from .questions import Records
from .records import Run, RunFolder


@dataclass(frozen=True)
class EvalSet:
    """Runs whose evaluations compare.

    Attributes:
        runs: their places on the page, ascending.
        text: the set in words; runs of another set have another place in the list, so the text
            may be the same where only the questions differ.
    """

    runs: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class _Asked:
    fingerprint: str | None
    questions: int | None
    set: str | None
    source: Any


def eval_sets(folder: RunFolder, records: dict[str, Records]) -> list[EvalSet]:
    """The runs that have evaluations, by what they were asked in the last of them.

    Two runs were asked the same if the fingerprints of their questions are equal. Where one has no
    record of its questions, their number, the set's name and ``data.eval`` of the recipes, as far
    as both say them, have to be equal.

    Args:
        folder: as it was read.
        records: its records of questions, see `all_records`.

    Returns:
        The sets in the order of their first runs; a run stands in one of them.
    """
    found: list[list[tuple[int, _Asked]]] = []
    for place, run in enumerate(folder.runs):
        if not run.evals:
            continue
        asked = _asked(run, records.get(run.name, {}))
        same = (some for some in found if all(_same(asked, other) for _, other in some))
        group = next(same, None)
        if group is None:
            found.append([(place, asked)])
        else:
            group.append((place, asked))
    return [
        EvalSet(tuple(place for place, _ in some), _text(some[0][1], number))
        for number, some in enumerate(found, start=1)
    ]


def _asked(run: Run, records: Records) -> _Asked:
    last = run.evals[-1]
    record = records.get(last.step)
    try:
        config = read_yaml(run.config or "")
    except ConfigError:
        config = None
    data = config.get("data") if isinstance(config, dict) else None
    source = data.get("eval") if isinstance(data, dict) else None
    print_ = None if record is None else record.fingerprint
    return _Asked(print_, last.questions, last.set, source)


def _same(one: _Asked, two: _Asked) -> bool:
    if one.fingerprint is not None and two.fingerprint is not None:
        return one.fingerprint == two.fingerprint
    pairs = (
        (one.questions, two.questions),
        (one.set, two.set),
        (one.source, two.source),
    )
    return all(a is None or b is None or a == b for a, b in pairs)


def _text(asked: _Asked, number: int) -> str:
    name = f", {asked.set}" if asked.set else ""
    count = f", {asked.questions:,} questions" if asked.questions is not None else ""
    return f"Evaluation set {number}{name}{count}"
