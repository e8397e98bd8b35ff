#!/bin/sh
# verl 0.9.1 in an environment of its own ($1), for tests/verl: nothing of it enters .venv.
#
#   sh scripts/verl.sh .verl && .verl/bin/python -m pytest tests/verl
#
# verl pins an older transformers than siri-kernels, so that goes in without its dependencies, as it does beside a verl of
# yours; installed and not only on the path, because verl finds it by its entry points. Not compiled: half of the time.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
TARGET=${1:-.verl}
PYTHON=${PYTHON:-python3}

"$PYTHON" -m venv --clear "$TARGET"
PIP="$TARGET/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --no-compile"
$PIP -r scripts/verl.txt
$PIP -e .
"$TARGET/bin/python" -c 'import importlib.metadata as m; print("verl: ready,", m.version("verl"))'
