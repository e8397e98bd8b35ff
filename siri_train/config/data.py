"""The configuration of questions: ``data``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from siri_train.config.base import Section
from siri_train.config.values import (
    Line,
    Seed,
    SetName,
    Text,
    Tokens,
    UserPath,
    Word,
    check_tree,
)


class SourceConfig(Section):
    """One source of questions."""

    kind: Literal["embedded", "file", "reasoning_gym", "embedded_code"]
    """embedded: a task of this package; file: ``path``; reasoning_gym: questions that this
    package generates; embedded_code: a few problems whose answer is a program."""
    format: Literal["answers", "code"] = "answers"
    """file: answers: columns of a question and its answer; code: problems of HumanEval or MBPP,
    for ``reward.verifier: code``."""
    name: SetName | None = None
    """``data.eval`` only: the set that the questions belong to. Sources of one name are one set;
    every set has figures of its own (docs/evaluation.md). null: all sources are one set."""
    samples: int | None = Field(None, gt=0, le=2**16)
    """``data.eval`` only: responses to each question, for a set that needs more or fewer than the
    others; the same for all sources of a set. null: ``eval.samples``."""
    path: UserPath | list[UserPath] = ""
    """JSONL, Parquet, a folder with SPLIT.jsonl, or ``hub:NAME``; of a list, the first found."""
    split: Word | None = None
    """Which split of ``path`` to read; null: train for ``data.train``, test for ``data.eval``."""
    question_field: Word = "question"
    """Column of the question; dots descend into objects."""
    answer_field: Word = "answer"
    """Column of the answer; dots descend into objects."""
    answer_after: Text | None = None
    """The answer is what follows this mark in ``answer_field`` (GSM8K: ``####``)."""
    solution_field: Word | None = None
    """Worked solution, for the supervised stage (GSM8K: ``answer``)."""
    limit: int | None = Field(None, gt=0, le=10**9)
    """file and embedded_code: read at most this many data rows; null: all."""
    offset: int = Field(0, ge=0, le=10**9)
    """file and embedded_code: skip this many data rows first."""
    task: Line = ""
    """reasoning_gym: the task's name; embedded: arithmetic (the demo's; also where empty) or
    search, in which trying again pays."""
    size: int = Field(1000, gt=0, le=10**6)
    """reasoning_gym and embedded: how many questions to generate."""
    seed: Seed = 0
    """reasoning_gym and embedded: seed of the generator. Train and eval must differ."""
    params: dict[str, Any] = {}
    """reasoning_gym and embedded: parameters of the generator."""
    required: bool = True
    """false: leave the source out, with a notice, when the package it needs is missing."""

    @field_validator("params")
    @classmethod
    def _plain_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_tree(value)
        for name in ("task", "size", "seed", "held_out", "progress"):
            if name in value:
                raise ValueError(f"{name} is not a parameter; it stands beside params or is fixed")
        return value

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        paths = [self.path] if isinstance(self.path, str) else self.path
        if self.kind == "file" and not (paths and all(path.strip() for path in paths)):
            raise ValueError("a source of kind file needs path, and none that is empty")
        if self.kind != "file" and self.format != "answers":
            raise ValueError("format is of a source of kind file")
        if self.kind == "reasoning_gym" and not self.task:
            raise ValueError("a source of kind reasoning_gym needs task")
        return self


class DataConfig(Section):
    """Questions and how they are put to the model."""

    train: list[SourceConfig] = Field(default=[SourceConfig(kind="embedded")], min_length=1)
    """Sources of the questions to train on."""
    eval: list[SourceConfig] = Field(
        default=[SourceConfig(kind="embedded", seed=1, size=512)], min_length=1
    )
    """Sources of the held-out questions."""
    template: Literal["chat", "plain"] = "plain"
    """chat: the tokenizer's chat template; plain: the text as it is."""
    system: Text | None = None
    """System message; with plain a paragraph before the question. null: the template's own."""
    instruction: Text | None = None
    """Appended to every question; the default of chat models is DeepScaleR's boxed instruction."""
    max_prompt_len: Tokens = 64
    """Longer prompts are refused before the run starts, by name."""

    @model_validator(mode="after")
    def _sets_are_whole(self) -> DataConfig:
        for number, source in enumerate(self.train):
            if source.name is not None:
                raise ValueError(
                    f"train.{number}.name ({source.name}): only sources of data.eval form sets; "
                    "remove it"
                )
            if source.samples is not None:
                raise ValueError(
                    f"train.{number}.samples ({source.samples}): only sources of data.eval have "
                    "samples; training takes rollout.group_size responses; remove it"
                )
        unnamed = [i for i, source in enumerate(self.eval) if source.name is None]
        if unnamed and len(unnamed) < len(self.eval):
            raise ValueError(
                f"eval.{unnamed[0]} has no name, but others have one: give every source of "
                "data.eval a name, or none"
            )
        first: dict[str | None, int] = {}
        for number, source in enumerate(self.eval):
            other = first.setdefault(source.name, number)
            if source.samples != self.eval[other].samples:
                values = [_shown(self.eval[i].samples) for i in (number, other)]
                where = f"the set {source.name}" if source.name else "one set (none has a name)"
                raise ValueError(
                    f"eval.{number}.samples ({values[0]}) and eval.{other}.samples ({values[1]}) "
                    f"are of {where}, which has one number of samples: give both the same, or "
                    "names of their own"
                )
        return self

    @property
    def set_names(self) -> list[str]:
        """The names of the evaluation sets, in the order of ``eval``; empty without names."""
        return list(dict.fromkeys(source.name for source in self.eval if source.name is not None))


def _shown(samples: int | None) -> str:
    return "null" if samples is None else str(samples)
