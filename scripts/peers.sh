#!/bin/sh
# TRL and verl for the parity tests, and the peers of the bench, in a folder of their own ($1): nothing of it enters .venv.
#
#   sh scripts/peers.sh .peers && PYTHONPATH=.peers .venv/bin/python -m pytest tests/kernels/parity
#
# Without their dependencies on torch and transformers, which .venv has; verl 0.9.1 pins an older transformers but its
# loss functions run with this one.
set -eu
TARGET=${1:-.peers}
VENV=${VENV:-.venv}
rm -rf "$TARGET"
"$VENV/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --target "$TARGET" -r scripts/peers.txt
