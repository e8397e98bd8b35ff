# Everything runs from .venv, which `make setup` builds from nothing but Python >= 3.10, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Environments are installed without bytecode, which is quicker. Python writes it at the first import, and some fifty processes
# that tests start compile all of PyTorch anew where this keeps it from writing.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow test-slow-kernels test-slow-others test-peers test-vllm test-verl test-bare test-oldest test-newest test-wheel aot bench bench-step bench-ready \
	gpu-rehearse gpu-first gpu-second gpu-report bench-gpu bench-gpu-step test-gpu lint format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh
	@touch $(READY)

demo: $(READY)
	$(BIN)/siri-train demo

# Five minutes of one core. Of wide matrices a part that is drawn anew each day (SIRI_TEST_DRAW=all: everything).
test: $(READY)
	$(BIN)/python -m pytest

# What takes minutes, and the other cases of the wide matrices.
test-slow: test-slow-kernels test-slow-others

test-slow-kernels: $(READY)
	$(BIN)/python -m pytest -m slow tests/kernels

test-slow-others: $(READY)
	$(BIN)/python -m pytest -m slow --ignore=tests/kernels

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

# What a GPU run can do on a machine that has none of our dependencies but torch, triton, numpy, transformers and pytest.
GPU_TESTS := tests/kernels tests/train/test_attention.py tests/train/test_packing.py

test-bare:
	sh scripts/bare.sh .bare
	cd .bare/tree && ../bin/python scripts/bare_check.py imports
	cd .bare/tree && ../bin/python scripts/bare_check.py collect $(GPU_TESTS)
	cd .bare/tree && ../bin/python -m pytest -p no:cacheprovider -n 2 --dist worksteal $(GPU_TESTS)
	cd .bare/tree && ../bin/python scripts/bare_check.py rehearse ../rehearsal

# Both ends of the supported versions: the kernels, interpreted and compiled, and the loop. The run that is killed at random
# moments takes two minutes, and runs in `make test` only.
ENDS_TESTS := tests/kernels/test_interpreted.py tests/kernels/test_linear_logprob_compiled.py tests/kernels/test_wrap.py \
	tests/kernels/test_policy_loss.py tests/kernels/test_group_advantages.py tests/kernels/test_selective_logprob.py \
	tests/kernels/test_linear_logprob.py tests/kernels/test_compiled_losses.py tests/kernels/test_selective_logprob_compiled.py \
	tests/kernels/test_varlen_compiled.py tests/kernels/test_degenerate_losses.py tests/kernels/test_default_dtype_and_device.py \
	tests/kernels/test_float64_is_missing.py tests/kernels/test_masked_ids.py tests/kernels/test_fused_compiled.py \
	tests/kernels/test_fused_gradient_compiled.py tests/kernels/test_fused_plain_compiled.py \
	tests/kernels/test_screen_rows_compiled.py \
	tests/train/test_config.py tests/train/test_loop.py tests/train/test_rollout.py \
	tests/train/test_checkpoint.py tests/train/test_attention.py tests/train/test_step.py tests/train/test_cli.py tests/train/test_cli_help.py \
	tests/train/test_model_folder.py tests/train/test_model_ids.py tests/train/test_export.py tests/train/test_no_dropout.py \
	--deselect tests/train/test_checkpoint.py::test_kill_at_random_moments_changes_nothing

test-oldest:
	sh scripts/ends.sh oldest .oldest
	.oldest/bin/python -m pytest -p no:cacheprovider $(ENDS_TESTS)

# LATEST=1 takes what is newest on the index today.
test-newest:
	LATEST="$(LATEST)" sh scripts/ends.sh newest .newest
	.newest/bin/python -m pytest -p no:cacheprovider $(ENDS_TESTS)

# The wheel, built and installed elsewhere: the kernels alone, and with the trainer, which runs both embedded tasks.
test-wheel:
	PYTHON="$(PYTHON)" sh scripts/wheel.sh .wheel

aot: $(READY)
	$(BIN)/python -m siri_kernels.aot --check

# The most important cases first, none is begun after 14 minutes; the same command continues with the others.
# Peers take part where `sh scripts/peers.sh .peers` put them; the others are named in the result.
PEERS := .peers$(if $(PYTHONPATH),:$(PYTHONPATH))

bench: bench-ready
	PYTHONPATH=$(PEERS) $(BIN)/python -m bench kernels --budget 840

# A training step beside TRL's, of the demo's model and of SmolLM2-135M.
bench-step: bench-ready
	PYTHONPATH=$(PEERS) $(BIN)/python -m bench step --threads 1 --model tiny --rounds 7
	PYTHONPATH=$(PEERS) $(BIN)/python -m bench step --threads 1 --model smollm2 --rounds 2

# On a machine with a GPU. GPU_PYTHON=python3 takes a Python that has torch, triton and numpy already and
# builds nothing; OUT=FOLDER is where results are written and continued.
GPU_PYTHON ?= $(BIN)/python
GPU_READY := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),bench-ready)

bench-ready: $(READY)
	env -u PYTHONPATH $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'

# Several at a time where pytest-xdist is there: most of the time goes into compiling kernels, a core each.
SPREAD := import importlib.util as u, os; print(f"-n {min(8, os.cpu_count())} --dist worksteal" if u.find_spec("xdist") else "")

test-gpu: $(GPU_READY)
	SIRI_TEST_DRAW=all $(GPU_PYTHON) -m pytest $(GPU_TESTS) $$($(GPU_PYTHON) -c '$(SPREAD)')

# A GPU that is lent for minutes: nine of them, read, mend, four more (docs/benchmarks.md). OUT, AFTER: folders.
gpu-rehearse: $(READY)
	PYTHON=$(BIN)/python sh scripts/gpu_run.sh first $(or $(OUT),.gpu/first) --rehearse

gpu-first:
	PYTHON=$(GPU_PYTHON) sh scripts/gpu_run.sh first $(or $(OUT),.gpu/first)

gpu-second:
	PYTHON=$(GPU_PYTHON) sh scripts/gpu_run.sh second $(or $(OUT),.gpu/second) --after $(or $(AFTER),.gpu/first)

gpu-report: $(READY)
	$(BIN)/python -m bench report $(or $(OUT),.gpu/first .gpu/second)

bench-gpu: $(GPU_READY)
	PYTHONPATH=$(PEERS) $(GPU_PYTHON) -m bench kernels --device cuda --budget 480 $(if $(OUT),--out $(OUT))

# A training step of a 1.5B model; 8 minutes a call too, and resumable.
bench-gpu-step: $(GPU_READY)
	@$(GPU_PYTHON) -c 'import pydantic, transformers' 2>/dev/null || \
		{ echo "the trainer's own step needs them: $(GPU_PYTHON) -m pip install pydantic transformers" >&2; exit 1; }
	$(GPU_PYTHON) -m bench step-gpu $(if $(OUT),--out $(OUT))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .wheel .peers .vllm .verl .bare .oldest .newest .pytest_cache .ruff_cache .mypy_cache build *.egg-info
