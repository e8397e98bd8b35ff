"""Templates of the page: jinja2 with escaping always on, as samples may hold any text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent / "templates"
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def clean(value: object) -> object:
    """``value`` without the characters that are invalid in HTML or reorder their neighbours.

    Numbers become text with one decimal, which is how coordinates are written. Markup that a
    template made passes unchanged.
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return coordinate(value)
    return _UNPRINTABLE.sub("\ufffd", str(value))


def coordinate(value: float) -> str:
    """``value`` with at most one decimal, as the drawings write it.

    Raises:
        ValueError: if it is not finite. No metric reaches a drawing before `number` has refused it.
    """
    if not math.isfinite(value):
        raise ValueError(f"coordinate: got {value}; takes a finite number")
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def fill(name: str, /, **values: Any) -> Markup:
    """Fill in a template of ``templates/``; every value is escaped unless it is markup already.

    Args:
        name: the template's file name.
        values: its variables; a template that uses one that is missing raises.
    """
    return Markup(_templates().get_template(name).render(values))


def source(name: str) -> str:
    """The text of ``templates/name`` as it is: parts of the style sheet and of the script."""
    return (FOLDER / name).read_text(encoding="utf-8")


def fingerprint(text: str) -> str:
    """How a Content-Security-Policy names an inline style or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def data_block(value: object) -> Markup:
    """``value`` as JSON that may stand in a ``<script type="application/json">``.

    ASCII alone, so U+2028 and halves of surrogate pairs are escapes. ``<``, ``>`` and ``&`` are
    escapes too, so nothing in it ends the element or begins a comment.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
