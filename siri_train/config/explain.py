"""Describes in words which values a key takes, and in one line an error in a configuration."""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from siri_train.config.values import OneOf
from siri_train.config.yaml_core import is_number
from siri_train.files import printable

_LONGEST = 80
_WORDS = {"yes": "true", "on": "true", "true": "true", "y": "true", "no": "false", "off": "false",
          "false": "false", "n": "false"}  # fmt: skip
# Keys whose values may hold passwords, by their first parts.
_SECRET = (("rollout", "server", "url"), ("rollout", "server", "args"))
# User and password of an address, which may themselves hold / and @; what follows ? and #.
_USER = re.compile(r"//[^\s'\"]*@")
_QUERY = re.compile(r"(//[^\s'\"?#]*[?#])[^\s'\"]+")
_FLAG = re.compile(
    r"(?i)((?:key|token|password|secret|credentials)['\"]?(?:\s*[=:,]\s*|\s+)['\"]?)[^\s'\",\]]+"
)


def masked_value(text: str) -> str:
    """The text with ``***`` for all of an address that may be secret, and behind ``--api-key``.

    :func:`siri_train.config.masked.masked` hides less: it keeps what follows ? and # in an address.
    """
    return _FLAG.sub(r"\1***", _QUERY.sub(r"\1***", _USER.sub("//***@", text)))


def may_be_secret(keys: Sequence[str]) -> bool:
    """Whether what is given at this place may hold a password."""
    return any(tuple(keys[:3]) == secret for secret in _SECRET)


def shown_value(value: Any, keys: Sequence[str] = ()) -> str:
    """A value as YAML writes it, in one short line, without secrets.

    Args:
        value: whatever was given.
        keys: where; a value that may be secret there is only described.
    """
    if may_be_secret(keys):
        if not isinstance(value, str) or keys[2] == "args" or set("@?#") & set(value):
            words = {"str": "text", "list": "a list", "dict": "a mapping"}
            return words.get(type(value).__name__, "a value")
    if isinstance(value, str):
        text = masked_value(repr(value))
    elif isinstance(value, float) and not math.isfinite(value):
        text = {"inf": ".inf", "-inf": "-.inf"}.get(repr(value), ".nan")
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        text = "a number of over 77 digits"
    else:
        try:
            text = masked_value(json.dumps(value, default=repr, ensure_ascii=True))
        except (TypeError, ValueError, RecursionError):
            text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, of the union in an ``Annotated``, or the annotation alone."""
    if get_origin(annotation) is Annotated and get_origin(get_args(annotation)[0]) in _UNIONS:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in _UNIONS:
        return [one for part in get_args(annotation) for one in alternatives(part)]
    return [annotation]


def bare(annotation: Any) -> Any:
    """The annotation without what ``Annotated`` adds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation such as ``SftConfig | None`` allows, if it allows one."""
    for part in map(bare, alternatives(annotation)):
        # Python 3.10 takes list[...] for a type.
        if get_origin(part) is None and isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def item_of(annotation: Any) -> Any:
    """The annotation of a list's or tuple's items; None where it allows neither."""
    for part in map(bare, alternatives(annotation)):
        if get_origin(part) in (list, tuple):
            return get_args(part)[0]
    return None


def annotation_of(field: FieldInfo) -> Any:
    """A field's annotation with its bounds."""
    if not field.metadata:
        return field.annotation
    return Annotated[(field.annotation, *field.metadata)]


def takes(annotation: Any) -> str:
    """The values of an annotation in words: ``a whole number from 1 to 1000000, or null``."""
    extra = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    parts = [bare(part) for part in alternatives(annotation)]
    if len(parts) > 1:
        words = [takes(part) for part in alternatives(annotation) if part is not type(None)]
        words += ["null"] if type(None) in parts else []
        # Bounds beside a union, as Field(None, gt=0), are those of its only number.
        if extra and words and len(words) == 2:
            words[0] = takes(Annotated[(alternatives(annotation)[0], *extra)])
        return ", or ".join(words)
    kind = parts[0]
    bounds = [b for m in extra for b in (m.metadata if isinstance(m, FieldInfo) else (m,))]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(bounds, kind is int)
    if kind is str:
        rules = (getattr(bound, "func", None) for bound in bounds)
        named = next((rule for rule in rules if isinstance(rule, OneOf)), None)
        return "text" if named is None else f"one of {', '.join(named.names())}"
    if get_origin(kind) is list:
        least = next((b.min_length for b in bounds if isinstance(b, MinLen)), 0)
        return f"a list{f' of at least {least}' if least else ''}, each {takes(get_args(kind)[0])}"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))}, each {takes(get_args(kind)[0])}"
    section = section_of(kind)
    if section is not None:
        return f"a section with {', '.join(section.model_fields)}"
    return "a mapping" if get_origin(kind) is dict else "any value"


def at(location: Iterable[str | int], root: type[BaseModel]) -> tuple[list[str], Any]:
    """The keys of a place that pydantic names, and the annotation there.

    Pydantic also names the member of a union that it tried; these names are left out.

    Returns:
        The keys; and the annotation, None for an unknown key, ``Any`` inside a free mapping.
    """
    keys: list[str] = []
    annotation: Any = root
    for part in location:
        section, item = section_of(annotation), item_of(annotation)
        if section is not None and isinstance(part, str):
            field = section.model_fields.get(part)
            if field is None and section is not root and part == section.__name__:
                continue
            keys.append(part)
            annotation = None if field is None else annotation_of(field)
        elif item is not None and str(part).isdecimal():
            keys.append(str(part))
            annotation = item
        elif dict in (get_origin(bare(a)) for a in alternatives(annotation)) or annotation is Any:
            keys.append(str(part))
            annotation = Any
    return keys, annotation


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Everything that pydantic found, in one line: the first in full, the others by key.

    Args:
        error: of ``root.model_validate``.
        root: the section that was validated.
    """
    found: dict[str, str] = {}
    for item in error.errors():
        keys, annotation = at(item["loc"], root)
        found.setdefault(".".join(keys), _explain(item, keys, annotation, root))
    # Each member of a union reports an error: that of the member that got furthest is kept.
    keys_found = [k for k in found if not any(o.startswith(f"{k}.") for o in found if k)]
    first, *others = keys_found
    more = ""
    if others:
        listed = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
        more = f" (and {len(others)} more: {listed})"
    return found[first] + more


def unknown_key(keys: Sequence[str], root: type[BaseModel]) -> str:
    """That there is no such key, with the nearest one or all that are accepted there."""
    *above, last = keys
    _, annotation = at(above, root)
    section = section_of(annotation)
    accepted = list(section.model_fields) if section is not None else []
    near = difflib.get_close_matches(last, accepted, n=1, cutoff=0.4)
    hint = f"did you mean {'.'.join([*above, near[0]])}?" if near else ""
    # Other marks between the keys, as train/steps or train[0]; other case; a prefix, as --train.
    parts = re.findall(r"\w+", ".".join(keys).lower())
    if parts and at(parts, root)[0] == parts and at(parts, root)[1] is not None:
        hint = f"did you mean {'.'.join(parts)}?"
        if "." in last:
            hint = f"write {parts[-1]} in a line of its own below {'.'.join(parts[:-1])}, indented"
    return f"{shown_key(keys)}: unknown key; {hint or 'accepted here: ' + ', '.join(accepted)}"


def shown_key(keys: Sequence[str]) -> str:
    """``a.b.0`` in one short line."""
    text = ".".join(keys)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _explain(item: Any, keys: list[str], annotation: Any, root: type[BaseModel]) -> str:
    key, given = shown_key(keys), item.get("input")
    if item["type"] == "extra_forbidden":
        return unknown_key(keys, root)
    if item["type"] == "missing" and isinstance(given, (list, tuple)):  # a tuple too short
        return _explain({**item, "type": "too_short"}, keys[:-1], at(keys[:-1], root)[1], root)
    if item["type"] == "missing" and annotation is not None and isinstance(given, dict):
        return f"{key}: is missing; takes {takes(annotation)}"
    if item["type"] == "value_error":
        message = printable(" ".join(item["msg"].removeprefix("Value error, ").split()))
        if message.startswith("takes ") and not isinstance(given, (dict, list)):
            return f"{key}: got {shown_value(given, keys)}; {message}"
        section = section_of(annotation)
        if section is not None and message.split(":")[0].split(".")[0] in section.model_fields:
            return f"{key}.{message}" if key else message
        return f"{key}: {message}" if key else message
    takes_instead = f"takes {takes(annotation)}{_remedy(given, annotation)}"
    return f"{key}: got {shown_value(given, keys)}; {takes_instead}"


def _remedy(given: Any, annotation: Any) -> str:
    """How the same is written rightly, where that can be guessed."""
    kinds = [bare(part) for part in alternatives(annotation)]
    if isinstance(given, float) and int in kinds and given.is_integer() and abs(given) < 1e15:
        return f"; write {int(given)}"
    if isinstance(given, (int, float)) and str in kinds:
        return f'; write it in quotes: "{shown_value(given)}"'
    if isinstance(given, str) and {int, float} & set(kinds) and is_number(given.replace("_", "")):
        return f"; write {given.replace('_', '')}, without quotes"
    if isinstance(given, str) and bool in kinds and given.lower() in _WORDS:
        return f"; write {_WORDS[given.lower()]}"
    if given is None and section_of(annotation) is not None:
        return "; to keep its defaults, leave it out"
    choices = [str(c) for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
    if isinstance(given, str) and choices:
        near = difflib.get_close_matches(given.strip().lower(), choices, n=1, cutoff=0.5)
        return f"; did you mean {near[0]}?" if near else ""
    return ""


def _range(bounds: Sequence[Any], whole: bool) -> str:
    low = high = ""
    for bound in bounds:
        if isinstance(bound, Ge):
            low = f" from {bound.ge}"
        elif isinstance(bound, Gt):
            low = f" from {bound.gt + 1}" if whole else f" above {bound.gt}"  # type: ignore
        elif isinstance(bound, Le):
            high = f" to {bound.le}"
        elif isinstance(bound, Lt):
            high = f" to below {bound.lt}" if "above" not in low else f" and below {bound.lt}"
    if high and not low.startswith(" from"):
        high = high.replace(" to ", " up to " if "below" not in high else " ", 1)
    return low + high


_UNIONS = (Union, types.UnionType)
