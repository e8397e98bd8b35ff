"""``python -m bench``: the kernels against eager PyTorch and every peer, correctness first.

    python -m bench                    # on this CPU, a named part of the grid
    python -m bench --device cuda      # on a GPU, all rows, the most important first
    python -m bench --dry-run          # the GPU's rows, tiny, in Triton's interpreter
    python -m bench compare A B        # two results side by side
    python -m bench gpu-report FOLDER  # tables of what scripts/gpu_run.sh wrote, and predictions
    python -m bench tables FOLDER      # Markdown and plots again, from FOLDER/kernels.json alone

Rows are kept as they are measured: a run that was cut, or whose ``--budget`` was spent, goes on
when the same command is run again. Contenders that are not installed are named with the reason;
``sh scripts/peers.sh .peers`` and ``PYTHONPATH=.peers`` bring them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from bench.reports import compare
from bench.results_io import slug

FOLDER = Path(__file__).parent


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>")
    parser.add_argument("--budget", type=float, default=float("inf"),
                        help="seconds after which no further row is begun")  # fmt: skip
    parser.add_argument("--seconds", type=float, help="a row's timed rounds; default 4, GPU 1.5")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--without", default=[], action="append", metavar="CONTENDER",
                        help="leave it out (one whose kernel takes the GPU down, say)")  # fmt: skip
    parser.add_argument("--real", help="hidden states written by python -m bench.real")
    parser.add_argument("pytest", nargs="*", help="after --: arguments of pytest(-benchmark)")
    return parser.parse_args()


def write_results(folder: Path) -> None:
    """Tables and, where matplotlib is, plots of ``kernels.json``."""
    from bench.reports.tables import write_tables

    write_tables(folder)
    try:
        from bench.reports.plots import write_plots
    except ImportError:
        print("bench: no plots, matplotlib is not installed (pip install -e '.[bench]')")
        return
    write_plots(folder, json.loads((folder / "kernels.json").read_text(encoding="utf-8")))


def main() -> int:
    """Run the rows, then make tables and plots."""
    if sys.argv[1:2] == ["compare"]:
        compare.main(sys.argv[2:])
        return 0
    if sys.argv[1:2] == ["gpu-report"]:
        from bench.gpu.report import main as report

        report(sys.argv[2:])
        return 0
    if sys.argv[1:2] == ["tables"]:
        write_results(Path(sys.argv[2]))
        return 0
    given = options()
    try:
        import pytest
        import pytest_benchmark  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"bench: {error}; pip install -e '.[bench]' brings it") from None
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
    import torch

    kind = "dry" if given.dry_run else given.device
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench: no GPU here; without --device cuda it measures on the CPU")
    if kind == "dry":
        out = given.out or Path(tempfile.mkdtemp())
    elif kind == "cuda":
        out = given.out or FOLDER / "results" / slug(torch.cuda.get_device_name())
    else:
        out = given.out or FOLDER / "results" / "cpu"
    seconds = given.seconds or {"cpu": 4.0, "cuda": 1.5, "dry": 0.01}[kind]
    code = pytest.main(
        [
            "-c", str(FOLDER / "pytest.ini"), "--rootdir", str(FOLDER.parent),
            str(FOLDER / "test_kernels.py"), str(FOLDER / "test_training.py"),
            f"--bench-plan={kind}", f"--bench-out={out}", f"--bench-budget={given.budget}",
            f"--bench-seconds={seconds}", f"--bench-threads={given.threads}",
            f"--bench-only={given.only}",
            *[f"--bench-without={name}" for name in given.without],
            *([f"--bench-real={given.real}"] if given.real else []), "-s",
            "-rs", "--benchmark-columns=median,iqr,rounds", "--benchmark-sort=mean",
            *given.pytest,
        ]
    )  # fmt: skip
    if (out / "kernels.json").exists():
        write_results(out)
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
