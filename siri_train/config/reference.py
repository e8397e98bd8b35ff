"""``python -m siri_train.config.reference``: every key of a recipe, for people and for the shell.

It writes docs/configuration.md and keys.json. The part of the page between the two marks is made
from the sections of ``run.py`` alone: types and bounds from the annotations, defaults from the
fields, sentences from the docstrings. keys.json is what completion by TAB reads. A test fails when
one of them is not current.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from siri_train.config import plugins, values
from siri_train.config import text as text_rules
from siri_train.config.explain import alternatives, annotation_of, bare, section_of, takes
from siri_train.config.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
KEYS = Path(__file__).with_name("keys.json")
BEGIN = "<!-- keys: written by python -m siri_train.config.reference -->"
END = "<!-- end of keys -->"

# What a rule for text takes, in words; other text is just text.
_TEXT = {
    text_rules.expand: "a path",
    values._device: "a device",
    values._gpus: "GPUs",
    values._folder_name: "a name",
    values._project: "a project's name",
    values._url: "an address",
    plugins.load_plugin: "a module's name",
}


def reference(root: type[BaseModel] = RunConfig) -> str:
    """The tables of all keys in Markdown, a heading and a table for each section.

    Args:
        root: the section that the keys are counted from.
    """
    parts = []
    for key, section, fields in _sections(root, ""):
        title = f"### {key}" if key else "### The run"
        about = _sentence(section.__doc__ or "")
        rows = [f"| `{name}` | {_takes(f)} | {_default(f)} | {_about(f)} |" for name, f in fields]
        table = ["| key | takes | default | what it is |", "|---|---|---|---|", *rows]
        parts.append("\n".join([title, "", about, "", *table, ""]))
    return "\n".join(parts)


def filled(page: str) -> str:
    """The page with its generated part as it is now.

    Args:
        page: Markdown that has both marks.

    Raises:
        ValueError: a mark is missing, stands twice, or they stand in the wrong order.
    """
    if not (page.count(BEGIN) == page.count(END) == 1 and page.index(BEGIN) < page.index(END)):
        raise ValueError(f"takes a page with {BEGIN} once and {END} once behind it")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{rest.split(END)[1]}"


def keys_text(root: type[BaseModel] = RunConfig) -> str:
    """keys.json as it is now: each key that takes a value, with the values that can be listed.

    Args:
        root: the section that the keys are counted from.
    """
    lines = []
    for names, field in (item for _, _, fields in _sections(root, "") for item in fields):
        takes_path = text_rules.expand in _rules(annotation_of(field))
        listed = "path" if takes_path else _choices(annotation_of(field))
        if _inner(field) is None or listed:
            lines += [f"{json.dumps(n)}: {json.dumps(listed)}" for n in names.split("`, `")]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _choices(annotation: Any) -> list[str]:
    """The values that can be listed; none for numbers and free text."""
    found: list[str] = []
    for part in alternatives(annotation):
        kind = bare(part)
        if get_origin(kind) is Literal:
            found += map(str, get_args(kind))
        elif kind is bool:
            found += ["true", "false"]
        elif kind is str:
            found += [n for r in _rules(part) if isinstance(r, values.OneOf) for n in r.names()]
    inner = section_of(annotation)
    if (found or inner) and type(None) in alternatives(annotation):
        found.append("null")
    return found


def _sections(
    section: type[BaseModel], key: str
) -> Iterator[tuple[str, type[BaseModel], list[tuple[str, FieldInfo]]]]:
    """(key, section, fields with their whole keys), the outermost first, each section once."""
    prefix = f"{key}." if key else ""
    yield key, section, [(prefix + name, field) for name, field in section.model_fields.items()]
    below: dict[type[BaseModel], list[str]] = {}
    for name, field in section.model_fields.items():
        inner = _inner(field)
        if inner is not None:
            place = prefix + name + (".N" if _is_list(field) else "")
            below.setdefault(inner, []).append(place)
    for inner, places in below.items():
        if len(places) == 1:
            yield from _sections(inner, places[0])
        else:  # data.train.N and data.eval.N take the same
            fields = [
                (f"{'`, `'.join(f'{place}.{name}' for place in places)}", field)
                for name, field in inner.model_fields.items()
            ]
            yield " and ".join(places), inner, fields


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(bare(part)) is list for part in alternatives(annotation_of(field)))


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field is, or a list of which it is."""
    annotation = annotation_of(field)
    for part in map(bare, alternatives(annotation)):
        if get_origin(part) is list:
            return section_of(get_args(part)[0])
    return section_of(annotation)


def _takes(field: FieldInfo) -> str:
    annotation = annotation_of(field)
    if _inner(field) is not None:
        words = "a list of sections" if _is_list(field) else "a section"
        null = type(None) in map(bare, alternatives(annotation))
        return f"{words}, below" + (", or null" if null else "")
    words = re.sub(r"(\d)\.0\b", r"\1", takes(annotation))
    for rule in _rules(annotation):
        words = words.replace("text", _TEXT[rule]) if rule in _TEXT else words
    return _cell(words)


def _rules(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, AfterValidator):
        yield annotation.func
    for part in get_args(annotation):
        yield from _rules(part)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        value = [item.model_dump(exclude_defaults=True) for item in value]
    text = json.dumps(value).replace('"', "") if value != "" else "empty"
    return _cell(text if value == "" else f"`{text}`")


def _about(field: FieldInfo) -> str:
    section = _inner(field)
    return _cell(_sentence(field.description or (section.__doc__ if section else "") or ""))


def _sentence(docstring: str) -> str:
    """A docstring in one line of Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(docstring.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, and without a path keys.json; the exit status.

    Args:
        arguments: the page's path, or nothing for docs/configuration.md of this checkout.
    """
    page = Path(arguments[0]) if arguments else PAGE
    try:
        if not arguments:
            KEYS.write_text(keys_text(), encoding="utf-8")
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{page}: {error}; give the page's path, or run this in a checkout", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
