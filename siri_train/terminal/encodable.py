"""Text in the characters that a stream's encoding has."""

from __future__ import annotations

import sys
from typing import Any

_ASCII: dict[int, int | str] = {**str.maketrans("┤│└─┬▼▲█–−…·", "||+-+vA#--.*"), ord("±"): "+-"}


def encodable(text: str, stream: Any = None) -> str:
    r"""``text`` as the stream can show it: drawn with ASCII characters where its encoding must.

    What has no such character is written as an escape (``\u540d``).

    Args:
        text: with box drawing, braille dots or marks.
        stream: default: standard output.
    """
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        plain = text.translate(_ASCII)
        # Braille holds the curve: any dot is a star.
        drawn = "".join("*" if "\u2800" < c <= "\u28ff" else c for c in plain)
        try:
            return drawn.encode(encoding, "backslashreplace").decode(encoding)
        except (UnicodeError, LookupError):
            return drawn.encode("ascii", "backslashreplace").decode()
    return text
