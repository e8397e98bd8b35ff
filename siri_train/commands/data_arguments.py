"""The arguments of ``siri-train data``. Standard library only, see ``parser.py``."""

from __future__ import annotations

import argparse

from siri_train.commands import arguments as kinds
from siri_train.data.known.registry import KNOWN


def data(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``siri-train data``."""
    actions = sub.add_subparsers(dest="action", required=True, metavar="get|list")
    get = actions.add_parser("get", help="write a public set", description="write a public set")
    get.add_argument("name", choices=list(KNOWN), metavar="NAME", help=", ".join(KNOWN))
    source = get.add_argument(
        "--from",
        dest="source",
        action="append",
        type=kinds.path,
        default=[],
        metavar="SOURCE",
        help="a file, a folder, hub:OWNER/NAME[:CONFIG] or an http address, may be given several "
        "times; default: the set's own on the hub",
    )
    kinds.completed(source, "data file")
    for role in ("question", "answer", "solution"):
        get.add_argument(
            f"--{role}-field", metavar="COLUMN", help="default: the first known name that is there"
        )
    get.add_argument(
        "--validation",
        type=kinds.count,
        metavar="N",
        help="questions to set apart, of deepscaler (default: 512); 0: none",
    )
    get.add_argument("--force", action="store_true", help="replace files that differ")
    get.add_argument("--strict", action="store_true", help="refuse instead of leaving rows out")
    shown = actions.add_parser("list", help="the known sets", description="the known sets")
    shown.add_argument("--json", action="store_true", help="as JSON")
    for each in (get, shown):
        to = each.add_argument(
            "--to", type=kinds.path, default="data", help="folder of sets (default: %(default)s)"
        )
        kinds.completed(to, "folder")
