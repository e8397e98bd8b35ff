"""The parser of the command line, and kinds of arguments; argparse shows what they raise."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from siri_train.files import printable


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that ends with where to read more."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, status 2."""
        text = " ".join(message.split()).replace("recipe, a.b=c", "recipe")
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", text)
        if found:
            names = [name.strip(" '") for name in found.group(2).split(",")]
            near = difflib.get_close_matches(found.group(1), names, n=1)
            text += f"; did you mean {near[0]}?" if near else ""
        # argparse shows some of what was given as it is, control characters too.
        text = printable(text)
        self.exit(2, f"{self.prog}: {text}; see {self.prog} --help\n")


ENDS = ("low", "high", "low-lagged", "high-lagged", "low-measured", "high-measured")
"""The names of checkpoints in ``manifest.json`` that begin with ``siri-``, without it."""


def which(text: str) -> str:
    """A name of the manifest, without ``siri-``, or a number of steps.

    Raises:
        ArgumentTypeError: it is neither.
    """
    if text in ENDS:
        return f"siri-{text}"
    if text == "best" or (text.isascii() and text.isdigit() and len(text) < 10):
        return text
    raise argparse.ArgumentTypeError(
        f"got {_short(text)}; takes {', '.join(ENDS)}, best or a number of steps"
    )


def _whole(text: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"got {_short(text)}; takes a whole number from {least} to {most}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def names(text: str) -> list[str]:
    """Names with commas between.

    Raises:
        ArgumentTypeError: one is empty.
    """
    found = [name.strip() for name in text.split(",")]
    if "" in found:
        raise argparse.ArgumentTypeError(f"got {_short(text)}; takes names with commas between")
    return found


CHECKPOINTS = ("last", *(f"siri-{end}" for end in ENDS), "best", "start")
"""The checkpoints of a run that have a name."""


def checkpoints(text: str) -> list[str]:
    """Names of checkpoints with commas between, each once.

    Raises:
        ArgumentTypeError: another name, or one twice.
    """
    found = names(text)
    if set(found) - set(CHECKPOINTS) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(
            f"got {_short(text)}; takes some of {', '.join(CHECKPOINTS)}, each once"
        )
    return found


def caps(text: str) -> list[int]:
    """Lengths in tokens with commas between."""
    return [_whole(part.strip(), 1, 2**24) for part in text.split(",")]


def tokens(text: str) -> int:
    """A number of tokens of a whole run."""
    return _whole(text, 1, 10**15)  # the bound of train.max_tokens


def positive(text: str) -> int:
    """A whole number from 1 to a million."""
    return _whole(text, 1, 1_000_000)


def count(text: str) -> int:
    """A whole number from 0 to a million."""
    return _whole(text, 0, 1_000_000)


def port(text: str) -> int:
    """A port of this machine, or 0 for any free one."""
    return _whole(text, 0, 65535)


def seed(text: str) -> int:
    """A seed of 32 bits."""
    return _whole(text, 0, 2**32 - 1)  # values.SEED_MAX, which is slow to import


def price(text: str) -> float:
    """Money per hour.

    Raises:
        ArgumentTypeError: not a number within the bounds of ``monitor.price_per_gpu_hour``.
    """
    try:
        value = float(text) if text.isascii() else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:  # NaN is not between either
        raise argparse.ArgumentTypeError(
            f"got {_short(text)}; takes money from 0 to 1000000, as 2.5"
        )
    return value


def gigabytes(text: str) -> float:
    """Gigabytes of 10**9 bytes.

    Raises:
        ArgumentTypeError: not a number within the bounds.
    """
    try:
        value = float(text) if text.isascii() else 0.0
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1e6:  # NaN is not between either
        raise argparse.ArgumentTypeError(
            f"got {_short(text)}; takes GB (10**9 bytes) from 0.01 to 1000000, as 80"
        )
    return value


def path(text: str) -> str:
    """A path; in ``--out=~/x`` the shell leaves the ``~`` to the program.

    Raises:
        ArgumentTypeError: it is empty, or ``expand`` refuses it.
    """
    from siri_train.config.text import expand

    try:
        if not text:
            raise ValueError("takes a path that is not empty")
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {_short(text)}; {error}") from error


def completed(action: argparse.Action, kind: str) -> None:
    """Mark what completes an argument: a name in ``siri_train.commands.completion``."""
    action.completed_by = kind  # type: ignore[attr-defined]


def refuse_without_dry_run(arguments: argparse.Namespace) -> None:
    """Refuse what only the plan reads, where a run would start and take no notice of it.

    Args:
        arguments: of ``siri-train train`` without ``--dry-run``.

    Raises:
        ConfigError: naming the first of the arguments, and what starts several processes.
    """
    from siri_train.config.base import ConfigError  # pydantic, which completion does without

    for name in ("ranks", "gpu", "gpu_memory", "price", "mean_length", "rates"):
        value = getattr(arguments, name)
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{flag}: got {str(value)[:40]} without --dry-run; it is for the plan alone: add "
                "--dry-run, or leave it out (torchrun --nproc-per-node N starts N processes)"
            )
