"""The kinds of value that keys of the configuration take: their types, their bounds, their text.

Every number has two bounds. The upper ones are far above what is used in training, and low enough
that neither torch nor the operating system nor a library fails with an error of its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from siri_train.config.text import expand, not_empty, one_line, writable

SEED_MAX = 2**32 - 1
"""The largest seed that numpy takes.

Seeds of steps are ``seed * 1_000_003 + step`` and more. They then stay below 2**63, the bound of
torch's generators and of vLLM.
"""

_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?", re.ASCII)
_GPUS = re.compile(r"[\w-]+(,[\w-]+)*", re.ASCII)  # numbers, or names as GPU-... and MIG-...
_HOST = re.compile(r"(?=.{1,253}$)[a-z\d_-]{1,63}(\.[a-z\d_-]{1,63})*\.?", re.ASCII)  # lower case
_WANDB_REFUSES = set("/\\#?%:")

Steps = Annotated[int, Field(gt=0, le=1_000_000)]
StepsOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
"""A number of steps where 0 says never or none."""
Tokens = Annotated[int, Field(gt=0, le=2**24)]
Rows = Annotated[int, Field(gt=0, le=2**20)]
"""Questions, sequences or requests."""
Seed = Annotated[int, Field(ge=0, le=SEED_MAX)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]
GradClip = Annotated[float, Field(gt=0, le=1e9)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]  # a list is what YAML has
Minutes = Annotated[float, Field(ge=0.001, le=7 * 24 * 60)]


def _device(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise ValueError("takes auto, cpu, cuda, cuda:N, mps, xpu or xpu:N")
    return name


def _gpus(text: str) -> str:
    if not _GPUS.fullmatch(text):
        raise ValueError('takes numbers or names of GPUs with commas between, as "1,2"')
    return text


def _folder_name(name: str) -> str:
    if "/" in one_line(name) or name.startswith((".", "~")) or not 0 < len(name.encode()) <= 200:
        raise ValueError(
            "takes a name that is usable for a folder: 1 to 200 bytes, no / in it, not . or ~ first"
        )
    return name


def _set_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError("takes the name of a set: at most 64 letters, digits, . _ or -")
    return name


def _alarm_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ValueError("takes the name of an alarm: at most 64 letters, digits, _ or -")
    return name


def _token_groups(groups: dict[str, Any]) -> dict[str, Any]:
    """Refuses by hand: the types in a mapping have no keys that a message could name."""
    if len(groups) > 32:
        raise ValueError(f"has {len(groups)} groups; takes at most 32")
    for name, words in groups.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError(
                f"{name!r} is no name of a group; takes at most 64 letters, digits, . _ or -"
            )
        if not isinstance(words, list) or not 0 < len(words) <= 64:
            got = f"{len(words)} of them" if isinstance(words, list) else repr(words)
            raise ValueError(f"{name} takes a list of 1 to 64 words, got {got}")
        for word in words:
            if not (isinstance(word, str) and any(map(str.isalnum, word)) and len(word) <= 64):
                raise ValueError(
                    f"{name}: {word!r} is no word; takes words and phrases of at most 64 "
                    "characters with a letter or a digit in them (a number in quotes)"
                )
            writable(word)
        if len({" ".join(word.lower().split()) for word in words}) < len(words):
            raise ValueError(f"{name} holds a word twice (case does not matter); takes it once")
    size = sum(len(word) for words in groups.values() for word in words)
    if size > 2048:
        raise ValueError(f"has words of {size} characters in all; takes at most 2048")
    return {name: [" ".join(word.split()) for word in words] for name, words in groups.items()}


def _project(name: str) -> str:
    not_empty(one_line(name))
    if _WANDB_REFUSES & set(name) or len(name) > 128:
        raise ValueError(r"takes the name of a project: 1 to 128 characters, none of / \ # ? % :")
    return name


def _url(url: str) -> str:
    """Refuses without repeating the address: it may hold a password."""
    form = "takes http://HOST:PORT or https://HOST:PORT"
    if "@" in url:  # anywhere: passwords hold slashes
        raise ValueError(
            f"{form}, without user and password, which would be shown; a key of the server goes "
            "into the environment variable VLLM_API_KEY"
        )
    if "?" in url or "#" in url:
        raise ValueError(
            f"{form}, without ? and #; a key of the server goes into the environment variable "
            "VLLM_API_KEY"
        )
    try:
        parts = urlsplit(one_line(url))
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        raise ValueError(f"{form}, with a port from 1 to 65535") from error
    if port == 0:
        raise ValueError(f"{form}, with a port from 1 to 65535")
    if parts.scheme not in ("http", "https") or not (":" in host or _HOST.fullmatch(host)):
        raise ValueError(form)
    if not re.fullmatch(r"[\w/.~-]*", parts.path, re.ASCII):
        raise ValueError(f"{form}, with a path of letters, digits and / . ~ - _ if there is one")
    return url


@dataclass(frozen=True)
class OneOf:
    """A validator of text that must be one of some names, which are looked up at validation.

    ``Literal`` needs its names when a section is defined. This validator calls ``names`` when a
    recipe gives the key. So there is one list of names, in the package that defines them, and a
    recipe without the key does not import that package.

    Args:
        names: returns the accepted names.
    """

    names: Callable[[], Collection[str]]

    def __call__(self, value: str) -> str:
        """The value. Raises ValueError with all names, and the nearest one, if it is none."""
        accepted = list(self.names())
        if value in accepted:
            return value
        near = difflib.get_close_matches(value.strip().lower(), accepted, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"takes one of {', '.join(accepted)}{hint}")


Text = Annotated[str, AfterValidator(writable)]
"""A text of any number of lines."""
Line = Annotated[str, AfterValidator(one_line)]
Word = Annotated[str, AfterValidator(one_line), AfterValidator(not_empty)]
UserPath = Annotated[str, AfterValidator(expand)]
"""A path, a hub id or ``hub:NAME``; ``~`` at its beginning is expanded."""
Device = Annotated[str, AfterValidator(_device)]
Gpus = Annotated[str, AfterValidator(_gpus)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
TokenGroups = Annotated[dict[str, Any], AfterValidator(_token_groups)]
"""Words or phrases by the name of their group."""
SetName = Annotated[str, AfterValidator(_set_name)]
AlarmName = Annotated[str, AfterValidator(_alarm_name)]
"""Whether there is such an alarm is checked later: plug-ins add to them."""
Project = Annotated[str, AfterValidator(_project)]
Url = Annotated[str, AfterValidator(_url)]


def check_tree(value: object, depth: int = 0) -> None:
    """Refuse, in values without a type of their own, what JSON and YAML cannot hold.

    Args:
        value: numbers, text, null, lists and mappings of them.
        depth: of the nesting so far.

    Raises:
        ValueError: not finite, unwritable text, a key that is no text, or nested over 20 deep.
    """
    if depth > 20:
        raise ValueError("is nested more than 20 deep")
    if isinstance(value, str):
        writable(value)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, (int, float)):
        if not abs(value) < 2**63:  # NaN is not below either
            raise ValueError("takes finite numbers below 2**63")
    elif isinstance(value, list):
        for item in value:
            check_tree(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"takes text as keys, got {key!r}")
            check_tree(key, depth + 1)
            check_tree(item, depth + 1)
    else:
        raise ValueError(f"takes no {type(value).__name__}")
