# Everything runs from .venv, which `make setup` builds from nothing but Python >= 3.10, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-slow test-peers test-vllm test-verl aot bench bench-ready bench-gpu bench-gpu-step test-gpu lint format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh
	@touch $(READY)

demo: $(READY)
	$(BIN)/siri-train demo

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-peers: $(READY)
	sh scripts/peers.sh .peers
	SIRI_PEERS=1 PYTHONPATH=.peers $(BIN)/python -m pytest tests/kernels/parity tests/integrations tests/bench
	SIRI_SNIPPETS=peers PYTHONPATH=.peers $(BIN)/python -m pytest tests/test_snippets.py

test-vllm:
	PYTHON="$(PYTHON)" sh scripts/vllm.sh .vllm
	.vllm/bin/python -m pytest tests/vllm -m 'slow or not slow' --show-capture=no

test-verl:
	PYTHON="$(PYTHON)" sh scripts/verl.sh .verl
	.verl/bin/python -m pytest tests/verl -m 'slow or not slow'
	SIRI_SNIPPETS=verl .verl/bin/python -m pytest tests/test_snippets.py

aot: $(READY)
	$(BIN)/python -m siri_kernels.aot --check

# The most important rows first, no row begun after 14 minutes; the same command goes on with the others.
# Peers take part where `sh scripts/peers.sh .peers` put them; the others are named in the result.
PEERS := .peers$(if $(PYTHONPATH),:$(PYTHONPATH))

bench: bench-ready
	PYTHONPATH=$(PEERS) $(BIN)/python -m bench --budget 840

# On a machine with a GPU. GPU_PYTHON=python3 takes a Python that has torch, triton, pytest and pytest-benchmark
# already and builds nothing; OUT=FOLDER is where results go (and go on from).
GPU_PYTHON ?= $(BIN)/python
GPU_READY := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),bench-ready)

bench-ready: $(READY)
	env -u PYTHONPATH $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'

test-gpu: $(GPU_READY)
	$(GPU_PYTHON) -m pytest tests/kernels tests/train/test_attention.py -k "triton or head or gpu"

bench-gpu: $(GPU_READY)
	PYTHONPATH=$(PEERS) $(GPU_PYTHON) -m bench --device cuda --budget 480 $(if $(OUT),--out $(OUT))

# A training step of a 1.5B model; 8 minutes a call too, and resumable.
bench-gpu-step: $(GPU_READY)
	$(GPU_PYTHON) -m bench.training_step_gpu $(if $(OUT),--out $(OUT))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .peers .vllm .verl .pytest_cache .ruff_cache .mypy_cache build *.egg-info
