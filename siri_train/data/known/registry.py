"""The sets that ``siri-train data get`` knows: one entry each.

Imports nothing of the project, so that messages about a missing file can name the command.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple


class KnownSet(NamedTuple):
    """A public set.

    Attributes:
        name: of the command, and of the file or folder that it becomes.
        hub: the data set of the hub that is read where the user names none.
        config: its configuration; None: it has one only.
        splits: our split -> the hub's split. A set that becomes one file has the split ``""``.
        files: for each of our splits, the file to download from the hub by hand.
        expected: rows that were in each split when the entry was written.
        licence: as the card of the set states it.
        question: names of the question's column, tried in this order.
        answer: names of the answer's column.
        solution: names of the solution's column; there may be none.
        answer_after: the answer is what follows this mark; the column is kept whole.
        code: rows stay as they are: problems for ``format: code``.
        training: meant to train on. Repeats and questions of :data:`HELD_OUT` are left out of it.
        validation: questions that are set apart by default.
    """

    name: str
    hub: str
    splits: dict[str, str]
    files: dict[str, str]
    expected: dict[str, int]
    licence: str
    config: str | None = None
    question: tuple[str, ...] = ("problem", "question", "prompt", "Problem", "Question")
    answer: tuple[str, ...] = (
        *("answer", "final_answer", "expected_answer", "Answer"),
        *("reward_model.ground_truth", "solution"),
    )
    solution: tuple[str, ...] = ("solution", "Solution")
    answer_after: str | None = None
    code: bool = False
    training: bool = False
    validation: int = 0

    @property
    def several(self) -> bool:
        """Whether it becomes a folder of splits, not one file."""
        return "" not in self.splits or self.validation > 0


_PARQUET = "data/train-00000-of-00001.parquet"

KNOWN: dict[str, KnownSet] = {
    entry.name: entry
    for entry in (
        KnownSet(
            "deepscaler",
            "agentica-org/DeepScaleR-Preview-Dataset",
            {"": "train"},
            {"": "deepscaler.json"},
            {"": 40315},
            "MIT",
            training=True,
            validation=512,
        ),
        KnownSet(
            "aime24",
            "HuggingFaceH4/aime_2024",
            {"": "train"},
            {"": _PARQUET},
            {"": 30},
            "none on the card (problems of the MAA)",
        ),
        KnownSet(
            "aime25",
            "math-ai/aime25",
            {"": "test"},
            {"": "test.jsonl"},
            {"": 30},
            "see the card (problems of the MAA)",
        ),
        KnownSet(
            "amc",
            "AI-MO/aimo-validation-amc",
            {"": "train"},
            {"": _PARQUET},
            {"": 83},
            "see the card (problems of the MAA)",
        ),
        KnownSet(
            "math500",
            "HuggingFaceH4/MATH-500",
            {"": "test"},
            {"": "test.jsonl"},
            {"": 500},
            "MIT (MATH)",
        ),
        KnownSet(
            "gsm8k",
            "openai/gsm8k",
            {"train": "train", "test": "test"},
            {
                "train": "main/train-00000-of-00001.parquet",
                "test": "main/test-00000-of-00001.parquet",
            },
            {"train": 7473, "test": 1319},
            "MIT",
            config="main",
            answer=("answer", "solution"),
            solution=(),
            answer_after="####",
        ),
        KnownSet(
            "humaneval",
            "openai/openai_humaneval",
            {"": "test"},
            {"": "openai_humaneval/test-00000-of-00001.parquet"},
            {"": 164},
            "MIT",
            code=True,
        ),
        KnownSet(
            "mbpp",
            "google-research-datasets/mbpp",
            {name: name for name in ("train", "validation", "test", "prompt")},
            {
                name: f"full/{name}-00000-of-00001.parquet"
                for name in ("train", "validation", "test", "prompt")
            },
            {"train": 374, "validation": 90, "test": 500, "prompt": 10},
            "CC-BY-4.0",
            config="full",
            code=True,
        ),
    )
}
"""All sets by name."""

HELD_OUT = ("aime24", "aime25", "amc", "math500")
"""Test sets whose questions are left out of training sets."""


def where_it_lies(entry: KnownSet, folder: Path) -> dict[str, Path]:
    """The files that a set becomes.

    Args:
        entry: the set.
        folder: that holds all sets.

    Returns:
        For each of its splits, with ``validation`` where one is set apart, the file.
    """
    if not entry.several:
        return {"": folder / f"{entry.name}.jsonl"}
    names = ["train", "validation"] if entry.validation else list(entry.splits)
    return {name: folder / entry.name / f"{name}.jsonl" for name in names}


def get_hint(path: Path) -> str:
    """The command that makes a missing file, where it is one of a known set.

    Args:
        path: of a recipe, that does not exist.

    Returns:
        ``"; siri-train data get aime24 makes it"``, or ``""``.
    """
    for entry in KNOWN.values():
        for file in where_it_lies(entry, Path()).values():
            for end in {file, file.parent if entry.several else file}:
                parts = end.parts
                if path.parts[-len(parts) :] != parts:
                    continue
                folder = str(Path(*path.parts[: -len(parts)]))
                to = "" if folder == "data" else f" --to {shlex.quote(folder)}"
                return f"; siri-train data get {entry.name}{to} makes it"
    return ""
