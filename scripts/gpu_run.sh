#!/bin/sh
# Everything a GPU can teach, in two calls: sh scripts/gpu_run.sh first OUT, then second OUT --after FIRST_OUT.
# Needs a Python with torch, triton, numpy and pytest, and nothing of ours installed; wheels in .whl/ are used
# if they are there. PYTHON=... takes another interpreter. See docs/benchmarks.md.
root=$(cd "$(dirname "$0")/.." && pwd) || exit
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -u -m bench gpu "$@"
