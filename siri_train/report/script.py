"""The page's one script and one style sheet, joined from small files when the page is written.

The parts of the script share one function's scope and run in this order. So a part may use what an
earlier one has defined, and a function of a later one once the page is loaded.
"""

from __future__ import annotations

from .markup import source

SCRIPTS = (
    "start.js",
    "numbers.js",
    "axis.js",
    "picture.js",
    "tip.js",
    "charts.js",
    "pointer.js",
    "range.js",
    "plane.js",
    "tools.js",
    "responses.js",
    "remember.js",
    "refresh.js",
)
"""Files of ``templates/script/``."""

STYLES = ("style.css", "content.css")
"""Files of ``templates/``, in order."""


def script() -> str:
    """The whole script; the policy of the page names its hash."""
    parts = [source(f"script/{name}") for name in SCRIPTS]
    end = "document.documentElement.classList.add('live');\n"
    return "'use strict';\n(() => {\n" + "\n".join([*parts, end]) + "})();\n"


def waiting() -> str:
    """The script of a page that waits for a run: it only asks whether there is one."""
    begin = "const field = (id) => document.getElementById(id);\n"
    return "'use strict';\n(() => {\n" + begin + source("script/refresh.js") + "})();\n"


def style() -> str:
    """The whole style sheet; the policy of the page names its hash."""
    return "".join(source(name) for name in STYLES)
