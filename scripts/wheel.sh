#!/bin/sh
# Builds the wheel and installs it elsewhere, in an environment under $1: first the kernels alone, then the trainer as well.
#
#   sh scripts/wheel.sh .wheel
#
# At first it has torch, triton and numpy and nothing else of ours: README's ten lines run there, importing siri_kernels loads
# nothing else, and siri-train says in one line what it lacks. With the extra [train] both embedded tasks are trained for a
# cycle (`siri-train demo` takes six minutes, tests/train/test_demo.py runs it). Not compiled: half of the time.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
TARGET=${1:-.wheel}
PYTHON=${PYTHON:-python3}
ROOT=$(pwd)

rm -rf "$TARGET"
mkdir -p "$TARGET/work"
"$PYTHON" -m venv "$TARGET/env"
PIP="-m pip --disable-pip-version-check --quiet"
"$TARGET/env/bin/python" $PIP wheel --no-deps --wheel-dir "$TARGET/dist" .
rm -rf build
WHEEL=$(ls "$ROOT/$TARGET"/dist/siri_kernels-*.whl)
"$TARGET/env/bin/python" $PIP install --no-compile -c constraints.txt torch
"$TARGET/env/bin/python" $PIP install --no-compile -c constraints.txt "$WHEEL"
(cd "$TARGET/work" && ../env/bin/python "$ROOT/scripts/wheel_check.py" kernels "$ROOT/README.md")
if "$TARGET/env/bin/siri-train" demo --out "$TARGET/work/none" 2>"$TARGET/work/said"; then
    echo "wheel: siri-train ran without the extra [train]" >&2
    exit 1
fi
grep -q "pip install 'siri-kernels\[train\]'" "$TARGET/work/said"
test "$(wc -l <"$TARGET/work/said")" = 1

"$TARGET/env/bin/python" $PIP install --no-compile -c constraints.txt "$WHEEL[train]"
SHORT="schedule.cycle=10 train.steps=10 eval.every=5 checkpoint.every=0"
for task in demo recheck; do
    (cd "$TARGET/work" && ../env/bin/siri-train train $task.yaml output=$task $SHORT checkpoint.lag=0 checkpoint.lag_window=0)
done
(cd "$TARGET/work" && ../env/bin/siri-train schedule smollm2-code.yaml --svg code.svg && ../env/bin/siri-train doctor)
(cd "$TARGET/work" && ../env/bin/python "$ROOT/scripts/wheel_check.py" run demo)
(cd "$TARGET/work" && ../env/bin/python "$ROOT/scripts/wheel_check.py" run recheck)
echo "wheel: $(basename "$WHEEL") runs the ten lines and both embedded tasks"
