#!/bin/sh
# TRL, verl and other trainers for the tests beside them, and the bench's peers, in a folder of their own ($1): nothing of it
# enters .venv.
#
#   sh scripts/peers.sh .peers && PYTHONPATH=.peers .venv/bin/python -m pytest tests/kernels/parity
#
# Without their dependencies on torch and transformers, which .venv has; verl 0.9.1 pins an older transformers but its
# loss functions run with this one. SkyRL asks for Python 3.12; what is tested of it runs with 3.11 as well.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
TARGET=${1:-.peers}
VENV=${VENV:-.venv}
rm -rf "$TARGET"
"$VENV/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile --no-deps --ignore-requires-python --target "$TARGET" -r scripts/peers.txt
rm -rf "$TARGET/tests" # OpenRLHF's wheel carries its own
