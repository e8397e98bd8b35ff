#!/bin/sh
# The oldest or the newest versions that are supported ($1), in an environment of their own ($2): nothing of it enters .venv.
#
#   sh scripts/ends.sh newest .newest && .newest/bin/python -m pytest tests/kernels/test_interpreted.py
#
# Of these torches there are only CUDA builds on the index: a minute each, without what a machine without a GPU never loads.
# LATEST=1 takes what is newest on the index today in place of newest.txt's versions. Not compiled: half of the time.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
WHICH=$1
TARGET=$2
LATEST=${LATEST:-}
case $WHICH in
oldest) PYTHON=$(sh scripts/find_python.sh 3.10) ;;
newest) PYTHON=$(sh scripts/find_python.sh 3.13) ;;
*) echo "usage: sh scripts/ends.sh oldest|newest FOLDER" >&2; exit 2 ;;
esac
# A machine's own constraints must not hold back what is asked for here.
export PIP_CONSTRAINT=/dev/null

"$PYTHON" -m venv --clear "$TARGET"
PIP="$TARGET/bin/python -m pip --disable-pip-version-check --quiet install --no-compile"
if [ "$WHICH" = newest ] && [ -n "$LATEST" ]; then
    # With their dependencies, which may be others by now; torch brings the CUDA libraries it was built with.
    sed -n '/^nvidia/d; s/^\([A-Za-z0-9_.-]*\)==.*/\1/p' scripts/newest.txt >"$TARGET/latest.txt"
    $PIP -r "$TARGET/latest.txt"
else
    $PIP --no-deps -r "scripts/$WHICH.txt"
fi
# Not installed, as it would be for use: the tests run in the tree, and siri_kernels.egg-info is .venv's.
"$TARGET/bin/python" -c 'import platform, torch, triton, transformers, numpy
print("'"$WHICH"': ready, Python", platform.python_version(), "torch", torch.__version__, "triton", triton.__version__,
      "transformers", transformers.__version__, "numpy", numpy.__version__)'
