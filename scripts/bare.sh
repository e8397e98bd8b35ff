#!/bin/sh
# The packages of a bare machine with a GPU, in an environment of its own ($1), and in $1/tree what would be copied there.
#
#   sh scripts/bare.sh .bare && cd .bare/tree && ../bin/python ../../scripts/bare_check.py
#
# Of torch there is only the CUDA build on the index. It runs without a GPU, and what it loads at once is all of CUDA that
# bare.txt has. Not compiled: half of the time.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
TARGET=${1:-.bare}
PYTHON=$(sh scripts/find_python.sh 3.12)

"$PYTHON" -m venv --clear "$TARGET"
"$TARGET/bin/python" -m pip --disable-pip-version-check --quiet install --no-deps --no-compile -r scripts/bare.txt
mkdir "$TARGET/tree"
git ls-files -z --cached --others --exclude-standard |
    tar --create --null --files-from - --ignore-failed-read --warning=no-failed-read |
    tar --extract --directory "$TARGET/tree"
"$TARGET/bin/python" -c 'import torch, triton; print("bare: ready, torch", torch.__version__, "triton", triton.__version__)'
