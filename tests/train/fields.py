"""Every key of the configuration, by introspection, with values that fit and values that do not."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from siri_train.config.run import RunConfig

# What a section needs beside the key that is set in it.
NEEDED: dict[str, dict[str, Any]] = {
    "model.scratch": {},
    "model.lora": {},
    "sft": {},
    "loss.rollout_correction": {},
    "loss.compression": {},
    "loss.expansion": {},
    "data.train.0": {"kind": "embedded", "size": 64},
    "data.eval.0": {"kind": "embedded", "size": 16, "seed": 1},
}


def kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without what ``Annotated`` adds."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in kinds(part)]
    return [annotation]


def every_field(
    section: type[BaseModel] = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """(key, field) of every key, sections themselves and items 0 of lists of sections included."""
    for name, field in section.model_fields.items():
        key = prefix + name
        yield key, field
        for kind in kinds(field.annotation):
            inner = get_args(kind)[0] if get_origin(kind) is list else kind
            below = f"{key}.0." if get_origin(kind) is list else f"{key}."
            if get_origin(inner) is None and isinstance(inner, type):
                if issubclass(inner, BaseModel):
                    yield from every_field(inner, below)


FIELDS = dict(every_field())


def allows_null(field: FieldInfo) -> bool:
    """Whether the key takes null."""
    return NoneType in kinds(field.annotation)


def bounds(field: FieldInfo) -> list[tuple[type, float | None, float | None, bool, bool]]:
    """Bounds of each number of a key: type, lower and upper bound, and whether these are out."""
    found = []

    def look(annotation: Any, metadata: list[Any]) -> None:
        if get_origin(annotation) is Annotated:
            inner, *more = get_args(annotation)
            return look(inner, metadata + more)
        if get_origin(annotation) in (Union, UnionType, list, tuple):
            for part in get_args(annotation):
                look(part, metadata)
            return None
        if annotation in (int, float):
            flat = [m for d in metadata for m in (d.metadata if isinstance(d, FieldInfo) else [d])]
            low = next((m for m in flat if hasattr(m, "ge") or hasattr(m, "gt")), None)
            high = next((m for m in flat if hasattr(m, "le") or hasattr(m, "lt")), None)
            found.append(
                (
                    annotation,
                    getattr(low, "ge", getattr(low, "gt", None)),
                    getattr(high, "le", getattr(high, "lt", None)),
                    hasattr(low, "gt"),
                    hasattr(high, "lt"),
                )
            )
        return None

    look(field.annotation, list(field.metadata))
    return found


def set_at(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set one value in what a recipe says, with what else its section needs; returns ``raw``."""
    node: Any = raw
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1]):
        here = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            node = node[int(part)]
        else:
            if node.get(part) is None:
                node[part] = NEEDED.get(here, {})
                if f"{here}.0" in NEEDED:
                    node[part] = [dict(NEEDED[f"{here}.0"])]
                elif here in NEEDED:
                    node[part] = dict(NEEDED[here])
            node = node[part]
    node[parts[-1]] = value
    if key.startswith("loss.rollout_correction"):
        raw["loss"]["old_logprobs"] = "recompute"
    return raw
