"""How many questions a run has: read where they are, known by the data set's name, or assumed."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass, field

from siri_train.config.data import SourceConfig
from siri_train.config.run import RunConfig
from siri_train.data.questions import Question
from siri_train.data.row_files import HUB, expanded
from siri_train.data.sources import read_source

ASSUMED = 100
"""Held-out questions of a source that is neither here nor known."""


@dataclass(frozen=True)
class KnownSet:
    """A public data set.

    Args:
        name: what ``siri-train data get`` calls it.
        pattern: of the paths and hub names that mean it, in lower case without ``-`` and ``_``.
        rows: questions by split; "" where a split is not told apart.
    """

    name: str
    pattern: str
    rows: dict[str, int]


KNOWN = (
    KnownSet("deepscaler", r"deepscaler", {"": 40315, "validation": 512}),
    KnownSet("aime24", r"aime(20)?24", {"": 30}),
    KnownSet("aime25", r"aime(20)?25", {"": 30}),
    KnownSet("amc23", r"amc(20)?23", {"": 40}),
    KnownSet("amc", r"\bamc\b|aimovalidationamc", {"": 83}),
    KnownSet("math500", r"math500", {"": 500}),
    KnownSet("gsm8k", r"gsm8k", {"train": 7473, "test": 1319}),
    KnownSet("humaneval", r"humaneval", {"": 164}),
    KnownSet("mbpp", r"mbpp", {"train": 374, "test": 500, "validation": 90}),
)
"""Questions of public sets: DeepScaleR-Preview and the rest as their own cards count them; the AMC
set is that of AMC 2022 and 2023 with 83 questions, amc23 the one with 40. DeepScaleR has no
validation split of its own: the packaged recipes set 512 of its questions aside."""


@dataclass(frozen=True)
class Questions:
    """Numbers of questions.

    Args:
        train: to train on; None: not known.
        evaluation: held-out ones by set; "" where sets have no names.
        assumed: sources whose number is a guess, as they stand in the recipe.
    """

    train: int | None
    evaluation: dict[str, int]
    assumed: tuple[str, ...] = ()

    def graded(self, config: RunConfig) -> int:
        """Responses of one evaluation.

        Args:
            config: the recipe; a set may have a number of samples of its own.
        """
        own = {s.name or "": s.samples for s in config.data.eval}
        return sum(
            n * (own.get(name) or config.eval.samples) for name, n in self.evaluation.items()
        )

    @property
    def held_out(self) -> int:
        """Held-out questions of all sets together."""
        return sum(self.evaluation.values())


@dataclass
class Read:
    """The result of reading the sources.

    Args:
        train, evaluation: the questions of the sources that are here.
        counts: of all sources.
        not_here: a line for every source that is not, with what would bring it.
    """

    train: list[Question] = field(default_factory=list)
    evaluation: list[Question] = field(default_factory=list)
    counts: Questions = field(default_factory=lambda: Questions(0, {}))
    not_here: list[str] = field(default_factory=list)


def read_what_is_here(config: RunConfig, *, only_missing: bool = False) -> Read:
    """Read the sources that are on this machine; count the others by their name.

    Args:
        config: the recipe; its ``data.train`` and ``data.eval`` are used.
        only_missing: read nothing; only find out what is not here.

    Raises:
        ConfigError: a source is here and malformed, see
            :func:`siri_train.data.sources.read_source`.
    """
    read = Read()
    total: int | None = 0
    sets: dict[str, int] = {}
    assumed: list[str] = []
    for key, split in (("train", "train"), ("eval", "test")):
        for number, source in enumerate(getattr(config.data, key)):
            named = f"data.{key}.{number}"
            lacking = _lacking(source, named)
            questions: list[Question] = []
            count: int | None = None
            if lacking is None and not only_missing:
                questions = read_source(source, split, named)
                count = len(questions)
            else:
                count = known_rows(source, split)
            if lacking is not None:
                read.not_here.append(lacking)
            if key == "train":
                read.train += questions
                total = None if total is None or count is None else total + count
                continue
            read.evaluation += questions
            if count is None:
                count = min(ASSUMED, source.limit or ASSUMED)
                assumed.append(named)
            name = source.name or ""
            sets[name] = sets.get(name, 0) + count
    read.counts = Questions(total, sets, tuple(assumed))
    return read


def known_rows(source: SourceConfig, default_split: str) -> int | None:
    """Questions of a source by the name of its data set; None: the set is not known.

    Args:
        source: an entry of ``data.train`` or ``data.eval``.
        default_split: where the source names none.
    """
    if source.kind in ("reasoning_gym", "embedded"):
        return source.size
    known = known_set(source)
    if known is None:
        return None
    split = source.split or default_split
    rows = known.rows.get(split, known.rows.get("", 0))
    rows = max(0, rows - source.offset)
    return rows if source.limit is None else min(rows, source.limit)


def known_set(source: SourceConfig) -> KnownSet | None:
    """The public data set that a source's paths name; None: no known one."""
    for path in _paths(source):
        text = re.sub(r"[-_]", "", path.lower())
        for known in KNOWN:
            if re.search(known.pattern, text):
                return known
    return None


def _paths(source: SourceConfig) -> list[str]:
    return [source.path] if isinstance(source.path, str) else list(source.path)


def _lacking(source: SourceConfig, named: str) -> str | None:
    """Why a source cannot be read here, with the remedy; None: it can."""
    if source.kind == "reasoning_gym":
        if importlib.util.find_spec("reasoning_gym") is not None or not source.required:
            return None
        return f"{named}: reasoning_gym is not installed; pip install 'siri-kernels[gym]'"
    if source.kind != "file":
        return None
    paths = _paths(source)
    local = [path for path in paths if not path.startswith(HUB)]
    if any(os.path.exists(expanded(path)) for path in local):
        return None
    known = known_set(source)
    get = f"siri-train data get {known.name}" if known is not None else "put the file there"
    if local:
        return f"{named}: {local[0]} is not here; {get}"
    return f"{named}: {paths[0]} is not looked up by a plan; {get}, and name the file in path"
