#!/bin/sh
# Builds the wheel and installs it elsewhere, in two environments under $1: the kernels alone, and with the trainer.
#
#   sh scripts/wheel.sh .wheel
#
# The first has torch, triton and numpy and nothing else of ours: README's ten lines run there, importing siri_kernels loads
# nothing else, and siri-train says in one line what it lacks. The second runs the demo.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
TARGET=${1:-.wheel}
PYTHON=${PYTHON:-python3}
ROOT=$(pwd)

rm -rf "$TARGET"
mkdir -p "$TARGET/work"
"$PYTHON" -m venv "$TARGET/kernels"
PIP="-m pip --disable-pip-version-check --quiet"
"$TARGET/kernels/bin/python" $PIP wheel --no-deps --wheel-dir "$TARGET/dist" .
rm -rf build
WHEEL=$(ls "$ROOT/$TARGET"/dist/siri_kernels-*.whl)
"$TARGET/kernels/bin/python" $PIP install -c constraints.txt torch
"$TARGET/kernels/bin/python" $PIP install -c constraints.txt "$WHEEL"
(cd "$TARGET/work" && ../kernels/bin/python "$ROOT/scripts/wheel_check.py" kernels "$ROOT/README.md")
if "$TARGET/kernels/bin/siri-train" demo --out "$TARGET/work/none" 2>"$TARGET/work/said"; then
    echo "wheel: siri-train ran without the extra [train]" >&2
    exit 1
fi
grep -q "pip install 'siri-kernels\[train\]'" "$TARGET/work/said"
test "$(wc -l <"$TARGET/work/said")" = 1

"$PYTHON" -m venv "$TARGET/train"
"$TARGET/train/bin/python" $PIP install -c constraints.txt torch
"$TARGET/train/bin/python" $PIP install -c constraints.txt "$WHEEL[train]"
(cd "$TARGET/work" && ../train/bin/siri-train demo --out demo && ../train/bin/siri-train doctor)
(cd "$TARGET/work" && ../train/bin/python "$ROOT/scripts/wheel_check.py" demo demo)
echo "wheel: $(basename "$WHEEL") runs the ten lines and the demo"
